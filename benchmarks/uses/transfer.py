"""Transfer to further data by ``load_query_data``, against no transfer and against training with everything.

    python benchmarks/uses/transfer.py zhao                    one donor left out; then its control cells alone
    python benchmarks/uses/transfer.py kang                    one cell type left out; then its control cells alone
    python benchmarks/uses/transfer.py new [--screens 5]       a new perturbation with 10, 30, 100 cells, simulated

zhao, kang   "before": the reference never saw the donor or type, whose control cells are treated as of the nearest
             one (``unknown_labels="nearest"``). "after": its control cells taken in. "all": trained with them from the
             start. "mean shift": mean change of the others. Its perturbed cells are read for the scores alone: squared
             error of the predicted mean over genes / that of no change (below 1 is better than no change), and the
             harm rate, the share of donors or types where it is above 1. Drift: mean absolute change, by the transfer,
             of what is predicted for control cells of the reference, and its size beside the predicted change.
new          error of mean effects / mean squared true effect, mean over cell types: the model after transfer, one that
             is trained on all cells from scratch, and the mean of the few cells less that of the controls beside them.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from next_experiment import true_effects

from cfmvc_scvi import CFMVC, data, metrics

ZHAO, KANG = "zhao2021_gbm_panobinostat_300genes.h5ad", "kang2018_pbmc_ifnb_4k.h5ad"


def trained(adata: AnnData, **setup) -> tuple[CFMVC, float]:
    """Model of the cells given, and the seconds it took."""
    scvi.settings.seed = 0
    CFMVC.setup_anndata(adata, spatial_key=None, **setup)
    start = time.perf_counter()
    model = CFMVC(adata)
    model.train(enable_progress_bar=False)
    return model, time.perf_counter() - start


def read(name: str) -> AnnData:
    """Public data of the folder that ``CFMVC_DATA`` names."""
    return ad.read_h5ad(Path(os.environ["CFMVC_DATA"]) / name)


def level(cells: AnnData) -> np.ndarray:
    """Log1p of counts per 10,000."""
    return np.asarray(metrics.log1p_cp10k(cells.X.toarray()))


def mean_shift(adata: AnnData, key: str, is_control: np.ndarray, without: str) -> np.ndarray:
    """Mean over levels of a column, but one, of the change of the mean; levels of 20 cells on each side."""
    of, shifts = adata.obs[key].astype(str).to_numpy(), []
    for name in sorted(set(of) - {without}):
        sides = (of == name) & is_control, (of == name) & ~is_control
        if min(side.sum() for side in sides) >= 20:
            shifts.append(level(adata[sides[1]]).mean(axis=0) - level(adata[sides[0]]).mean(axis=0))
    return np.mean(shifts, axis=0)


def left_out(adata: AnnData, key: str, names: list[str], perturbation: str, **setup) -> pd.DataFrame:
    """One level of a column after another left out, and its control cells taken in."""
    control = ~(adata.obs["perturbation"].astype(str) == perturbation).to_numpy()
    rows = {}
    for name in names:
        here = (adata.obs[key].astype(str) == name).to_numpy()
        source, real = adata[here & control].copy(), adata[here & ~control].copy()
        reference, _ = trained(adata[~here].copy(), labels_key=key, **setup)
        others = adata[~here & control].copy()
        base, truth = level(source).mean(axis=0), level(real).mean(axis=0)
        known = reference.predict_perturbation(others, perturbation, return_type="lognorm").X
        nearest = {"unknown_labels": "nearest", "return_type": "lognorm"}
        found = {"before": reference.predict_perturbation(source.copy(), perturbation, **nearest).X}
        start = time.perf_counter()
        query = CFMVC.load_query_data(source.copy(), reference)
        seconds = time.perf_counter() - start
        found["after"] = query.predict_perturbation(source.copy(), perturbation, return_type="lognorm").X
        drift = np.abs(query.predict_perturbation(others, perturbation, return_type="lognorm").X - known).mean()
        every, of_training = trained(adata[~(here & ~control)].copy(), labels_key=key, **setup)
        found["all"] = every.predict_perturbation(source.copy(), perturbation, return_type="lognorm").X
        found["mean shift"] = (base + mean_shift(adata, key, control, name))[None]
        moved = ((truth - base) ** 2).mean()
        row = {method: ((x.mean(axis=0) - truth) ** 2).mean() / moved for method, x in found.items()}
        size = np.abs(known - level(others)).mean()
        rows[name] = row | {
            "seconds": seconds,
            "training s": of_training,
            "drift": drift,
            "drift / change": drift / size,
        }
        print(pd.DataFrame(rows).T.round(3).to_string(), flush=True)
    table = pd.DataFrame(rows).T
    harm = (table[["before", "after", "all", "mean shift"]] > 1.0).mean()
    return pd.concat([table, table.mean().to_frame("mean").T, harm.to_frame("harm rate").T])


def new_perturbation(n_screens: int) -> pd.DataFrame:
    """P6 of simulated screens, of which the reference has no cell."""
    rows = []
    for seed in range(n_screens):
        adata = data.simulate_perturbation(
            n_cells=4000, n_genes=400, n_cell_types=2, n_perturbations=6, n_pairs=0, seed=seed, spatial=False
        )
        rng, label = np.random.default_rng(seed), adata.obs["perturbation"].astype(str).to_numpy()
        is_new, is_control = label == "P6", label == "control"
        kept = rng.permutation(np.flatnonzero(is_control))[:200]  # control cells that come with the new perturbation
        first = np.setdiff1d(np.flatnonzero(~is_new), kept)
        reference, _ = trained(adata[first].copy())
        truth = {}
        for cell_type in reference.cell_types:
            cells = adata[((adata.obs["cell_type"] == cell_type) & is_control).to_numpy()]
            truth[cell_type] = true_effects(cells, ["P6"], rng)["P6"]
        size = np.mean([(effect**2).mean() for effect in truth.values()])
        for n in (10, 30, 100):
            some = np.r_[kept, rng.choice(np.flatnonzero(is_new), n, replace=False)]
            start = time.perf_counter()
            query = CFMVC.load_query_data(adata[some].copy(), reference)
            seconds = time.perf_counter() - start
            scratch, of_training = trained(adata[np.r_[first, some]].copy())
            y = level(adata[some])
            of_cells = y[len(kept) :].mean(axis=0) - y[: len(kept)].mean(axis=0)
            row = {"cells": n, "seconds": seconds, "training s": of_training}
            for name, model in (("transfer", query), ("scratch", scratch)):
                effects = {t: model.get_perturbation_effect("P6", t)["log_fold_change"].to_numpy() for t in truth}
                row[name] = np.mean([((effects[t] - truth[t]) ** 2).mean() for t in truth]) / size
            row["mean of the cells"] = np.mean([((of_cells - effect) ** 2).mean() for effect in truth.values()]) / size
            before, after = (
                np.stack([model.get_perturbation_effect("P1", t)["log_fold_change"] for t in truth])
                for model in (reference, query)
            )
            row["drift of P1"] = np.sqrt(((after - before) ** 2).mean() / (before**2).mean())
            rows.append(row)
            print(seed, {name: round(float(value), 3) for name, value in row.items()}, flush=True)
    return pd.DataFrame(rows).groupby("cells").mean()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["zhao", "kang", "new"])
    parser.add_argument("--screens", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    if arguments.task == "new":
        result = new_perturbation(arguments.screens)
    elif arguments.task == "zhao":
        cells = read(ZHAO)
        control = next(name for name in ("control", "DMSO") if name in set(cells.obs["perturbation"].astype(str)))
        treated = next(name for name in set(cells.obs["perturbation"].astype(str)) if name != control)
        result = left_out(cells, "donor", sorted(set(cells.obs["donor"].astype(str))), treated, batch_key=None)
    else:
        cells = read(KANG)
        cells.obs["perturbation"] = cells.obs["condition"].astype(str)
        chosen = ["B cells", "NK cells", "CD14+ Monocytes"]
        result = left_out(cells, "cell_type", chosen, "stim", batch_key=None, perturbation_key="perturbation")
    print(result.round(3).to_string())
