"""Reading cells for plots: AnnData of counts, or arrays on the log1p CP10k scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._messages import close_matches, missing_genes, shortened
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.metrics import log1p_cp10k
from cfmvc_scvi.metrics._arrays import Matrix
from cfmvc_scvi.pl._units import check_lognorm, check_one_condition, described, expression_of, source_rows

Cells: TypeAlias = AnnData | np.ndarray


@dataclass(frozen=True)
class PlottedCells:
    """Control, predicted and real cells of one condition on one scale and one set of genes.

    Attributes
    ----------
    values
        Name to log1p CP10k, cells x genes; control, predicted and, where given, real.
    genes
        Names of the genes.
    """

    values: dict[str, np.ndarray]
    genes: pd.Index

    @property
    def means(self) -> dict[str, np.ndarray]:
        """Mean profiles (n_genes,)."""
        return {name: x.mean(axis=0) for name, x in self.values.items()}

    def positions(self, genes: Sequence[str]) -> np.ndarray:
        """Columns of genes, by their names."""
        wanted = [genes] if isinstance(genes, str) else list(genes)
        found = self.genes.get_indexer(pd.Index(wanted))
        missing = [gene for gene, at in zip(wanted, found, strict=True) if at < 0]
        if missing or not wanted:
            raise ValueError(
                f"`genes` {shortened(missing, 5)} are not among the {len(self.genes)} genes of the cells, "
                f"{shortened(self.genes, 5)}: give at least one of these names.{close_matches(missing, self.genes)}"
            )
        return found


def read_cells(
    predicted: Cells,
    control: Cells,
    real: Cells | None = None,
    *,
    library_key: str | None = None,
    gene_names: Sequence[str] | None = None,
    layer: str | None = None,
) -> PlottedCells:
    """Cells of one condition, aligned by gene name to the prediction.

    A prediction keeps the library sizes of the cells it was made from: they are looked up in ``control`` by
    ``obs["source_cell"]`` where ``library_key`` does not say otherwise.
    """
    given = {"control": control, "predicted": predicted} | ({} if real is None else {"real": real})
    genes, call = _genes(given, gene_names), described(predicted)
    for name in given.keys() - {"control"}:
        check_one_condition(given[name], name, call)
    values = {}
    for name, cells in given.items():
        library = None
        if name == "predicted" and library_key is None:
            library = _source_library(predicted, control, layer)
        values[name] = lognorm(cells, name, genes, library_key=library_key, library=library, layer=layer, call=call)
    return PlottedCells(values, genes)


def lognorm(
    cells: Cells,
    name: str,
    genes: pd.Index,
    *,
    library_key: str | None = None,
    library: np.ndarray | None = None,
    layer: str | None = None,
    call: dict[str, Any] | None = None,
) -> np.ndarray:
    """log1p CP10k of cells (n_cells, n_genes), dense, with these genes in this order."""
    if not isinstance(cells, AnnData):
        given: Any = cells
        x = given.toarray() if sparse.issparse(given) else np.asarray(given, dtype=float)
        if x.ndim != 2 or x.shape[1] != len(genes) or not len(x):
            raise ValueError(
                f"`{name}` has shape {x.shape}; it must be cells x genes: at least one cell, and {len(genes)} genes."
            )
        if not np.isfinite(x).all():
            raise ValueError(f"`{name}` has {int((~np.isfinite(x)).sum())} values that are not finite.")
        check_lognorm(x, name)
        return x
    if not cells.n_obs:
        raise ValueError(f"`{name}` has no cells.")
    columns = cells.var_names.get_indexer(genes)
    if (columns < 0).any():
        wanted = f"the {len(genes)} genes of the prediction"
        raise ValueError(missing_genes(genes[columns < 0], cells.var_names, wanted=wanted, where=f"`{name}`"))
    matrix, is_lognorm = expression_of(cells, name, layer, call or {})
    if is_lognorm:
        values: Any = matrix
    else:
        if library_key is not None:
            if library_key not in cells.obs:
                raise KeyError(
                    f"`library_key` {library_key!r} is not in the obs of `{name}`. There is: {shortened(cells.obs)}."
                )
            library = obs_of(cells)[library_key].to_numpy(dtype=float)
        values = log1p_cp10k(cast(Matrix, matrix), library)
    values = values[:, columns]
    return np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=float)


def _source_library(predicted: Cells, control: Cells, layer: str | None) -> np.ndarray | None:
    """Library size of the cell each prediction was made from, where the control cells tell."""
    rows = source_rows(predicted, control)
    if rows is None:
        return None
    matrix, is_lognorm = expression_of(cast(AnnData, control), "control", layer, described(predicted))
    return None if is_lognorm else np.asarray(cast(Matrix, matrix).sum(axis=1)).ravel()[rows]


def _genes(given: dict[str, Cells], gene_names: Sequence[str] | None) -> pd.Index:
    first = given["predicted"]
    if isinstance(first, AnnData):
        return first.var_names
    if gene_names is not None:
        return pd.Index(gene_names)
    named = [cells for cells in given.values() if isinstance(cells, AnnData)]
    if named:
        return named[0].var_names
    shape = np.shape(first)
    return pd.Index([f"gene {i}" for i in range(shape[1] if len(shape) == 2 else 0)])
