"""Likeness, differences between cell types and interactions on simulated screens, against the truth.

    python benchmarks/uses/compare.py [--seeds 0 1] [--draws 10]

3,000 cells, 300 genes, three cell types, six perturbations, three of their pairs measured; 30 and 60 epochs. In
"specific" screens a quarter of the effects' variance is a cell type's own, in "shared" ones none (cell types then
differ only because the levels of genes do). Counted are 95 % intervals that hold the truth, calls at a local false sign
rate of 5 %, and calls of the wrong sign. Writes ``benchmarks/results/compare.csv``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import scvi

from cfmvc_scvi import CFMVC, data

sys.path.append(str(Path(__file__).parents[1] / "inside"))
from populations import RESULTS, true_effect

SHARED = {"specific": 0.6, "shared": 0.85}


def row(what: str, truth: np.ndarray, table: pd.DataFrame, column: str) -> dict:
    """Coverage, calls and wrong calls of one table."""
    held = (truth >= table["lower"]) & (truth <= table["upper"])
    out = {"what": what, "n": len(truth), "held": int(held.sum())}
    out["error"] = float(np.abs(table[column] - truth).mean())
    if "significant" in table:
        called = table["significant"].to_numpy()
        out |= {"called": int(called.sum()), "wrong": int((np.sign(table[column]) != np.sign(truth))[called].sum())}
    return out


def rows_of(kind: str, seed: int, draws: int) -> list[dict]:
    """All comparisons of one screen."""
    adata = data.simulate_perturbation(
        3000, 300, 3, 2, 6, n_pairs=3, shared_fraction=SHARED[kind], spatial=False, seed=seed
    )
    scvi.settings.seed = seed
    CFMVC.setup_anndata(adata, combination_delimiter="+", spatial_key=None)
    model = CFMVC(adata)
    model.train(vae_max_epochs=30, flow_max_epochs=60, enable_progress_bar=False, accelerator="cpu")
    rng, names = np.random.default_rng(seed), [f"P{i}" for i in range(1, 7)]
    pairs = [name for name in adata.obs["perturbation"].unique() if "+" in name]
    new = [f"{a}+{b}" for a, b in combinations(names, 2) if f"{a}+{b}" not in pairs][:3]
    types, labels = model.cell_types, adata.obs["cell_type"].astype(str).to_numpy()
    control = (adata.obs["perturbation"] == "control").to_numpy()
    shares = np.array([(control & (labels == name)).sum() for name in types]) / control.sum()
    truth = {
        name: np.stack([true_effect(adata[labels == kind_].copy(), name, rng, draws=draws) for kind_ in types])
        for name in [*names, *pairs, *new]
    }
    mean, found = {name: shares @ value for name, value in truth.items()}, []
    likeness = model.get_perturbation_similarity(names, as_pairs=True)
    unit = {name: value / np.linalg.norm(value) for name, value in mean.items()}
    cosine = np.array([unit[a] @ unit[b] for a, b in zip(likeness["first"], likeness["second"], strict=True)])
    found.append(row("similarity", cosine, likeness, "similarity"))
    for name in names:
        table = model.get_context_differences(name)
        own = truth[name] - truth[name].mean(axis=0)
        found.append(row("cell types", own.ravel(), table, "difference"))
    for what, asked in (("interaction, measured pair", pairs), ("interaction, new pair", new)):
        for name in asked:
            a, b = name.split("+")
            found.append(row(what, mean[name] - mean[a] - mean[b], model.get_interactions(name), "interaction"))
    return [one | {"screen": kind, "seed": seed} for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--draws", type=int, default=10, help="of every cell's counts, for the truth")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [one for kind in SHARED for seed in asked.seeds for one in rows_of(kind, seed, asked.draws)]
    table = pd.DataFrame(rows).groupby(["screen", "what"], sort=False)
    found = table[["n", "held", "called", "wrong"]].sum().assign(error=table["error"].mean().round(4))
    found.insert(2, "held_percent", (100 * found["held"] / found["n"]).round(1))
    print(found.to_string())
    RESULTS.mkdir(exist_ok=True)
    found.to_csv(RESULTS / "compare.csv")


if __name__ == "__main__":
    main()
