"""Coverage of effect intervals on real data: half of the cells are trained on, the other half is the truth.

    python benchmarks/inside/split_half.py [--seeds 0 1] [--only kang papalexi norman]

Every population, control cells too, is halved at random. The model is trained on one half; the effects measured in the
other half have a sampling variance of their own, so an interval holds where the difference of the two is within the
normal quantile of both variances together. Printed for all genes, and for those that the model calls at 5 %, with how
many of them changed in the other direction, by more than two standard errors of the other half. What is covered is the
sampling of cells: donors, guides and batches are the same in both halves.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from protocol import load_kang
from suite import expression, read, text

from cfmvc_scvi import CFMVC

#: Genes with the highest means that are taken, and cells of a population below which it is left out.
N_GENES, MIN_CELLS = 1000, 6
LEVELS = (0.95, 0.8)


def kang() -> tuple[ad.AnnData, dict[str, Any]]:
    """Interferon-beta in cell types."""
    adata = load_kang()
    order = np.argsort(-np.asarray(adata.X.mean(axis=0)).ravel())[:N_GENES]
    setup = {"batch_key": "donor", "labels_key": "cell_type", "perturbation_key": "condition", "control_group": "ctrl"}
    return adata[:, np.sort(order)].copy(), setup | {"size_factor_key": "total_counts"}


def papalexi() -> tuple[ad.AnnData, dict[str, Any]]:
    """Knock-outs in one cell type."""
    setup = {"labels_key": None, "perturbation_key": "perturbation", "size_factor_key": "n_umis_total"}
    return read("papalexi2021_eccite_303genes"), setup


def norman() -> tuple[ad.AnnData, dict[str, Any]]:
    """Activations, alone and in pairs."""
    setup = {"labels_key": None, "perturbation_key": "perturbation", "control_group": "control"}
    setup |= {"combination_delimiter": "+", "size_factor_key": "n_umis_total"}
    return read("norman2019_crispra_500genes"), setup


DATA = {"kang": kang, "papalexi": papalexi, "norman": norman}


def halves(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which cells are in the first half; every group is halved, shape (n,)."""
    first = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == group))
        first[rows[: len(rows) // 2]] = True
    return first


def run(name: str, seed: int) -> pd.DataFrame:
    """One row for each population and gene: estimate, standard errors and the change in the other half."""
    adata, setup = DATA[name]()
    what = text(adata, setup["perturbation_key"])
    label = setup["labels_key"]
    where = np.full(adata.n_obs, "all") if label is None else text(adata, label)
    first = halves(np.char.add(np.char.add(what, "|"), where), np.random.default_rng(seed))
    scvi.settings.seed = seed
    training = adata[first].copy()
    CFMVC.setup_anndata(training, **setup)
    model = CFMVC(training)
    model.train(enable_progress_bar=False)
    control = set(model.vocabulary.control_group)
    y, what, where = expression(adata[~first], setup["size_factor_key"]), what[~first], where[~first]
    is_control, rows = np.isin(what, list(control)), []
    for kind in np.unique(where):
        own = y[is_control & (where == kind)]
        for perturbation in np.unique(what[~is_control]):
            cells = y[(what == perturbation) & (where == kind)]
            if min(len(cells), len(own)) < MIN_CELLS:
                continue
            table = model.get_perturbation_effect(perturbation, None if label is None else kind)
            measured = cells.mean(axis=0) - own.mean(axis=0)
            noise = np.sqrt(cells.var(axis=0, ddof=1) / len(cells) + own.var(axis=0, ddof=1) / len(own))
            block = {"estimate": table["log_fold_change"], "sd": table["sd"], "called": table["significant"]}
            block |= {"measured": measured, "noise": noise}
            rows.append(pd.DataFrame(block).assign(perturbation=perturbation, cells=len(cells), where=kind))
    return pd.concat(rows).assign(data=name, seed=seed)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage in per cent by data, size of the population and kind of gene."""
    rows = rows[rows["noise"] > 0].copy()
    off = (rows["estimate"] - rows["measured"]).abs() / np.hypot(rows["sd"], rows["noise"])
    for level in LEVELS:
        rows[f"{100 * level:g} %"] = 100.0 * (off <= norm.ppf(0.5 + level / 2))
    rows["population"] = pd.cut(rows["cells"], [0, 20, 60, 200, np.inf], labels=["6-20", "21-60", "61-200", "> 200"])
    against = (np.sign(rows["estimate"]) != np.sign(rows["measured"])) & (rows["measured"].abs() > 2 * rows["noise"])
    rows["other direction %"] = 100.0 * against
    parts = {"all genes": rows, "called": rows[rows["called"]]}
    names = [*(f"{100 * level:g} %" for level in LEVELS), "other direction %"]
    found = {kind: part.groupby(["data", "population"], observed=True) for kind, part in parts.items()}
    tables = {kind: group[names].mean().assign(n=group.size()) for kind, group in found.items()}
    return (
        pd.concat(tables, names=["genes"])
        .reorder_levels(["data", "genes", "population"])
        .sort_index(sort_remaining=False)
    )


def main() -> None:
    """Run all data sets and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(DATA), default=list(DATA))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = pd.concat([run(name, seed) for name in options.only for seed in options.seeds])
    print(summary(rows).round(1).to_string())


if __name__ == "__main__":
    main()
