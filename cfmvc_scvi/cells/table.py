"""Cells as the networks read them: counts, context and library sizes in the model's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cfmvc_scvi._rows import DiskRows, take_rows
from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CountBatch, FlowContext

#: Rows that go through the networks together; see :meth:`CellTable.padded`.
ROW_UNIT = 32


@dataclass(frozen=True)
class CellTable:
    """Cells with genes and categories in the model's order.

    Attributes
    ----------
    counts
        Raw counts, shape (n, n_genes), CSR, dense, or on disk, where they are read when they are used.
    obs
        The cells' columns, as the user has them.
    context
        Codes, continuous covariates and coordinates.
    library
        Library size per cell, shape (n,), float32: the size factor where one is registered, else the row sum.
    has_size_factor
        Which of the two it is.
    whole
        Whether all counts are whole numbers.
    sample
        Code of every cell's sample, shape (n,), -1 for samples that were not in training; ``None`` without samples.
    """

    counts: Any
    obs: pd.DataFrame
    context: FlowContext
    library: np.ndarray
    has_size_factor: bool
    whole: bool = True
    sample: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.obs)

    def take(self, rows: np.ndarray) -> CellTable:
        """The cells at these rows, in this order."""
        return replace(
            self,
            counts=take_rows(self.counts, rows),
            obs=self.obs.iloc[rows],
            context=self.context[torch.as_tensor(rows)],
            library=self.library[rows],
            sample=None if self.sample is None else self.sample[rows],
        )

    def padded(self) -> CellTable:
        """The same cells, followed by copies of the first up to a multiple of :data:`ROW_UNIT`.

        Vector instructions treat the last few numbers of an array apart, and products of a few rows take other
        kernels: both round differently. In whole units, results do not depend on how cells are cut into chunks.
        """
        missing = -len(self) % ROW_UNIT
        return self.take(np.r_[np.arange(len(self)), np.zeros(missing, dtype=np.int64)]) if missing else self

    def held(self, n_bytes: int) -> CellTable:
        """The same cells with counts from disk read into memory, where they take so many bytes at most, if dense."""
        if not isinstance(self.counts, DiskRows) or 4 * len(self) * self.counts.shape[1] > n_bytes:
            return self
        return replace(self, counts=self.counts[:])

    def dense(self, rows: slice) -> np.ndarray:
        """Counts of some rows as a dense float32 array."""
        block = self.counts[rows]
        return np.asarray(block.toarray() if sparse.issparse(block) else block, dtype=np.float32)

    def chunks(self, size: int) -> Iterator[slice]:
        """Consecutive rows, about ``size`` at a time: whole units of :data:`ROW_UNIT` rows, at least one."""
        size = max(1, size // ROW_UNIT) * ROW_UNIT
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def batch(self, rows: slice | np.ndarray) -> CountBatch:
        """Counts of some rows without their zeros, and what is beside them."""
        return CountBatch(
            counts=SparseRows.from_scipy(canonical(sparse.csr_matrix(self.counts[rows]))),
            library=torch.as_tensor(self.library[rows]),
            context=self.context[rows],
            has_size_factor=self.has_size_factor,
            whole=self.whole,
        )


def canonical(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts in float32, every entry once and in order; the matrix itself where it is that."""
    counts = cast(sparse.csr_matrix, counts.astype(np.float32, copy=False))
    if not counts.has_canonical_format:
        counts = counts.copy()  # its memory may be that of the user's matrix
        counts.sum_duplicates()
    return counts
