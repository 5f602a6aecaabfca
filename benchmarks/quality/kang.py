"""Quality of CFMVC on Kang 2018, leave one cell type out, beside the baselines and the ceiling.

    python benchmarks/quality/kang.py                     all folds, seeds 0 1 2, 2,000 variable genes
    python benchmarks/quality/kang.py --seeds 0 --folds "B cells" "NK cells"
    python benchmarks/quality/kang.py --genes all         every expressed gene
    python benchmarks/quality/kang.py --training-types 3  three cell types to learn from

Writes one row per fold, seed and method to ``benchmarks/results/``, and prints means over folds with the spread over
seeds, for all folds and for those that settings were chosen on and confirmed on.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from protocol import (
    CHOOSE_ON,
    CONDITION,
    CONFIRM_ON,
    CONTROL,
    COSTS,
    PERTURBED,
    Fold,
    few_training_types,
    kang_folds,
    load_kang,
    lognorm,
    make_fold,
    score,
)

from cfmvc_scvi import metrics

RESULTS = Path(__file__).resolve().parents[1] / "results"
METHOD, DRAWN, DECODER = "CFMVC", "CFMVC, drawn counts", "decoder ceiling"
SHIFT = "control + mean shift"


def fit_predict(fold: Fold, seed: int, model: dict[str, Any], train: dict[str, Any]) -> tuple[dict, dict, Any]:
    """Train on the fold; predictions, costs and the model."""
    import scvi
    import torch

    from cfmvc_scvi import CFMVC

    torch.set_num_threads(1)
    scvi.settings.seed = seed
    adata = fold.training.copy()
    CFMVC.setup_anndata(
        adata,
        batch_key="donor",
        labels_key="cell_type",
        perturbation_key=CONDITION,
        control_group=CONTROL,
        size_factor_key="total_counts",
    )
    start = time.perf_counter()
    fitted = CFMVC(adata, **model)
    fitted.train(enable_progress_bar=False, **train)
    trained = time.perf_counter()
    expected = fitted.predict_perturbation(fold.control, PERTURBED, seed=seed)
    predicted = time.perf_counter()
    drawn = fitted.predict_perturbation(fold.control, PERTURBED, return_type="counts", seed=seed)
    costs = {
        "train s": trained - start,
        "predict s": predicted - trained,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return {METHOD: expected, DRAWN: drawn}, {METHOD: costs}, fitted


def decoder_ceiling(fitted: Any, fold: Fold) -> np.ndarray:
    """Expected log1p CP10k of the real target, encoded and decoded: what the VAE alone loses. Scoring only."""
    target = fold.truth.copy()
    target.obs[CONDITION] = CONTROL  # the encoder does not read it
    share = fitted.get_normalized_expression(target, library_size=1e4, return_numpy=True)
    return np.log1p(share)


def run_fold(task: dict[str, Any]) -> pd.DataFrame:
    """Scores of one fold and seed."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    fold = make_fold(load_kang(task["data"]), task["fold"], task["genes"], task["training_types"])
    predictions, costs, fitted = fit_predict(fold, task["seed"], task["model"], task["train"])
    predictions[DECODER] = decoder_ceiling(fitted, fold)
    table = score(fold, predictions, costs, seed=task["seed"])
    for name, counts in ((DRAWN, predictions[DRAWN]), ("no change", fold.control)):
        for column, value in agreement(fold, counts).items():
            table.loc[name, column] = value
    table = table.rename_axis("method").reset_index()
    table.insert(0, "fold", task["fold"])
    table.insert(1, "seed", task["seed"])
    return table


def agreement(fold: Fold, counts: ad.AnnData) -> dict[str, float]:
    """Per-gene zero fraction and variance of counts against the real held-out cells."""
    zero = metrics.zero_fraction_agreement(counts.X, fold.truth.X)
    variance = metrics.variance_agreement(lognorm(counts), lognorm(fold.truth))
    return {
        "zeros r": zero.correlation,
        "zeros slope": zero.slope,
        "variance r": variance.correlation,
        "variance slope": variance.slope,
    }


def summarise(rows: pd.DataFrame, folds: Sequence[str] | None = None) -> pd.DataFrame:
    """Mean over folds and seeds, and the standard deviation over seeds of the mean over folds."""
    if folds is not None:
        rows = rows[rows["fold"].isin(folds)]
    columns = [name for name in rows.columns if name not in ("fold", "seed", "method")]
    per_seed = rows.groupby(["method", "seed"], sort=False)[columns].mean()
    mean, spread = per_seed.groupby("method", sort=False).mean(), per_seed.groupby("method", sort=False).std()
    spread = spread.loc[[METHOD]].rename(index={METHOD: f"{METHOD}, sd over seeds"})
    return pd.concat([mean, spread])


def folds_ahead(rows: pd.DataFrame) -> pd.Series:
    """In how many folds the method is ahead of the shift, per column (mean over seeds)."""
    mean = rows.groupby(["method", "fold"], sort=False).mean(numeric_only=True).drop(columns=["seed", *COSTS])
    ours, shift = mean.loc[METHOD], mean.loc[SHIFT]
    higher = [name for name in ours if name.startswith("Pearson") or name == "DE direction"]
    ahead = pd.DataFrame({name: (ours[name] > shift[name]) == (name in higher) for name in ours})
    ahead["variance ratio"] = (ours["variance ratio"] - 1).abs() < (shift["variance ratio"] - 1).abs()
    keep = [name for name in ahead if not name.startswith(("zeros", "variance r ", "variance s"))]
    return ahead[keep].sum()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="the Kang file; default in $CFMVC_DATA")
    parser.add_argument("--genes", default="2000", help="number of variable genes, or 'all' expressed ones")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", nargs="+", default=None)
    parser.add_argument("--training-types", type=int, default=None, help="learn from this many types only")
    parser.add_argument("--model", type=json.loads, default={}, help="arguments of CFMVC, as JSON")
    parser.add_argument("--train", type=json.loads, default={}, help="arguments of train, as JSON")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--name", default="kang", help="name of the result file")
    options = parser.parse_args(arguments)
    adata = load_kang(options.data)
    folds = options.folds or kang_folds(adata)
    few = options.training_types
    tasks = [
        {
            "data": options.data,
            "fold": fold,
            "seed": seed,
            "genes": None if options.genes == "all" else int(options.genes),
            "training_types": None if few is None else few_training_types(adata, fold, few, seed),
            "model": options.model,
            "train": options.train,
        }
        for seed in options.seeds
        for fold in folds
    ]
    start = time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        rows = pd.concat(pool.map(run_fold, tasks), ignore_index=True)
    RESULTS.mkdir(exist_ok=True)
    rows.to_csv(RESULTS / f"{options.name}.csv", index=False, float_format="%.5g")
    print(f"{len(tasks)} runs in {time.perf_counter() - start:.0f} s")
    groups = (("all folds", folds), ("chosen on", CHOOSE_ON), ("confirmed on", CONFIRM_ON))
    for title, names in groups:
        if rows["fold"].isin(names).any():
            print(f"\n{title}\n{summarise(rows, names).round(3).to_string()}")
    print(f"\nper fold, mean over seeds\n{_per_fold(rows).round(3).to_string()}")
    print(f"\nfolds ahead of the shift, of {len(folds)}\n{folds_ahead(rows).to_string()}")


def _per_fold(rows: pd.DataFrame) -> pd.DataFrame:
    chosen = rows[rows["method"].isin([METHOD, SHIFT])]
    return chosen.groupby(["fold", "method"], sort=False).mean(numeric_only=True).drop(columns=["seed", *COSTS])


if __name__ == "__main__":
    main()
