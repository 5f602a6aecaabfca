"""Calls over donors where nothing happened, and power, beside tests on means per donor.

    python benchmarks/inside/samples.py [--splits 20] [--screens 6]

"kang" splits the eight donors of Kang's control cells 4 against 4, at random: half are called perturbed. "kang, paired"
calls half of the cells of every donor perturbed. "simulated" are screens of eight donors with differences
between donors, four of them perturbed (one perturbation, a fifth of the genes moved). Given are the percentages of
genes (of genes that are not moved) that are called at 5 %: by the process with ``sample_key`` (local false sign rate,
and 95 % interval without zero), without it, and by a Welch t test (a paired one) on the means per donor. Power is the
percentage of moved genes that are called in the right direction, for the t test at the threshold that calls as many
unmoved genes. Needs Kang in ``CFMVC_DATA``. Writes ``benchmarks/results/samples.csv``.
"""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from populations import RESULTS, process_effects
from scipy import stats

from cfmvc_scvi import CFMVC, data

DATA = Path(os.environ.get("CFMVC_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
TYPES = ["CD4 T cells", "CD14+ Monocytes", "B cells"]


def kang(n_genes: int = 1000) -> AnnData:
    """Control cells of three types, with the genes that most cells have."""
    adata = ad.read_h5ad(DATA / "kang2018_pbmc_ifnb_4k.h5ad")
    adata = adata[(adata.obs["condition"] == "ctrl") & adata.obs["cell_type"].isin(TYPES)]
    seen = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    adata = adata[:, np.sort(np.argsort(-seen)[:n_genes])].copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    return adata


def donor_means(adata: AnnData, cell_type: str) -> dict[str, np.ndarray]:
    """Mean log1p CP10k per donor of either arm, stacked; the donors of both in one order."""
    x = adata.X.toarray()
    y = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
    obs, means = adata.obs, {}
    for arm in ("control", "P"):
        keep = ((obs["perturbation"] == arm) & (obs["cell_type"] == cell_type)).to_numpy()
        frame = pd.DataFrame(y[keep]).groupby(obs["donor"].to_numpy()[keep]).mean()
        means[arm] = frame
    return means


def t_test(adata: AnnData, cell_type: str, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """p-values and differences of a t test on means per donor."""
    means = donor_means(adata, cell_type)
    first, second = means["P"], means["control"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if paired:
            both = first.index.intersection(second.index)
            p = stats.ttest_rel(first.loc[both], second.loc[both]).pvalue
        else:
            p = stats.ttest_ind(first, second, equal_var=False).pvalue
    return np.nan_to_num(p, nan=1.0), (first.mean() - second.mean()).to_numpy()


def compare(adata: AnnData, kind: str, moved: np.ndarray | None = None, truth: np.ndarray | None = None) -> list[dict]:
    """Rates of calls of one data set, a row per cell type."""
    tables = {}
    types = sorted(adata.obs["cell_type"].unique())
    for name, sample_key in (("donors", "donor"), ("cells", None)):
        CFMVC.setup_anndata(adata, batch_key=None, spatial_key=None, sample_key=sample_key)
        tables[name] = process_effects(CFMVC(adata), [("P", cell_type) for cell_type in types])
    rows = []
    for i, cell_type in enumerate(types):
        p, difference = t_test(adata, cell_type, paired=kind.endswith("paired"))
        null = np.ones(adata.n_vars, dtype=bool) if moved is None else ~moved
        row = {"kind": kind, "type": cell_type, "t test": 100 * (p[null] <= 0.05).mean()}
        for name, every in tables.items():
            table = every[i]
            called = table["significant"].to_numpy()
            outside = ((table["lower"] > 0) | (table["upper"] < 0)).to_numpy()
            row |= {f"{name}: called": 100 * called[null].mean(), f"{name}: interval": 100 * outside[null].mean()}
            if moved is not None:
                right = np.sign(table["log_fold_change"].to_numpy()) == np.sign(truth)
                row[f"{name}: power"] = 100 * (called & right)[moved].mean()
                inside = (truth >= table["lower"].to_numpy()) & (truth <= table["upper"].to_numpy())
                row[f"{name}: 95 %"] = 100 * inside.mean()
                if name == "donors":
                    cut = np.sort(p[null])[int(called[null].sum())]
                    right = (np.sign(difference) == np.sign(truth)) & (p < cut)
                    row["t test: power"] = 100 * right[moved].mean()
        rows.append(row)
    return rows


def kang_splits(adata: AnnData, rng: np.random.Generator, paired: bool) -> list[dict]:
    """One random split of the control donors, or of the cells of each."""
    donors = np.unique(adata.obs["donor"])
    half = rng.permutation(donors)[:4]
    is_p = rng.random(adata.n_obs) < 0.5 if paired else adata.obs["donor"].isin(half).to_numpy()
    adata = adata.copy()
    adata.obs["perturbation"] = np.where(is_p, "P", "control")
    return compare(adata, "kang, paired" if paired else "kang")


def simulated(seed: int, paired: bool) -> list[dict]:
    """A screen of eight donors, with one perturbation in four of them or in all."""
    adata = data.simulate_perturbation(
        3200,
        500,
        n_cell_types=1,
        n_batches=8,
        n_perturbations=1,
        n_pairs=0,
        spatial=False,
        batch_effect=0.15,
        effect_size=0.4,
        control_fraction=0.5,
        seed=seed,
    )
    obs = adata.obs
    adata.obs["donor"] = obs["batch"].astype(str)
    adata.obs["perturbation"] = np.where(obs["perturbation"] == "control", "control", "P")
    means = {}
    for label, name in (("P1", "P"), ("control", "control")):
        mean = data.counterfactual_mean(adata, label).astype(np.float64)
        x = np.random.default_rng(seed).poisson(
            np.random.default_rng(seed).gamma(adata.var["dispersion"], mean / adata.var["dispersion"].to_numpy())
        )
        means[name] = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)
    if not paired:
        first = obs["donor"].isin(sorted(obs["donor"].unique())[:4]).to_numpy()
        adata = adata[first == (obs["perturbation"] == "P").to_numpy()].copy()
    adata.obs["cell_type"] = "type"
    kind = "simulated, paired" if paired else "simulated"
    return compare(adata, kind, adata.var["affected"].to_numpy(), means["P"] - means["control"])


def main() -> None:
    """Run all and print the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--screens", type=int, default=6)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = []
    if options.splits:
        adata = kang()
        for paired in (False, True):
            rng = np.random.default_rng(0)
            for _ in range(options.splits):
                rows += kang_splits(adata, rng, paired)
    for paired in (False, True):
        for seed in range(options.screens):
            rows += simulated(seed, paired)
    table = pd.DataFrame(rows).groupby(["kind", "type"]).mean(numeric_only=True)
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "samples.csv", float_format="%.4g")
    print(table.round(2).T.to_string())


if __name__ == "__main__":
    main()
