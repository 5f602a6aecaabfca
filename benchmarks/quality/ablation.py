"""What each choice in the model is worth: one change at a time, on the folds that settings are chosen on.

    python benchmarks/quality/ablation.py [--seed 0] [--only NAME ...]

Variants of the flow and of the calibration share one VAE per fold; variants of the VAE train everything anew.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import scvi
import torch
from kang import RESULTS
from protocol import CHOOSE_ON, CONDITION, CONTROL, COSTS, PERTURBED, Fold, load_kang, make_fold, score

from cfmvc_scvi import CFMVC
from cfmvc_scvi.calibration import calibration as calibrate

DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes
    ----------
    model, flow, predict
        Arguments of CFMVC, of ``train_flow`` and of ``predict_perturbation``.
    new_vae
        Whether the change reaches stage 1.
    patch
        Context manager around prediction, for what is no argument.
    """

    model: dict[str, Any] = field(default_factory=dict)
    flow: dict[str, Any] = field(default_factory=dict)
    predict: dict[str, Any] = field(default_factory=dict)
    new_vae: bool = False
    patch: Callable | None = None


@contextmanager
def replaced(name: str, value: Any):
    """Another function or constant in the calibration."""
    before = getattr(calibrate, name)
    setattr(calibrate, name, value)
    try:
        yield
    finally:
        setattr(calibrate, name, before)


def weight(value: float):
    """One weight of the gene-space process for all genes."""
    return replaced("GP_WEIGHT", value)


def unit_spread(variance: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Leave the spread of every gene as it is."""
    return np.ones_like(variance)


@contextmanager
def uncalibrated():
    """The decoded change as it is, without any correction."""
    before = calibrate.CalibrationMixin._calibration
    calibrate.CalibrationMixin._calibration = lambda self, condition, labels, call, rates: (
        calibrate.GeneCalibration.neutral(self.calibration_["profiles"])
    )
    try:
        yield
    finally:
        calibrate.CalibrationMixin._calibration = before


VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant(),
    "drawn counts": Variant(predict={"return_type": "counts"}),
    "no calibration": Variant(patch=uncalibrated),
    "calibrated to the latent path alone": Variant(patch=partial(weight, 0.0)),
    "calibrated to the process alone": Variant(patch=partial(weight, 1.0)),
    "spread of genes unchanged": Variant(patch=partial(replaced, "_spread_factor", unit_spread)),
    "8 posterior draws averaged": Variant(predict={"n_samples": 8}),
    "coupling independent": Variant(model={"coupling": "independent"}),
    "source noise, OT": Variant(model={"flow_source": "noise"}),
    "source noise, independent": Variant(model={"flow_source": "noise", "coupling": "independent"}),
    "cell type in alpha": Variant(model={"labels_in_effect": True}),
    "cell type in the context": Variant(model={"labels_in_context": True}),
    "energy distance 0.1": Variant(model={"energy_weight": 0.1}),
    "no moving average": Variant(flow={"plan_kwargs": {"ema_decay": 0.0}}),
    "weight decay 1e-4": Variant(flow={"plan_kwargs": {"weight_decay": 1e-4}}),
    "latent 16": Variant(model={"n_latent": 16}, new_vae=True),
    "latent 64": Variant(model={"n_latent": 64}, new_vae=True),
    "KL weight 0.01": Variant(model={"kl_weight_intrinsic": 0.01}, new_vae=True),
    "KL weight 1": Variant(model={"kl_weight_intrinsic": 1.0}, new_vae=True),
    "decoder linear alone": Variant(model={"n_layers_decoder": 0}, new_vae=True),
}


def fresh(fold: Fold, seed: int, **arguments: Any) -> CFMVC:
    """Untrained model on the fold."""
    scvi.settings.seed = seed
    adata = fold.training.copy()
    keys = {"batch_key": "donor", "labels_key": "cell_type", "perturbation_key": CONDITION}
    CFMVC.setup_anndata(adata, control_group=CONTROL, size_factor_key="total_counts", **keys)
    return CFMVC(adata, **arguments)


def with_vae_of(trained: CFMVC, fold: Fold, seed: int, arguments: dict[str, Any]) -> CFMVC:
    """New model with the VAE and the split of a trained one."""
    model = fresh(fold, seed, **arguments)
    for mine, theirs in zip(model.module.vae_parts, trained.module.vae_parts, strict=True):
        mine.load_state_dict(theirs.state_dict())
    model._set_split(trained._split)
    model.is_vae_trained_ = True
    model.module.eval()
    return model


def run_fold(held_out: str, seed: int, names: list[str]) -> pd.DataFrame:
    """Scores of all variants on one fold."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fold = make_fold(load_kang(), held_out)
    base = fresh(fold, seed)
    base.train(enable_progress_bar=False)
    predictions = {}
    for name in names:
        variant = VARIANTS[name]
        model = base
        if variant.new_vae:
            model = fresh(fold, seed, **variant.model)
            model.train(enable_progress_bar=False)
        elif variant.model or variant.flow:
            model = with_vae_of(base, fold, seed, variant.model)
            model.train_flow(enable_progress_bar=False, **variant.flow)
        model._calibration_cache = {}
        with variant.patch() if variant.patch else nullcontext():
            predictions[name] = model.predict_perturbation(fold.control, PERTURBED, **variant.predict)
    table = score(fold, predictions).drop(columns=list(COSTS))
    return table.rename_axis("variant").reset_index().assign(fold=held_out, seed=seed)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="ablation")
    options = parser.parse_args()
    start = time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        run = partial(run_fold, seed=options.seed, names=options.only)
        rows = pd.concat(pool.map(run, CHOOSE_ON), ignore_index=True)
    RESULTS.mkdir(exist_ok=True)
    rows.to_csv(RESULTS / f"{options.name}.csv", index=False, float_format="%.5g")
    mean = rows.groupby("variant", sort=False).mean(numeric_only=True).drop(columns="seed")
    print(f"{len(CHOOSE_ON)} folds in {time.perf_counter() - start:.0f} s\n{mean.round(4).to_string()}")


if __name__ == "__main__":
    main()
