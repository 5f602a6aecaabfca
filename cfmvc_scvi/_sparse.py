"""Matrices that are mostly zero, as the networks read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


@dataclass(frozen=True)
class Entries:
    """Entries of a matrix that are not zero, line after line: row after row, or column after column.

    Attributes
    ----------
    values
        Shape (m,).
    rows, columns
        Row and column of every entry, each (m,), int32 or int64.
    starts
        Entry that every line starts at, and the number of entries, shape (n_lines + 1,), on the CPU.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def to(self, device: torch.device | str) -> Entries:
        """The same on another device."""
        return Entries(self.values.to(device), self.rows.to(device), self.columns.to(device), self.starts)


@dataclass(frozen=True)
class SparseRows:
    """Rows of a matrix that is mostly zero.

    Attributes
    ----------
    by_row
        Entries, row after row.
    n_columns
        Columns.
    turned
        Gives the entries column after column, where something better is known than sorting them.
    """

    by_row: Entries
    n_columns: int
    turned: Callable[[], Entries] | None = None

    @classmethod
    def from_scipy(cls, matrix: sparse.csr_matrix) -> SparseRows:
        """Rows of a CSR matrix, whose values are not copied."""
        columns = torch.from_numpy(matrix.indices.astype(np.int32, copy=False))
        rows = torch.from_numpy(np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr)))
        return cls(Entries(torch.from_numpy(matrix.data), rows, columns, matrix.indptr), matrix.shape[1])

    def __len__(self) -> int:
        return len(self.by_row.starts) - 1

    @property
    def density(self) -> float:
        """Share of the entries that are not zero."""
        return len(self.by_row) / max(1, len(self) * self.n_columns)

    @cached_property
    def by_column(self) -> Entries:
        """Entries, column after column; on the CPU."""
        return self.turned() if self.turned is not None else next(self._turn(len(self)))

    def to(self, device: torch.device | str) -> SparseRows:
        """The same on another device."""
        return SparseRows(self.by_row.to(device), self.n_columns)

    def dense(self) -> Tensor:
        """The matrix, shape (n, n_columns)."""
        entries = self.by_row
        dense = entries.values.new_zeros(len(self) * self.n_columns)
        dense.scatter_(0, entries.rows.long() * self.n_columns + entries.columns, entries.values)
        return dense.view(len(self), self.n_columns)

    def map(self, function: Callable[[Entries], Tensor]) -> SparseRows:
        """The matrix with other values at the same places, a function of each entry alone."""

        def mapped(entries: Entries) -> Entries:
            return replace(entries, values=function(entries))

        return SparseRows(mapped(self.by_row), self.n_columns, lambda: mapped(self.by_column))

    def parts(self, size: int) -> Iterator[SparseRows]:
        """So many rows at a time; the last part may have fewer.

        On the CPU :attr:`by_column` is worked out for all parts at once.
        """
        starts = range(0, len(self), size)
        on_cpu = self.by_row.values.device.type == "cpu"
        turned = [(lambda entries=entries: entries) for entries in self._turn(size)] if on_cpu else [None] * len(starts)
        for start, by_column in zip(starts, turned, strict=True):
            ends = self.by_row.starts[start : start + size + 1]
            here = slice(int(ends[0]), int(ends[-1]))
            values, rows, columns = (x[here] for x in (self.by_row.values, self.by_row.rows, self.by_row.columns))
            yield SparseRows(Entries(values, rows - start, columns, ends - ends[0]), self.n_columns, by_column)

    def _turn(self, size: int) -> Iterator[Entries]:
        """Entries by column of every part of ``size`` rows, sorted together as if each had columns of its own."""
        part = np.arange(len(self), dtype=np.int32) // size
        columns = self.by_row.columns.numpy() + np.repeat(part * self.n_columns, np.diff(self.by_row.starts))
        shape = (len(self), -(-len(self) // size) * self.n_columns)
        turned = sparse.csr_matrix((self.by_row.values.numpy(), columns, self.by_row.starts), shape).tocsc()
        for index, row in enumerate(range(0, len(self), size)):
            starts = turned.indptr[index * self.n_columns : (index + 1) * self.n_columns + 1]
            here = slice(starts[0], starts[-1])
            columns = np.repeat(np.arange(self.n_columns, dtype=np.int32), np.diff(starts))
            found = (torch.from_numpy(x) for x in (turned.data[here], turned.indices[here] - row, columns))
            yield Entries(*found, starts - starts[0])
