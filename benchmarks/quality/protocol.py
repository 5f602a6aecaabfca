"""Kang 2018, leave one cell type out: the protocol of the quality benchmark.

All stimulated cells of one type are held out; everything else is training data. Genes, components and
baselines come from training cells only; the held-out stimulated cells are read by :func:`score` and by
nothing else. Every figure is on log1p of counts per 10,000, with the library size taken over **all** genes of
the file (``obs["total_counts"]``).

Run as a script, it prints the rows that need no model, mean over the folds::

    python benchmarks/quality/protocol.py [--genes 2000|all] [--per-fold] [--training-types 3]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

from cfmvc_scvi import metrics

CELL_TYPE, CONDITION, CONTROL, PERTURBED = "cell_type", "condition", "ctrl", "stim"
KANG_FILE = "kang2018_pbmc_ifnb_4k.h5ad"
MIN_CELLS = 40
N_TOP = 100
N_PCS = 50
COLUMNS = {
    "pearson_delta": "Pearson-Δ all",
    "pearson_delta_top": "Pearson-Δ D100",
    "mse_mean": "MSE all",
    "mse_mean_top": "MSE D100",
    "energy_distance_top": "E D100",
    "energy_distance_pcs": "E 50 PCs",
    "relative_mmd": "rMMD",
    "direction_accuracy": "DE direction",
    "variance_ratio_top": "variance ratio",
}
COSTS = ("train s", "predict s", "peak MB")
ROW_NAMES = {"mean shift": "control + mean shift"}
CHOOSE_ON = ("B cells", "CD8 T cells", "FCGR3A+ Monocytes", "NK cells")
CONFIRM_ON = ("CD4 T cells", "CD14+ Monocytes", "Dendritic cells")


@dataclass(frozen=True)
class Fold:
    """One held-out cell type.

    Attributes
    ----------
    held_out
        The cell type.
    training
        What a method may see: every cell but the held-out stimulated ones, counts of the chosen genes, with
        ``obs["total_counts"]`` over all genes. The held-out type's control cells are in it.
    control
        Control cells of the held-out type (also in ``training``): the cells to predict from.
    truth
        Stimulated cells of the held-out type. For scoring only.
    pcs
        Components of log1p CP10k, fitted on ``training``.
    de_genes
        Positions of the 100 genes with the largest |Welch t| of truth against control. For scoring only.
    """

    held_out: str
    training: ad.AnnData
    control: ad.AnnData
    truth: ad.AnnData
    pcs: metrics.PrincipalComponents
    de_genes: np.ndarray

    @property
    def genes(self) -> pd.Index:
        """Names of the genes."""
        return self.training.var_names

    @property
    def contexts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Cell type -> (control, stimulated) log1p CP10k of every other type in ``training``."""
        obs = self.training.obs
        expression = lognorm(self.training)
        return {
            cell_type: tuple(
                expression[((obs[CELL_TYPE] == cell_type) & (obs[CONDITION] == condition)).to_numpy()]
                for condition in (CONTROL, PERTURBED)
            )
            for cell_type in sorted(obs[CELL_TYPE].astype(str).unique())
            if cell_type != self.held_out
        }


def data_path() -> Path:
    """Return the Kang file: in ``$CFMVC_DATA``, or in ``../shared/data`` from the project's root."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("CFMVC_DATA", root / "../shared/data")) / KANG_FILE


def load_kang(path: str | Path | None = None) -> ad.AnnData:
    """Read the Kang counts and add ``obs["total_counts"]``, the library size over all genes of the file."""
    adata = ad.read_h5ad(data_path() if path is None else path)
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    return adata


def kang_folds(adata: ad.AnnData, min_cells: int = MIN_CELLS) -> list[str]:
    """Return the cell types with at least ``min_cells`` cells in each condition, in alphabetical order."""
    counts = pd.crosstab(adata.obs[CELL_TYPE].astype(str), adata.obs[CONDITION].astype(str))
    return sorted(counts.index[(counts[[CONTROL, PERTURBED]] >= min_cells).all(axis=1)])


def few_training_types(adata: ad.AnnData, held_out: str, n: int = 3, seed: int = 0) -> list[str]:
    """Draw ``n`` types to train on, of those large enough and not held out (the few-contexts variant)."""
    candidates = [cell_type for cell_type in kang_folds(adata) if cell_type != held_out]
    return sorted(np.random.default_rng(seed).choice(candidates, size=n, replace=False).tolist())


def make_fold(
    adata: ad.AnnData,
    held_out: str,
    n_genes: int | None = 2000,
    training_types: Sequence[str] | None = None,
    include: Sequence[str] = (),
) -> Fold:
    """Hold out the stimulated cells of one type.

    Parameters
    ----------
    adata
        From :func:`load_kang`: counts, with ``obs["total_counts"]``.
    held_out
        The cell type.
    n_genes
        Highly variable genes, chosen on training cells (scanpy's "seurat" flavour on log1p CP10k). ``None``:
        every gene with a count in a training cell.
    training_types
        Cell types of which cells are training data, beside the controls of ``held_out``. ``None``: all
        others.
    include
        Genes to take beside the variable ones.
    """
    cell_types = adata.obs[CELL_TYPE].astype(str).to_numpy()
    perturbed = (adata.obs[CONDITION].astype(str) == PERTURBED).to_numpy()
    others = sorted(set(cell_types) - {held_out})
    unknown = {held_out, *(training_types or ())} - set(cell_types)
    if unknown or held_out in (training_types or ()):
        raise ValueError(
            f"held_out={held_out!r}, training_types={training_types!r}: allowed are different types of "
            f"{sorted(set(cell_types))}."
        )
    is_held_out = cell_types == held_out
    in_training = np.isin(cell_types, others if training_types is None else training_types) | (is_held_out & ~perturbed)
    training = adata[in_training]
    genes = _expressed(training) if n_genes is None else _variable(training, n_genes)
    genes = genes | adata.var_names.isin(include)
    training = training[:, genes].copy()
    control = adata[is_held_out & ~perturbed, genes].copy()
    truth = adata[is_held_out & perturbed, genes].copy()
    return Fold(
        held_out=held_out,
        training=training,
        control=control,
        truth=truth,
        pcs=metrics.fit_pcs(lognorm(training), N_PCS),
        de_genes=metrics.top_de_genes(lognorm(truth), lognorm(control), N_TOP),
    )


def lognorm(adata: ad.AnnData) -> np.ndarray:
    """Return log1p CP10k of counts, dense, with the library size in ``obs["total_counts"]``."""
    values = metrics.log1p_cp10k(adata.X, adata.obs["total_counts"].to_numpy())
    return values.toarray() if hasattr(values, "toarray") else values


def score(
    fold: Fold,
    predictions: Mapping[str, np.ndarray | ad.AnnData],
    costs: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predictions of one fold in the columns of the quality table, beside baselines and ceiling.

    Parameters
    ----------
    fold
        From :func:`make_fold`.
    predictions
        Name -> predicted cells, cells x genes of ``fold.genes``: an array on the log1p CP10k scale, or an
        AnnData of counts (drawn or expected) with ``obs["total_counts"]``, which is normalised here.
    costs
        Name -> any of "train s", "predict s", "peak MB"; not given: NaN.
    seed
        Seed of the splits of the ceiling.

    Returns ------- One row for each prediction, then "no change", "mean perturbed", "control + mean shift",
    "split-half ceiling".
    """
    arrays = {name: _array(fold, name, x) for name, x in predictions.items()}
    table = metrics.evaluate(
        arrays,
        lognorm(fold.truth),
        lognorm(fold.control),
        training=fold.contexts,
        gene_names=fold.genes,
        pcs=fold.pcs,
        de_genes=fold.de_genes,
        metrics=list(COLUMNS),
        min_cells=MIN_CELLS,
        seed=seed,
    )["raw"]
    table = table.rename(columns=COLUMNS, index=ROW_NAMES)
    for cost in COSTS:
        table[cost] = [(costs or {}).get(name, {}).get(cost, np.nan) for name in table.index]
    return table


def mean_over_folds(tables: Mapping[str, pd.DataFrame], folds: Sequence[str] | None = None) -> pd.DataFrame:
    """Average the tables of the folds (all, or those named), keeping the order of rows."""
    chosen = [tables[fold] for fold in (tables if folds is None else folds)]
    return pd.concat(chosen).groupby(level=0, sort=False).mean()


def _array(fold: Fold, name: str, x: np.ndarray | ad.AnnData) -> np.ndarray:
    if not isinstance(x, ad.AnnData):
        return x
    if not x.var_names.equals(fold.genes):
        raise ValueError(
            f"Prediction {name!r} has other genes, or another order, than the fold; give `x[:, fold.genes]`."
        )
    return lognorm(x)


def _expressed(training: ad.AnnData) -> np.ndarray:
    return np.asarray(training.X.sum(axis=0)).ravel() > 0


def _variable(training: ad.AnnData, n_genes: int) -> np.ndarray:
    normalised = ad.AnnData(metrics.log1p_cp10k(training.X, training.obs["total_counts"].to_numpy()), var=training.var)
    normalised.uns["log1p"] = {"base": None}
    return sc.pp.highly_variable_genes(normalised, flavor="seurat", n_top_genes=n_genes, inplace=False)[
        "highly_variable"
    ].to_numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rows that need no model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="the Kang file")
    parser.add_argument("--genes", default="2000", help="number of variable genes, or 'all' expressed ones")
    parser.add_argument("--training-types", type=int, default=None, help="train on this many types only")
    parser.add_argument("--per-fold", action="store_true")
    options = parser.parse_args(arguments)
    adata = load_kang(options.data)
    n_genes = None if options.genes == "all" else int(options.genes)
    tables = {}
    for held_out in kang_folds(adata):
        few = options.training_types
        types = None if few is None else few_training_types(adata, held_out, few)
        tables[held_out] = score(make_fold(adata, held_out, n_genes, types), {}).drop(columns=list(COSTS))
        if options.per_fold:
            print(f"\n{held_out}\n{tables[held_out].round(3).to_string()}")
    for title, folds in (("all folds", list(tables)), ("choose on", CHOOSE_ON), ("confirm on", CONFIRM_ON)):
        print(f"\n{title}: mean over {len(folds)}\n{mean_over_folds(tables, folds).round(3).to_string()}")


if __name__ == "__main__":
    main()
