"""Perturbations given together, as places in a table of vectors: no array of conditions by features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Members:
    """Weighted vectors of the perturbations given together in each of n conditions.

    Attributes
    ----------
    index
        Row of ``table`` of every member, shape (n, most members); -1 where a condition has fewer.
    weight
        Weight of every member, same shape, float32; 0 where there is none.
    table
        Vectors, shape (n_vectors, n_features); ``None`` for unit vectors, of which row k has its 1 in feature k.
    n_features
        Length of the vectors.
    """

    index: np.ndarray
    weight: np.ndarray
    table: np.ndarray | None
    n_features: int

    @classmethod
    def of_dense(cls, members: np.ndarray) -> Members:
        """Members given as vectors (n, most members, n_features), with rows of zeros where there are fewer."""
        n, most, n_features = members.shape
        index = np.arange(n * most, dtype=np.int32).reshape(n, most)
        there = (members != 0).any(axis=2)
        table = members.reshape(n * most, n_features)
        return cls(np.where(there, index, -1), there.astype(np.float32), table, n_features)

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: np.ndarray | slice) -> Members:
        """The conditions at these rows."""
        return Members(self.index[rows], self.weight[rows], self.table, self.n_features)

    def joined(self, other: Members) -> Members:
        """These conditions and then others; of unit vectors, the others may have more features."""
        most = max(self.index.shape[1], other.index.shape[1])
        shift = 0 if self.table is None else len(self.table)

        def wide(values: np.ndarray, fill: float) -> np.ndarray:
            return np.pad(values, ((0, 0), (0, most - values.shape[1])), constant_values=fill)

        moved = np.where(other.index < 0, -1, other.index + shift)
        index = np.concatenate([wide(self.index, -1), wide(moved, -1)])
        weight = np.concatenate([wide(self.weight, 0), wide(other.weight, 0)])
        tables = [one.table for one in (self, other) if one.table is not None]
        table = np.concatenate(tables) if len(tables) == 2 else None
        return Members(index.astype(np.int32), weight, table, max(self.n_features, other.n_features))

    def compact(self) -> Members:
        """The same conditions with a table of the vectors that are in use."""
        if self.table is None:
            return self
        used, index = np.unique(np.r_[-1, self.index.ravel()], return_inverse=True)
        index = index[1:].reshape(self.index.shape) - 1
        return Members(index.astype(np.int32), self.weight, self.table[used[1:]], self.n_features)

    def to_saved(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_saved` reads back."""
        return {"index": self.index, "weight": self.weight, "table": self.table, "n_features": self.n_features}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any] | np.ndarray) -> Members:
        """Counterpart of :meth:`to_saved`; reads vectors laid out too."""
        return cls.of_dense(saved) if isinstance(saved, np.ndarray) else cls(**saved)

    # ---- vectors ----------------------------------------------------------------------------------------------

    def dense(self) -> np.ndarray:
        """Vectors of the members, shape (n, most members, n_features); for few conditions at a time."""
        n, most = self.index.shape
        if self.table is not None:
            return self.weight[..., None] * self.table[np.maximum(self.index, 0)]
        out = np.zeros((n, most, self.n_features), dtype=np.float32)
        row, member = np.nonzero(self.index >= 0)
        out[row, member, self.index[row, member]] = self.weight[row, member]
        return out

    def sums(self) -> np.ndarray | sparse.csr_matrix:
        """Sums over the members, shape (n, n_features), float64: an array, or CSR of unit vectors."""
        if self.table is None:
            row, member = np.nonzero(self.index >= 0)
            values = self.weight[row, member].astype(np.float64), (row, self.index[row, member])
            return sparse.csr_matrix(values, shape=(len(self), self.n_features))
        out = np.zeros((len(self), self.n_features))
        for index, weight in zip(self.index.T, self.weight.T, strict=True):
            out += weight[:, None] * self.table[np.maximum(index, 0)]
        return out

    def length(self) -> np.ndarray:
        """Euclidean lengths of the sums over members, shape (n,)."""
        sums = self.sums()
        if isinstance(sums, np.ndarray):
            return np.linalg.norm(sums, axis=1)
        return np.sqrt(np.asarray(sums.multiply(sums).sum(axis=1))).ravel()

    def combined(self) -> np.ndarray:
        """Whether each condition has several members that are not zero, shape (n,)."""
        there = (self.index >= 0) & (self.weight != 0)
        if self.table is not None:
            there &= (self.table != 0).any(axis=1)[np.maximum(self.index, 0)]
        return there.sum(axis=1) > 1

    def kinds(self) -> np.ndarray:
        """A number for each different sum over members, shape (n,)."""
        return numbered(self.sums())

    def distance(self, vector: np.ndarray) -> float:
        """Distance of a vector (n_features,) to the nearest of these conditions or to control, whose vector is zero."""
        vector = np.asarray(vector, dtype=np.float64)
        return float(min(self.distances(vector).min(initial=np.inf), np.linalg.norm(vector)))

    def distances(self, vector: np.ndarray) -> np.ndarray:
        """Distance of a vector (n_features,) to each of these conditions, shape (n,)."""
        vector = np.asarray(vector, dtype=np.float64)
        sums = self.sums()
        if isinstance(sums, np.ndarray):
            squared = ((sums - vector) ** 2).sum(axis=1)
        else:
            row, values, there = np.repeat(np.arange(len(self)), np.diff(sums.indptr)), sums.data, vector[sums.indices]
            inside, left = (np.bincount(row, weights=w, minlength=len(self)) for w in ((values - there) ** 2, there**2))
            squared = inside + np.maximum((vector**2).sum() - left, 0.0)
        return np.sqrt(squared)

    # ---- inner products ---------------------------------------------------------------------------------------

    def products(self, vectors: np.ndarray) -> np.ndarray:
        """Inner products of the members with vectors (n_vectors, n_features), shape (n, most members, n_vectors)."""
        vectors = np.asarray(vectors, dtype=np.float64)
        along = vectors.T if self.table is None else self.table @ vectors.T
        return self.weight[..., None] * along[np.maximum(self.index, 0)]

    def block_overlaps(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inner products within blocks of conditions: of the sums over members, and of the pairs of members.

        Parameters
        ----------
        rows
            Conditions of every block, shape (n_blocks, size).

        Returns
        -------
        Two arrays (n_blocks, size, size), float64; the second is that of :func:`pair_overlap`, one pair of members at
        a time.
        """
        members = range(self.index.shape[1])
        shape = (*rows.shape, rows.shape[1])
        total, pairs = np.zeros(shape), np.zeros(shape)
        if len(members) == 1:
            return self._block_products(rows, 0, 0), pairs
        by_second = [np.zeros(shape) for _ in members]
        for k in members:
            by_first = np.zeros(shape)
            for m in members:
                product = self._block_products(rows, k, m)
                by_first += product
                by_second[m] += product
                pairs += product**2
            total += by_first
            pairs -= by_first**2
        for summed in by_second:
            pairs -= summed**2
        return total, 0.25 * (pairs + total**2)

    def _block_products(self, rows: np.ndarray, k: int, m: int) -> np.ndarray:
        """Inner products of the k-th members with the m-th, shape (n_blocks, size, size)."""
        first, second = ((self.index[:, n][rows], self.weight[:, n][rows].astype(np.float64)) for n in (k, m))
        if self.table is None:
            return (first[0][:, :, None] == second[0][:, None, :]) * (first[1][:, :, None] * second[1][:, None, :])
        one, other = (weight[..., None] * self.table[np.maximum(index, 0)] for index, weight in (first, second))
        return one @ other.transpose(0, 2, 1)

    def components(self) -> np.ndarray:
        """A number for each group of conditions that share features, directly or by way of others; shape (n,)."""
        row, member = np.nonzero((self.index >= 0) & (self.weight != 0))
        feature = self.index[row, member]
        n_between = self.n_features
        if self.table is not None:
            vectors = _touching(self.table)
            feature, n_between = vectors[feature], int(vectors.max(initial=-1)) + 1
            row, feature = row[feature >= 0], feature[feature >= 0]
        size = len(self) + n_between
        links = sparse.coo_matrix((np.ones(len(row), dtype=np.int8), (row, len(self) + feature)), shape=(size, size))
        _, found = connected_components(links, directed=False)
        return np.unique(found[: len(self)], return_inverse=True)[1].ravel()


def numbered(vectors: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """A number for each different row, shape (n,)."""
    if isinstance(vectors, np.ndarray):
        return np.unique(vectors, axis=0, return_inverse=True)[1].ravel()
    vectors.sum_duplicates()
    vectors.eliminate_zeros()
    spans = zip(vectors.indptr[:-1], vectors.indptr[1:], strict=True)
    keys = [(vectors.indices[i:j].tobytes(), vectors.data[i:j].tobytes()) for i, j in spans]
    numbers: dict[tuple[bytes, bytes], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _touching(table: np.ndarray) -> np.ndarray:
    """A number for each group of vectors that share features; -1 for vectors of zeros."""
    there = table != 0
    if len(table) and there.all(axis=0).any():
        return np.zeros(len(table), dtype=np.int64)
    vector, feature = np.nonzero(there)
    size = len(table) + table.shape[1]
    links = sparse.coo_matrix((np.ones(len(vector), dtype=np.int8), (vector, len(table) + feature)), shape=(size, size))
    _, found = connected_components(links, directed=False)
    return np.where(there.any(axis=1), found[: len(table)], -1)


def pair_overlap(products: np.ndarray) -> np.ndarray:
    r"""Inner products of the pairs within conditions; zero where either has a single member.

    .. math:: \tfrac{1}{4} \sum_{k \ne l} \sum_{m \ne n} (p_k \cdot p'_m)(p_l \cdot p'_n)

    Parameters
    ----------
    products
        Inner products of the members :math:`p_k \cdot p'_m`, shape (..., n_members, n_members').

    Returns
    -------
    Array of shape (...).
    """
    total = products.sum(axis=(-2, -1)) ** 2
    same_first = (products.sum(axis=-1) ** 2).sum(axis=-1)
    same_second = (products.sum(axis=-2) ** 2).sum(axis=-1)
    return 0.25 * (total - same_first - same_second + (products**2).sum(axis=(-2, -1)))
