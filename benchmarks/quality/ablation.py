"""What each choice in the model is worth: one change at a time, on the folds that settings are chosen on.

    python benchmarks/quality/ablation.py [--seed 0] [--only NAME ...]

Variants of the calibration share one model per fold; the others are trained with the same seed.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

import pandas as pd
import scvi
import torch
from kang import RESULTS
from protocol import CHOOSE_ON, CONDITION, CONTROL, COSTS, PERTURBED, Fold, load_kang, make_fold, score

from cfmvc_scvi import CFMVC

DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes
    ----------
    model, flow, predict
        Arguments of CFMVC, of ``train_flow`` and of ``predict_perturbation``.
    calibrate
        Arguments of ``calibrate``; ``None`` leaves the calibration that training ends with.
    """

    model: dict[str, Any] = field(default_factory=dict)
    flow: dict[str, Any] = field(default_factory=dict)
    predict: dict[str, Any] = field(default_factory=dict)
    calibrate: dict[str, Any] | None = None


VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant(),
    "drawn counts": Variant(predict={"return_type": "counts"}),
    "no calibration": Variant(calibrate={"estimator": None}),
    "calibrated to the latent path alone": Variant(calibrate={"estimator": "latent"}),
    "calibrated to the process alone": Variant(calibrate={"estimator": "process"}),
    "spread of genes unchanged": Variant(calibrate={"spread": False}),
    "8 posterior draws averaged": Variant(predict={"n_samples": 8}),
    "coupling OT": Variant(model={"coupling": "ot"}),
    "source noise, OT": Variant(model={"flow_source": "noise", "coupling": "ot"}),
    "source noise, independent": Variant(model={"flow_source": "noise"}),
    "cell type in alpha": Variant(model={"labels_in_effect": True}),
    "cell type in the context": Variant(model={"labels_in_context": True}),
    "energy distance 0.1": Variant(model={"energy_weight": 0.1}),
    "weight decay 1e-4": Variant(flow={"plan_kwargs": {"weight_decay": 1e-4}}),
    "latent 16": Variant(model={"n_latent": 16}),
    "latent 64": Variant(model={"n_latent": 64}),
    "KL weight 0.01": Variant(model={"kl_weight_intrinsic": 0.01}),
    "KL weight 0.3": Variant(model={"kl_weight_intrinsic": 0.3}),
    "KL weight 1": Variant(model={"kl_weight_intrinsic": 1.0}),
    "decoder linear alone": Variant(model={"n_layers_decoder": 0}),
}


def trained(fold: Fold, seed: int, variant: Variant) -> CFMVC:
    """Model of a variant on a fold; with one seed, variants that leave stage 1 alone have the same VAE."""
    adata = fold.training.copy()
    keys = {"batch_key": "donor", "labels_key": "cell_type", "perturbation_key": CONDITION}
    CFMVC.setup_anndata(adata, control_group=CONTROL, size_factor_key="total_counts", **keys)
    scvi.settings.seed = seed
    model = CFMVC(adata, **variant.model)
    for stage in (model.train_vae, partial(model.train_flow, **variant.flow)):
        scvi.settings.seed = seed
        stage(enable_progress_bar=False)
    return model


def run_fold(held_out: str, seed: int, names: list[str]) -> pd.DataFrame:
    """Scores of all variants on one fold."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fold = make_fold(load_kang(), held_out)
    base, predictions = trained(fold, seed, Variant()), {}
    for name in names:
        variant = VARIANTS[name]
        model = trained(fold, seed, variant) if variant.model or variant.flow else base
        if variant.calibrate is not None:
            model.calibrate(**variant.calibrate)
        predictions[name] = model.predict_perturbation(fold.control, PERTURBED, **variant.predict)
        if variant.calibrate is not None and model is base:
            model.calibrate()
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
