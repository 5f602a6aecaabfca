"""Matrices that are mostly zero, as the networks read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SparseRows:
    """A matrix that is mostly zero, as its entries that are not: compressed sparse rows.

    Attributes
    ----------
    values
        The entries, row after row, shape (m,).
    columns
        Column of every entry, shape (m,), int32 or int64.
    starts
        Entry that every row starts at, and the number of entries, shape (n + 1,), on the CPU.
    n_columns
        Columns.
    """

    values: Tensor
    columns: Tensor
    starts: np.ndarray
    n_columns: int

    @classmethod
    def from_scipy(cls, matrix: sparse.csr_matrix) -> SparseRows:
        """Rows of a CSR matrix, whose values are not copied."""
        columns = matrix.indices.astype(np.int32, copy=False)
        _, n_columns = cast("tuple[int, int]", matrix.shape)
        return cls(torch.from_numpy(matrix.data), torch.from_numpy(columns), matrix.indptr, n_columns)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def density(self) -> float:
        """Share of the entries that are not zero."""
        return len(self.values) / max(1, len(self) * self.n_columns)

    @cached_property
    def rows(self) -> Tensor:
        """Row of every entry, shape (m,), int64."""
        lengths = torch.from_numpy(np.diff(self.starts).astype(np.int64)).to(self.values.device)
        return torch.repeat_interleave(lengths, output_size=len(self.values))

    @cached_property
    def transposed(self) -> SparseRows:
        """The transposed matrix; on the CPU."""
        arrays = (self.values.numpy(), self.columns.numpy(), self.starts)
        return SparseRows.from_scipy(sparse.csr_matrix(arrays, (len(self), self.n_columns)).tocsc().T)

    def product(self, matrix: Tensor) -> Tensor:
        """Product with a dense matrix (n_columns, n_out): for every row a weighted sum of few of its rows."""
        starts = torch.from_numpy(self.starts).to(self.columns.dtype)
        return F.embedding_bag(
            self.columns, matrix, starts, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )

    def dense(self) -> Tensor:
        """The matrix, shape (n, n_columns)."""
        dense = self.values.new_zeros(len(self) * self.n_columns)
        return dense.scatter_(0, self.places, self.values).view(len(self), self.n_columns)

    @property
    def places(self) -> Tensor:
        """Place of every entry in the flattened dense matrix, shape (m,), int64."""
        return torch.add(self.columns, self.rows, alpha=self.n_columns)

    def to(self, device: torch.device | str) -> SparseRows:
        """The same on another device."""
        return SparseRows(self.values.to(device), self.columns.to(device), self.starts, self.n_columns)

    def with_values(self, values: Tensor) -> SparseRows:
        """A matrix with other values at the same places."""
        return SparseRows(values, self.columns, self.starts, self.n_columns)

    def parts(self, size: int) -> Iterator[SparseRows]:
        """So many rows at a time; the last part may have fewer."""
        for start in range(0, len(self), size):
            starts = self.starts[start : start + size + 1]
            here = slice(int(starts[0]), int(starts[-1]))
            yield SparseRows(self.values[here], self.columns[here], starts - starts[0], self.n_columns)
