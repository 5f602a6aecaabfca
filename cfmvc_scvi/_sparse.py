"""Matrices that are mostly zero, as the networks read them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F


def column_shares(n_columns: int) -> int:
    """Equal shares of the columns, one per thread of the CPU where their number can be divided so.

    What two cores both read and then write has to travel between their caches, and on machines whose cores do not share
    one that takes longer than the arithmetic. With columns of its own a thread meets none of the others' memory.
    """
    return math.gcd(n_columns, torch.get_num_threads())


def shape_of(matrix: sparse.csr_matrix) -> tuple[int, int]:
    """Shape of a matrix, of which scipy's own code says that it may be ``None``."""
    return cast("tuple[int, int]", matrix.shape)


@dataclass(frozen=True)
class Bags:
    """Entries line after line, as :func:`torch.nn.functional.embedding_bag` takes them.

    Attributes
    ----------
    values
        Shape (m,).
    index
        Place of every entry in its line, shape (m,), int32 or int64.
    starts
        Entry that every line starts at, and the number of entries, shape (n_lines + 1,), on the CPU.
    """

    values: Tensor
    index: Tensor
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def weighted_sums(self, table: Tensor) -> Tensor:
        """For every line the sum of the table's rows that the index names, times the values; (n_lines, n_out)."""
        starts = torch.from_numpy(self.starts).to(self.index.dtype)
        return F.embedding_bag(
            self.index, table, starts, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )


@dataclass(frozen=True)
class Entries:
    """Entries of a matrix that are not zero, row after row.

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

    @property
    def bags(self) -> Bags:
        """Rows as bags of columns."""
        return Bags(self.values, self.columns, self.starts)

    def lines(self, starts: np.ndarray) -> Entries:
        """Consecutive lines, of which these are the starts."""
        here = slice(int(starts[0]), int(starts[-1]))
        return Entries(self.values[here], self.rows[here], self.columns[here], starts - starts[0])

    def to(self, device: torch.device | str) -> Entries:
        """The same on another device."""
        return Entries(self.values.to(device), self.rows.to(device), self.columns.to(device), self.starts)


@dataclass(frozen=True)
class SparseRows:
    """Rows of a matrix that is mostly zero.

    Attributes
    ----------
    by_row
        Entries, row after row. With shares of the columns these are ``shares * n`` lines: all rows in the first share,
        then all rows in the second, and so on.
    n_columns
        Columns.
    shares
        Equal shares of the columns.
    turned
        :attr:`by_column`, where it is known.
    """

    by_row: Entries
    n_columns: int
    shares: int = 1
    turned: Bags | None = None

    @classmethod
    def from_scipy(cls, matrix: sparse.csr_matrix) -> SparseRows:
        """Rows of a CSR matrix, whose values are not copied."""
        n_rows, n_columns = shape_of(matrix)
        return cls(_by_row(matrix, [n_rows], 1), n_columns)

    @classmethod
    def in_parts(cls, lines: sparse.csr_matrix, sizes: Sequence[int], shares: int) -> Iterator[SparseRows]:
        """Parts of a matrix, on the CPU.

        Parameters
        ----------
        lines
            Lines of all parts, shape (sum(sizes) * shares, n_columns): part after part, as :attr:`by_row` has them.
            Values are not copied.
        sizes
            Rows of every part.
        shares
            Equal shares of the columns.
        """
        by_row, ends = _by_row(lines, sizes, shares), np.r_[0, np.cumsum(sizes)] * shares
        for first, last in itertools.pairwise(ends):
            yield cls(by_row.lines(by_row.starts[first : last + 1]), shape_of(lines)[1], shares)

    def __len__(self) -> int:
        return (len(self.by_row.starts) - 1) // self.shares

    @property
    def density(self) -> float:
        """Share of the entries that are not zero."""
        return len(self.by_row) / max(1, len(self) * self.n_columns)

    @cached_property
    def by_column(self) -> Bags:
        """Columns as bags of rows; on the CPU."""
        if self.turned is not None:
            return self.turned
        values, columns, starts = self.by_row.values.numpy(), self.by_row.columns.numpy(), self.by_row.starts
        lines = sparse.csr_matrix((values, columns, starts), (len(starts) - 1, self.n_columns))
        return next(columns_of_parts(lines, [len(self)], self.shares))

    def to(self, device: torch.device | str) -> SparseRows:
        """The same on another device."""
        return SparseRows(self.by_row.to(device), self.n_columns, self.shares)

    def dense(self) -> Tensor:
        """The matrix, shape (n, n_columns)."""
        entries = self.by_row
        dense = entries.values.new_zeros(len(self) * self.n_columns)
        dense.scatter_(0, entries.rows.long() * self.n_columns + entries.columns, entries.values)
        return dense.view(len(self), self.n_columns)

    def with_values(self, values: Tensor, turned: Bags | None = None) -> SparseRows:
        """A matrix with other values at the same places, given as :attr:`by_row` has them."""
        return SparseRows(replace(self.by_row, values=values), self.n_columns, self.shares, turned)

    def parts(self, size: int) -> Iterator[SparseRows]:
        """So many rows at a time, of a matrix with one share; the last part may have fewer."""
        for start in range(0, len(self), size):
            part = self.by_row.lines(self.by_row.starts[start : start + size + 1])
            yield SparseRows(replace(part, rows=part.rows - start), self.n_columns)


def _by_row(lines: sparse.csr_matrix, sizes: Sequence[int], shares: int) -> Entries:
    """Entries of all parts, with rows that every part counts from 0."""
    rows = np.concatenate([np.tile(np.arange(n, dtype=np.int32), shares) for n in sizes])
    rows = np.repeat(rows, np.diff(lines.indptr))
    columns = lines.indices.astype(np.int32, copy=False)
    values, rows, columns = (torch.from_numpy(x) for x in (lines.data, rows, columns))
    return Entries(values, rows, columns, lines.indptr)


def columns_of_parts(lines: sparse.csr_matrix, sizes: Sequence[int], shares: int) -> Iterator[Bags]:
    """Columns of every part of :meth:`SparseRows.in_parts`, sorted together as if each part had its own."""
    n_columns, ends = shape_of(lines)[1], np.r_[0, np.cumsum(sizes)] * shares
    part = np.repeat(np.arange(len(sizes), dtype=np.int32), np.diff(lines.indptr[ends]))
    shape = (shape_of(lines)[0], len(sizes) * n_columns)
    turned = sparse.csr_matrix((lines.data, lines.indices + part * n_columns, lines.indptr), shape).tocsc()
    for index, n in enumerate(sizes):
        starts = turned.indptr[index * n_columns : (index + 1) * n_columns + 1]
        here, starts = slice(starts[0], starts[-1]), starts - starts[0]
        rows = turned.indices[here] - ends[index].astype(turned.indices.dtype)
        for share in range(1, shares):  # lines of a later share are those of the same rows
            rows[starts[share * n_columns // shares] :] -= n
        yield Bags(torch.from_numpy(turned.data[here]), torch.from_numpy(rows), starts)
