"""Which perturbation made these cells: reciprocal rank of the true one among all singles and pairs.

    python benchmarks/uses/rank.py simulated [--screens 6]
    python benchmarks/uses/rank.py norman

simulated   screens of 8 perturbations and 8 of their 28 pairs; the cells of 4 pairs are hidden, the model is trained on
            the rest, and 200, 40 or 15 of the hidden cells of a pair are the target
norman      every one of the five doubles whose members were measured alone is hidden in turn (data/README of the file)

Rankings: by energy distance on genes (the rank of the table), in latent, by mean shift (root mean square difference and
cosine of mean effects), and a random one, whose mean reciprocal rank is that of a uniform rank. Means over targets.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from anndata import AnnData

from cfmvc_scvi import CFMVC, data

RANKINGS = {"energy on genes": "energy_genes", "energy in latent": "energy_latent", "mean shift": "mean_distance"}
NORMAN = "norman2019_crispra_500genes.h5ad"


def trained(adata: AnnData, seed: int, **setup) -> CFMVC:
    """Model of the cells given."""
    scvi.settings.seed = seed
    CFMVC.setup_anndata(adata, combination_delimiter="+", spatial_key=None, **setup)
    model = CFMVC(adata)
    model.train(enable_progress_bar=False)
    return model


def reciprocal_ranks(model: CFMVC, cells: AnnData, truth: str) -> dict[str, float]:
    """Reciprocal rank of the true condition by every ranking, and the seconds taken."""
    start = time.perf_counter()
    table = model.rank_perturbations(target=cells, pairs=True, n_resamples=100)
    seconds = time.perf_counter() - start
    members = table["perturbation"].map(lambda label: frozenset(label.split("+")))
    is_true = (members == frozenset(truth.split("+"))).to_numpy()
    found = {}
    for name, column in RANKINGS.items():
        values = table[column].fillna(table[column].max() + table["mean_distance"])  # beyond the best: by mean shift
        found[name] = 1.0 / values.rank()[is_true].item()
    found["cosine"] = 1.0 / (-table["cosine"].fillna(-2.0)).rank()[is_true].item()
    found["random"] = float(np.mean(1.0 / np.arange(1, len(table) + 1)))
    best = table[is_true].iloc[0]
    inside = table["probability_best"].fillna(0.0)[is_true].item()
    return found | {
        "candidates": len(table),
        "P(best)": inside,
        "left": best["energy_genes"]
        / table.loc[table["perturbation"] == model.vocabulary.control_label, "energy_genes"].item(),
        "seconds": seconds,
    }


def simulated(n_screens: int) -> pd.DataFrame:
    """Hidden pairs of simulated screens."""
    rows = []
    for seed in range(n_screens):
        adata = data.simulate_perturbation(
            n_cells=5000, n_genes=400, n_cell_types=2, n_perturbations=8, n_pairs=8, effect_size=0.5, seed=seed
        )
        labels = adata.obs["perturbation"].astype(str)
        hidden = sorted(label for label in set(labels) if "+" in label)[::2]
        model = trained(adata[~labels.isin(hidden)].copy(), seed)
        rng = np.random.default_rng(seed)
        for label in hidden:
            rows_of = np.flatnonzero(labels == label)
            for n in (200, 40, 15):
                cells = adata[np.sort(rng.choice(rows_of, min(n, len(rows_of)), replace=False))].copy()
                rows.append({"target cells": n} | reciprocal_ranks(model, cells, label))
    return pd.DataFrame(rows).groupby("target cells").mean()


def norman() -> pd.DataFrame:
    """Hidden doubles of Norman et al. 2019."""
    adata = ad.read_h5ad(Path(os.environ["CFMVC_DATA"]) / NORMAN)
    column = next(name for name in ("perturbation", "condition") if name in adata.obs)
    labels = adata.obs[column].astype(str)
    members = labels.map(lambda label: frozenset(label.split("+")))
    singles = set(labels[~labels.str.contains("+", regex=False)])
    doubles = [d for d in sorted(set(labels)) if "+" in d and set(d.split("+")) <= singles]
    print(f"{len(singles) - 1} singles, doubles of them: {doubles}")
    rows = {}
    for double in doubles:
        is_hidden = (members == frozenset(double.split("+"))).to_numpy()
        model = trained(adata[~is_hidden].copy(), 0, perturbation_key=column, size_factor_key="n_umis_total")
        rows[f"{double} ({is_hidden.sum()} cells)"] = reciprocal_ranks(model, adata[is_hidden].copy(), double)
        print(pd.DataFrame(rows).T.round(2).to_string(), flush=True)
    table = pd.DataFrame(rows).T
    return pd.concat([table, table.mean().to_frame("mean").T])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["simulated", "norman"])
    parser.add_argument("--screens", type=int, default=6)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print((norman() if arguments.task == "norman" else simulated(arguments.screens)).round(2).to_string())
