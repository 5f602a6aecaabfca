"""Statistics of log1p CP10k over cells, from the counts that are not zero, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi.cells.table import CellTable

#: Cells whose counts are copied at a time.
_PIECE = 4096


def lognorm_moments(cells: CellTable, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of log1p of counts per 10,000 over the cells at ``rows``, each (n_genes,), float64."""
    first = np.zeros(cells.counts.shape[1])
    second = np.zeros_like(first)
    for y in _pieces(cells, rows):
        values = y.data.astype(np.float64)
        first += np.bincount(y.indices, weights=values, minlength=len(first))
        second += np.bincount(y.indices, weights=values**2, minlength=len(first))
    mean = first / len(rows)
    return mean, np.maximum(second / len(rows) - mean**2, 0.0)


def highest_lognorm(cells: CellTable, rows: np.ndarray) -> np.ndarray:
    """Highest log1p of counts per 10,000 of every gene over the cells at ``rows``, (n_genes,), float32."""
    highest = np.zeros(cells.counts.shape[1], dtype=np.float32)
    for y in _pieces(cells, rows):
        np.maximum(highest, y.max(axis=0).toarray().ravel(), out=highest)
    return highest


def _pieces(cells: CellTable, rows: np.ndarray) -> Iterator[sparse.csr_matrix]:
    """log1p of counts per 10,000 of some cells at a time, CSR of float32."""
    for start in range(0, len(rows), _PIECE):
        here = rows[start : start + _PIECE]
        y = sparse.csr_matrix(cells.counts[here], dtype=np.float32)
        y.sum_duplicates()
        library = np.repeat(cells.library[here], np.diff(y.indptr))
        y.data = np.log1p(y.data / library * np.float32(CP10K))
        yield y
