"""Reading the inputs of the metrics: validated once here, trusted everywhere else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:  # scipy's base classes declare no members: not even a shape could be read from them
    Matrix: TypeAlias = np.ndarray | Any
else:
    Matrix: TypeAlias = np.ndarray | sp.spmatrix | sp.sparray
GeneSelection: TypeAlias = np.ndarray | Sequence[int] | Sequence[bool] | None

# Differences of means below this fraction of the means are rounding, not an effect: float32 holds 6e-8 of a
# number, and a mean of thousands of cells summed in float32 some 1e-6.
ROUNDING = 1e-5
_COLUMN_BLOCK = 1024


def check_array(x: Matrix, name: str, *, allow_mean: bool = False, min_cells: int = 2) -> Matrix:
    """Return ``x`` as finite float64: (cells, genes), CSR where sparse, or (genes,) where allowed."""
    if hasattr(x, "obs") and hasattr(x, "var"):
        raise TypeError(f"`{name}` is an AnnData; metrics take arrays. Pass its matrix, for instance `{name}.X`.")
    if sp.issparse(x):
        x = cast(Any, x).tocsr()
        if x.ndim != 2:
            raise ValueError(f"`{name}` is sparse with {x.ndim} dimension(s); expected 2, cells x genes.")
        values = cast(Any, x).data
    else:
        x = np.asarray(x)
        values = x
    if values.dtype.kind not in "fiub":
        raise TypeError(f"`{name}` holds {values.dtype} values; expected real numbers (log1p of counts per 10,000).")
    allowed = (1, 2) if allow_mean else (2,)
    if x.ndim not in allowed:
        shapes = "cells x genes or one mean per gene" if allow_mean else "cells x genes"
        hint = "" if allow_mean else " A mean per gene is no population: this metric needs cells."
        raise ValueError(f"`{name}` has {x.ndim} dimension(s), shape {x.shape}; expected {shapes}.{hint}")
    if x.shape[-1] == 0:
        raise ValueError(f"`{name}` has no genes (shape {x.shape}).")
    if x.ndim == 2 and x.shape[0] < min_cells:
        raise ValueError(
            f"`{name}` has {x.shape[0]} cell(s); this needs at least {min_cells}."
            + (" A single mean profile is given as a one-dimensional array." if allow_mean else "")
        )
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(
            f"`{name}` holds {bad} NaN or infinite value(s). Metrics mask nothing: find where they come from "
            "(a cell without counts divided by its library size is the usual cause; `log1p_cp10k` gives 0)."
        )
    return x.astype(np.float64, copy=False)


def check_same_genes(**arrays: Matrix) -> int:
    """Return the number of genes, the same in every array."""
    counts = {name: array.shape[-1] for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        given = ", ".join(f"`{name}` {count}" for name, count in counts.items())
        raise ValueError(f"Arrays differ in their number of genes: {given}. Give all of them the same genes, in order.")
    return next(iter(counts.values()))


def check_genes(genes: GeneSelection, n_genes: int) -> np.ndarray | slice:
    """Return a selection of columns from a boolean mask or integer positions; ``None`` selects all."""
    if genes is None:
        return slice(None)
    selection = np.asarray(genes)
    if selection.ndim != 1 or selection.size == 0:
        raise ValueError(f"`genes` has shape {selection.shape}; expected one dimension and at least one gene.")
    if selection.dtype == bool:
        if selection.size != n_genes:
            raise ValueError(f"`genes` is a mask of {selection.size} values; the arrays have {n_genes} genes.")
        if not selection.any():
            raise ValueError("`genes` selects no gene; pass `None` for all genes.")
        return np.flatnonzero(selection)
    if selection.dtype.kind not in "iu":
        raise TypeError(
            f"`genes` holds {selection.dtype} values; expected a boolean mask or integer positions. "
            "From names: `adata.var_names.get_indexer(names)`."
        )
    if selection.min() < 0 or selection.max() >= n_genes:
        raise ValueError(f"`genes` reaches from {selection.min()} to {selection.max()}; allowed: 0 to {n_genes - 1}.")
    if np.unique(selection).size != selection.size:
        raise ValueError("`genes` names a gene more than once; pass each position once.")
    return selection


def mean_profile(x: Matrix, name: str) -> np.ndarray:
    """Return the mean per gene, float64 (genes,), of cells x genes, or of an array that is a mean already."""
    x = check_array(x, name, allow_mean=True)
    return x if x.ndim == 1 else np.asarray(x.mean(axis=0), dtype=np.float64).ravel()


def cells(x: Matrix, name: str, *, min_cells: int = 2) -> np.ndarray:
    """Return dense float64 (cells, genes)."""
    return dense(check_array(x, name, min_cells=min_cells))


def dense(x: Matrix) -> np.ndarray:
    """Return ``x`` as an ndarray."""
    return cast(Any, x).toarray() if sp.issparse(x) else x


def column_blocks(x: Matrix) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield ``(columns, dense values)`` in blocks of columns, so that a sparse matrix is never dense as a whole."""
    if not sp.issparse(x):
        yield slice(0, x.shape[1]), x
        return
    by_column = cast(Any, x).tocsc()
    for start in range(0, x.shape[1], _COLUMN_BLOCK):
        block = slice(start, min(start + _COLUMN_BLOCK, x.shape[1]))
        yield block, by_column[:, block].toarray()


def moments(x: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance (ddof 1) per gene, both (genes,); exactly 0 variance where all values are equal."""
    mean, variance = np.empty(x.shape[1]), np.empty(x.shape[1])
    for block, values in column_blocks(x):
        mean[block] = values.mean(axis=0)
        constant = values.min(axis=0) == values.max(axis=0)
        variance[block] = np.where(constant, 0.0, values.var(axis=0, ddof=1))
    return mean, variance


def is_rounding(difference: np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """Return the mask of entries where a difference of ``parts``, all of one shape, is no larger than rounding."""
    scale = np.max(np.abs(np.stack(np.broadcast_arrays(*parts))), axis=0)
    return np.abs(difference) <= ROUNDING * scale


def undefined(metric: str, why: str) -> float:
    """Warn that ``metric`` has no value for this input, and return NaN."""
    warnings.warn(f"{metric} is undefined: {why}. Returning NaN.", RuntimeWarning, stacklevel=3)
    return float("nan")
