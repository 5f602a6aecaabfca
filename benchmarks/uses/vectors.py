"""Papalexi et al. 2021, one target left out at a time, by vectors of the targets; at the level of mean effects.

    CFMVC_DATA=<folder> python benchmarks/uses/vectors.py [--shuffles 20]

Effects are differences of mean log1p CP10k of 303 genes (`data.mean_effects`, within replicates). Vectors are the
co-expression of the target's gene among control cells, which nine of the 25 targets have, or the effects of the same
targets in other replicates (the effects then come from the rest). Errors are squared, relative to those of no change,
and means over those of the nine strongest effects that have a vector; the harm rate counts all targets that have one.
Writes ``benchmarks/results/vectors.csv``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from cfmvc_scvi import data

RESULTS = Path(__file__).parents[1] / "results"


def nearest(vectors: pd.DataFrame, effects: pd.DataFrame) -> pd.Series:
    """Squared error of the effect of the target with the most similar vector (cosine, centred)."""
    x = vectors.loc[effects.index].to_numpy()
    x = x - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    likeness = x @ x.T - 9 * np.eye(len(x))
    return ((effects - effects.iloc[likeness.argmax(axis=1)].to_numpy()) ** 2).sum(axis=1)


def errors(vectors: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """Squared errors of every way, relative to no change; one row per target."""
    effects = effects.loc[[name for name in effects.index if name in vectors.index]]
    ridge, kernel = (data.vector_evidence(vectors, effects, kernel=k, n_shuffles=0) for k in ("linear", "rbf"))
    found = {"mean of the others": ridge["error_of_mean"], "nearest": nearest(vectors, effects)}
    found |= {"ridge": ridge["error"], "kernel ridge": kernel["error"]}
    return pd.DataFrame(found).div(ridge["squared_effect"], axis=0)


def summary(table: pd.DataFrame, strong: list[str]) -> pd.DataFrame:
    """Relative error of the strong ones, and the fraction of all that is made worse than no change."""
    return pd.DataFrame({"relative error": table.loc[strong].mean(), "harm rate": (table > 1).mean()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shuffles", type=int, default=20)
    n_shuffles = parser.parse_args().shuffles
    adata = ad.read_h5ad(Path(os.environ["CFMVC_DATA"]) / "papalexi2021_eccite_303genes.h5ad")
    control = adata[(adata.obs["perturbation"] == "control").to_numpy()]
    told = {"within": "batch", "size_factor_key": "n_umis_total"}
    effects, parts = data.mean_effects(adata, **told), []
    targets = [name for name in effects.index if name in adata.var_names]
    settings = {"co-expression": (data.coexpression_embedding(control, targets), effects)}
    first = (adata.obs["batch"] == adata.obs["batch"].unique()[0]).to_numpy()
    there, here = (data.mean_effects(adata[rows].copy(), **told) for rows in (first, ~first))
    settings["effects in another replicate"] = (data.effect_vectors(there, 10), here)
    for name, (vectors, of) in settings.items():
        known = of.loc[[target for target in of.index if target in vectors.index]]
        strong = [target for target in (of**2).sum(axis=1).nlargest(9).index if target in known.index]
        rng = np.random.default_rng(0)
        one = summary(errors(vectors, of), strong)
        print(f"{name}: {len(known)} targets, strong {strong}\n{errors(vectors, of).loc[strong].round(2)}")
        for kernel in ("linear", "rbf"):
            said = data.vector_evidence(vectors, of, kernel=kernel, n_shuffles=200).attrs
            print(f"{kernel}: explained {said['explained']:.3f}, p {said['p_value']:.3f}")
        shuffled = []
        for _ in range(n_shuffles):
            moved = vectors.set_axis(rng.permutation(vectors.index), axis=0)
            shuffled.append(summary(errors(moved, of), strong))
        other = pd.concat(shuffled).groupby(level=0, sort=False).mean().add_suffix(", shuffled")
        parts.append(pd.concat([one, other], axis=1).assign(vectors=name, targets=len(known), strong=len(strong)))
    found = pd.concat(parts).rename_axis("by").set_index("vectors", append=True).swaplevel().round(3)
    print(found.to_string())
    RESULTS.mkdir(exist_ok=True)
    found.to_csv(RESULTS / "vectors.csv")


if __name__ == "__main__":
    main()
