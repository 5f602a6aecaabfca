"""Statistics of log1p CP10k over cells, from the counts that are not zero, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi.cells.table import CellTable

#: Cells whose counts are copied at a time.
_PIECE = 4096
#: Memory for the sums of the groups that one pass over counts on disk serves.
_SUMS_BYTES = 256 * 2**20


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


def group_moments(cells: CellTable, groups: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """:func:`lognorm_moments` of each of several groups of rows, in order.

    Counts on disk are read once for all groups, whose sums may take 256 MB; else once for so many groups.
    """
    if not isinstance(cells.counts, DiskRows):
        yield from (lognorm_moments(cells, rows) for rows in groups)
        return
    size = max(1, _SUMS_BYTES // (16 * cells.counts.shape[1]))
    for start in range(0, len(groups), size):
        some = groups[start : start + size]
        first, second = _group_sums(cells, some)
        for rows, one, two in zip(some, first, second, strict=True):
            mean = one / len(rows)
            yield mean, np.maximum(two / len(rows) - mean**2, 0.0)


def _group_sums(cells: CellTable, groups: Sequence[np.ndarray]) -> np.ndarray:
    """Sums of log1p CP10k and of its square in every group, (2, n_groups, n_genes), from one pass over the cells."""
    n_genes = cells.counts.shape[1]
    sums = np.zeros((2, len(groups) * n_genes))
    rows, group = np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    order = np.argsort(rows, kind="stable")
    for start, y in zip(range(0, len(rows), _PIECE), _pieces(cells, rows[order]), strict=True):
        here = group[order[start : start + _PIECE]]
        present, code = np.unique(here, return_inverse=True)
        indicator = sparse.csr_matrix((np.ones(len(here)), (code, np.arange(len(here)))))
        for total, power in zip(sums, (1, 2), strict=True):
            entries = sparse.csr_matrix((y.data.astype(np.float64) ** power, y.indices, y.indptr), shape=y.shape)
            found = sparse.coo_matrix(indicator @ entries)
            total[present[found.row] * n_genes + found.col] += found.data
    return sums.reshape(2, len(groups), n_genes)


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
