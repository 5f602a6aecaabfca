"""Matrices of cells that stay on disk: rows of them are read when they are asked for, as CSR in memory.

In memory, ``matrix[rows]`` of an array or a CSR matrix gives some cells. :class:`DiskRows` gives the same of a dataset
in an ``.h5ad`` or zarr store, or of several under each other, so what reads cells block by block need not know where
they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
import zarr
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from cfmvc_scvi._messages import shortened

#: Rows that are read together at most, and bytes of them where they are dense.
CHUNK_ROWS = 1024
_DENSE_BYTES = 16 * 2**20
#: Rows between two wanted ones that are read as well, rather than reading twice.
_GAP = 64


def is_on_disk(matrix: Any) -> bool:
    """Whether a matrix is a dataset of HDF5, zarr or anndata whose values are on disk."""
    return isinstance(matrix, (h5py.Dataset, zarr.Array, CSRDataset, CSCDataset))


class DiskRows(CSRDataset):
    """Cells of a matrix on disk; only the rows that are asked for are read.

    It can be ``X`` or a layer of an AnnData, as a dataset of anndata can.

    Parameters
    ----------
    stored
        The dataset: two-dimensional of HDF5 or zarr, or anndata's CSR dataset of either.
    where
        Its name, for messages.
    rows, columns
        Rows and columns of the dataset that this matrix consists of, in order; ``None`` is all.
    totals
        Sum of every row, as it was when the values were checked; what is read is compared with it.

    Raises
    ------
    TypeError
        For a dataset that is stored by columns, or has not two dimensions.
    OSError
        For a store of which a part is missing.
    """

    format: ClassVar[Literal["csr"]] = "csr"

    def __init__(
        self,
        stored: Any,
        where: str,
        *,
        rows: np.ndarray | None = None,
        columns: np.ndarray | None = None,
        totals: np.ndarray | None = None,
    ) -> None:
        self._stored: _Stored = stored if isinstance(stored, _Stored) else _open(stored, where)
        self.where = where
        self._rows, self._columns = rows, columns
        self.totals = totals
        n, n_columns = self._stored.shape
        self.shape = (n if rows is None else len(rows), n_columns if columns is None else len(columns))
        self.dtype = self._stored.dtype
        self.backend: Literal["zarr", "hdf5"] = "hdf5" if isinstance(self._stored._file, h5py.File) else "zarr"

    @classmethod
    def stacked(cls, parts: Sequence[DiskRows], where: str) -> DiskRows:
        """Matrices with the same columns under each other.

        Parameters
        ----------
        parts
            The matrices, at least one, each with all of its rows.
        where
            Name of the whole, for messages.
        """
        return parts[0] if len(parts) == 1 else cls(_Stack(parts), where)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def key(self) -> tuple:
        """Tells this selection of columns of this dataset from others; the rows are left out."""
        return (*self._stored.key, None if self._columns is None else self._columns.tobytes())

    @property
    def rows(self) -> np.ndarray | None:
        """Rows of the dataset; ``None`` is all of them in order."""
        return self._rows

    def take(self, rows: np.ndarray | slice) -> DiskRows:
        """Some of the rows, in this order; nothing is read."""
        asked = _positions(rows, len(self))
        own = asked if self._rows is None else self._rows[asked]
        totals = None if self.totals is None else self.totals[asked]
        return DiskRows(self._stored, self.where, rows=own, columns=self._columns, totals=totals)

    def with_columns(self, columns: np.ndarray) -> DiskRows:
        """Some of the columns, in this order; nothing is read."""
        own = columns if self._columns is None else self._columns[columns]
        return DiskRows(self._stored, self.where, rows=self._rows, columns=own)

    def with_totals(self, totals: np.ndarray) -> DiskRows:
        """The same, to be compared with the sums of its rows whenever some are read."""
        return DiskRows(self._stored, self.where, rows=self._rows, columns=self._columns, totals=totals)

    def __getitem__(self, index: Any) -> sparse.csr_matrix:
        """Values of some rows, in this order; also of some columns of them, as AnnData asks.

        Raises
        ------
        OSError
            When they cannot be read, or their sums are no longer what they were.
        """
        if isinstance(index, tuple):
            rows, columns = (part.ravel() if isinstance(part, np.ndarray) else part for part in index)
            return self[rows][:, columns]
        rows = np.atleast_1d(index) if not isinstance(index, slice) else index
        asked = _positions(rows, len(self))
        own = asked if self._rows is None else self._rows[asked]
        rising = bool(np.all(own[1:] > own[:-1]))
        sorted_rows, order = (own, None) if rising else np.unique(own, return_inverse=True)
        parts = [self._read(piece) for piece in _pieces(sorted_rows, self._stored.chunk_rows)]
        if not parts:
            return sparse.csr_matrix((0, self.shape[1]), dtype=self.dtype)
        block: Any = parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")
        block = block if order is None else block[order.ravel()]
        if self.totals is not None:
            self._compare(block, self.totals[asked])
        return block

    def to_memory(self) -> sparse.csr_matrix:
        """All rows."""
        return self[:]

    def copy(self) -> DiskRows:
        """The same: nothing can be written through it."""
        return self

    def path_of(self, row: int) -> str:
        """The file that a row is in."""
        return self._stored.path_of(row if self._rows is None else int(self._rows[row]))

    def close(self) -> None:
        """Close the file, where it is one of HDF5."""
        self._stored.close()

    def blocks(self, size: int = 4 * CHUNK_ROWS) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """All rows in order, so many at a time."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self[rows]

    def _read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Sorted rows that are close to each other, from one piece of the dataset."""
        start, stop = int(rows[0]), int(rows[-1]) + 1
        try:
            block = self._stored.read(start, stop)
        except Exception as error:  # HDF5, zarr and their codecs raise errors of many types
            raise OSError(
                f"Rows {start} to {stop} of {self.where} cannot be read from {self._stored.path_of(start)}: {error}. "
                "The file is damaged, incomplete, or was closed or replaced."
            ) from error
        if len(rows) < stop - start:
            block = block[rows - start]
        return block if self._columns is None else block[:, self._columns]

    def _compare(self, block: sparse.csr_matrix, expected: np.ndarray) -> None:
        found = row_sums(block)
        differs = np.abs(found - expected) > 1e-6 * np.abs(expected)
        if differs.any():
            raise OSError(
                f"{self.where} in {self._stored.path} is not what it was when it was checked: the sums of "
                f"{int(differs.sum())} of {len(expected)} rows differ. The file changed: restore it, or call "
                "`setup_anndata` again."
            )


def row_sums(matrix: Any) -> np.ndarray:
    """Sum of every row of a matrix in memory, or of one on disk whose sums are known; float64, shape (n,)."""
    if isinstance(matrix, DiskRows):
        if matrix.totals is not None:
            return matrix.totals
        parts = [row_sums(block) for _, block in matrix.blocks()]
        return np.concatenate(parts) if parts else np.zeros(0)
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def with_one_index_type(matrix: Any) -> Any:
    """The same matrix; of CSR with 64-bit row starts and 32-bit columns, one with 32-bit starts that shares the rest.

    scipy copies all columns to the wider type whenever it takes rows of such a matrix, as memory-mapped ones often are.
    With 2**31 entries or more the starts do not fit, and it is left as it is.
    """
    if not sparse.issparse(matrix) or matrix.format != "csr" or matrix.indptr.dtype == matrix.indices.dtype:
        return matrix
    if matrix.indices.dtype != np.int32 or matrix.indptr[-1] > np.iinfo(np.int32).max:
        return matrix
    parts = matrix.data, matrix.indices, matrix.indptr.astype(np.int32)
    return type(matrix)(parts, shape=matrix.shape, copy=False)


def take_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Some rows of a matrix; of one on disk, nothing is read."""
    return matrix.take(rows) if isinstance(matrix, DiskRows) else matrix[rows]


# ---- what is on disk ----------------------------------------------------------------------------------------------


class _Stored(ABC):
    """A dataset: shape, type, the rows that are read at a time, and pieces of consecutive rows."""

    shape: tuple[int, int]
    dtype: np.dtype
    chunk_rows: int
    path: str
    key: tuple
    _file: Any

    def close(self) -> None:
        """Close the file, where it is one of HDF5."""
        if isinstance(self._file, h5py.File):
            self._file.close()

    def path_of(self, row: int) -> str:
        """The file that a row is in."""
        return self.path

    @abstractmethod
    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows from ``start`` to ``stop``."""


class _Dense(_Stored):
    def __init__(self, array: Any, where: str) -> None:
        if array.ndim != 2:
            raise TypeError(f"{where} has {array.ndim} dimensions: cells x genes are needed.")
        self._array, self._file = array, getattr(array, "file", None)
        self.shape, self.dtype = (int(array.shape[0]), int(array.shape[1])), np.dtype(array.dtype)
        self.chunk_rows = int(np.clip(_DENSE_BYTES // max(1, self.dtype.itemsize * self.shape[1]), 1, CHUNK_ROWS))
        self.path = _path(array)
        self.key = (self.path, array.name, self.shape)

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        return sparse.csr_matrix(np.asarray(self._array[start:stop]))


class _Sparse(_Stored):
    chunk_rows = CHUNK_ROWS

    def __init__(self, dataset: Any, where: str) -> None:
        group = dataset.group
        self._values, self._indices = group["data"], group["indices"]
        self._file = getattr(group, "file", None)
        self.shape, self.dtype = (int(dataset.shape[0]), int(dataset.shape[1])), np.dtype(self._values.dtype)
        self.path = _path(group)
        self.key = (self.path, group.name, self.shape)
        self._starts = np.asarray(group["indptr"][:]).astype(np.int64)
        self._check(where)

    def _check(self, where: str) -> None:
        starts, n = self._starts, self._values.shape[0]
        whole = len(starts) == self.shape[0] + 1 and starts[0] == 0 and starts[-1] == n == self._indices.shape[0]
        if not whole or (np.diff(starts) < 0).any() or _lacks_chunks(self._values) or _lacks_chunks(self._indices, 2):
            raise OSError(
                f"{where} in {self.path} is not whole: a part of it is missing. It was not written to its end, or "
                "files were lost: write or copy it again."
            )

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        first, last = int(self._starts[start]), int(self._starts[stop])
        indices = np.asarray(self._indices[first:last]).astype(np.int32, copy=False)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.shape[1]):
            raise ValueError("a column is out of range")
        values, starts = np.asarray(self._values[first:last]), self._starts[start : stop + 1] - first
        return sparse.csr_matrix((values, indices, starts.astype(np.int32)), shape=(stop - start, self.shape[1]))


class _Stack(_Stored):
    """Datasets under each other, each with a choice of its columns."""

    def __init__(self, parts: Sequence[DiskRows]) -> None:
        self._parts = [(part._stored, part._columns) for part in parts]
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape, self.dtype = (int(self._ends[-1]), parts[0].shape[1]), np.result_type(*(p.dtype for p in parts))
        self.chunk_rows = max(stored.chunk_rows for stored, _ in self._parts)
        self.path = shortened(list(dict.fromkeys(stored.path for stored, _ in self._parts)), 3)
        self.key = tuple(part.key for part in parts)
        self._file = None

    def close(self) -> None:
        """Close all files."""
        for stored, _ in self._parts:
            stored.close()

    def path_of(self, row: int) -> str:
        """The file that a row is in."""
        return self._parts[int(np.searchsorted(self._ends, row, side="right"))][0].path

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Rows from ``start`` to ``stop``, of one part or of parts that follow each other."""
        found = []
        for (stored, columns), end in zip(self._parts, self._ends, strict=True):
            begin = int(end) - stored.shape[0]
            if begin < stop and start < end:
                block = stored.read(max(start, begin) - begin, min(stop, int(end)) - begin)
                found.append(block if columns is None else block[:, columns])
        return found[0] if len(found) == 1 else sparse.csr_matrix(sparse.vstack(found, format="csr"))


def _open(stored: Any, where: str) -> _Stored:
    if isinstance(stored, CSCDataset):
        raise TypeError(
            f"{where} is stored by genes (CSC), so cells cannot be read from disk one block after another: load it, "
            "`adata = adata.to_memory()`, and where it shall stay on disk write it again as `adata.X.tocsr()`."
        )
    return _Sparse(stored, where) if isinstance(stored, CSRDataset) else _Dense(stored, where)


def _lacks_chunks(array: Any, few: int = 0) -> bool:
    """Whether chunks of a zarr array are missing, which it would read as zeros; a last one of few entries may be.

    Several chunks may be in one file, a shard: then it is these that are counted.
    """
    if not isinstance(array, zarr.Array):
        return False
    size = (array.shards or array.chunks)[0]
    there = array.nchunks_initialized // (size // array.chunks[0])
    may_lack = int(0 < array.shape[0] % size <= few)
    return -(-array.shape[0] // size) - there > may_lack


def _path(stored: Any) -> str:
    if isinstance(stored, (zarr.Array, zarr.Group)):
        return str(stored.store_path)
    return str(stored.file.filename)


def _positions(rows: np.ndarray | slice, n: int) -> np.ndarray:
    return np.arange(n)[rows]


def _pieces(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Sorted rows, cut at large gaps and where blocks of ``size`` rows of the dataset begin."""
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero((np.diff(rows) > _GAP) | (np.diff(rows // size) > 0)) + 1)
