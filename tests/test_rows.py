"""Rows of matrices on disk, against the same matrices in memory; and stores that are damaged or change."""

from __future__ import annotations

import shutil

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

from cfmvc_scvi import _rows
from cfmvc_scvi._rows import DiskRows, is_on_disk, row_sums, take_rows, with_one_index_type

N, G = 3000, 17
KINDS = ("h5 csr", "h5 dense", "zarr csr", "zarr dense")


@pytest.fixture(scope="module")
def counts() -> sparse.csr_matrix:
    x = np.random.default_rng(0).poisson(0.4, size=(N, G)).astype(np.float32)
    x[[0, 5, N - 1]] = 0.0
    return sparse.csr_matrix(x)


def write(counts, path, kind, mode="w"):
    """The dataset on disk, written by anndata."""
    group = h5py.File(path, mode) if kind.startswith("h5") else zarr.open_group(path, mode=mode)
    ad.io.write_elem(group, "X", counts if kind.endswith("csr") else counts.toarray())
    return ad.io.sparse_dataset(group["X"]) if kind.endswith("csr") else group["X"]


@pytest.fixture(params=KINDS)
def stored(request, counts, tmp_path):
    return write(counts, tmp_path / "store", request.param)


def test_rows_are_those_of_the_matrix(stored, counts):
    disk = DiskRows(stored, "adata.X")
    assert is_on_disk(stored) and disk.shape == (N, G) and len(disk) == N and disk.dtype == np.float32
    rng = np.random.default_rng(1)
    asked = [slice(None), slice(3, 900), slice(2990, None), slice(0, 0), np.array([7]), np.array([9, 2, 9, 2999, 0])]
    asked += [rng.permutation(N)[:1500], np.arange(N) % 3 == 0, np.arange(0, N, 200), np.zeros(0, dtype=int)]
    for rows in asked:
        block = disk[rows]
        assert sparse.issparse(block) and block.format == "csr" and block.shape[1] == G
        np.testing.assert_array_equal(block.toarray(), counts[rows].toarray())


def test_selections_are_read_when_they_are_used(stored, counts):
    disk = DiskRows(stored, "adata.X")
    rows, columns = np.array([40, 3, 2000, 3]), np.array([4, 0, 11])
    chosen = disk.take(rows).with_columns(columns).take(np.array([2, 0, 1]))
    np.testing.assert_array_equal(chosen[:].toarray(), counts[rows][[2, 0, 1]][:, columns].toarray())
    assert disk.with_columns(columns).key != disk.key == disk.take(rows).key
    np.testing.assert_array_equal(row_sums(disk), counts.toarray().sum(axis=1))
    assert take_rows(disk, rows).shape == take_rows(counts, rows).shape == (4, G)


def test_no_more_is_read_than_a_block(stored, counts, monkeypatch):
    monkeypatch.setattr(_rows, "_DENSE_BYTES", 100 * 4 * G)
    disk = DiskRows(stored, "adata.X")
    pieces: list[int] = []
    read = disk._stored.read
    monkeypatch.setattr(disk._stored, "read", lambda a, b: pieces.append(b - a) or read(a, b))
    np.testing.assert_array_equal(disk[:].toarray(), counts.toarray())
    assert max(pieces) <= disk._stored.chunk_rows <= 1024 and sum(pieces) == N
    pieces.clear()
    disk[np.array([10, 2500])]
    assert pieces == [1, 1]


def test_totals_tell_that_a_file_changed(counts, tmp_path):
    stored = write(counts, tmp_path / "store", "zarr csr")
    disk = DiskRows(stored, "adata.X").with_totals(row_sums(counts))
    assert disk[5:900].nnz == counts[5:900].nnz
    values = zarr.open_group(tmp_path / "store", mode="r+")["X/data"]
    values[int(counts.indptr[1000])] = 77.0
    assert disk[5:900].nnz == counts[5:900].nnz
    with pytest.raises(OSError, match=r"adata\.X in .*store.*is not what it was.*the sums of 1 of 2 rows differ"):
        disk[1000:1002]
    with pytest.raises(OSError, match="is not what it was"):
        disk.take(np.arange(900, 1100)).take(np.array([101, 100]))[:]


def chunk_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("zarr.json", ".zarray"))


def zarr_of_many_chunks(counts, path):
    group = zarr.open_group(path, mode="w")
    ad.io.write_elem(group, "X", counts, dataset_kwargs={"chunks": (1000,)})
    return group


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_a_zarr_store_that_lacks_chunks_is_refused(counts, tmp_path, name):
    group = zarr_of_many_chunks(counts, tmp_path / "store")
    assert DiskRows(ad.io.sparse_dataset(group["X"]), "adata.X")[:].nnz == counts.nnz
    files = [path for path in chunk_files(tmp_path / "store" / "X" / name) if not path.name.startswith(".")]
    assert len(files) > 1
    files[1].unlink()
    with pytest.raises(OSError, match=r"adata\.X in .* is not whole: a part of it is missing"):
        DiskRows(ad.io.sparse_dataset(zarr.open_group(tmp_path / "store", mode="r")["X"]), "adata.X")


def test_matrices_under_each_other_are_one(counts, tmp_path):
    """Parts of all kinds, one with columns in another order; a read may go over several of them."""
    order = np.random.default_rng(2).permutation(G)
    parts = [DiskRows(write(counts, tmp_path / kind, kind), "adata.X") for kind in KINDS]
    turned = write(counts[:, order].tocsr(), tmp_path / "turned", "zarr csr")
    stack = DiskRows.stacked([*parts, DiskRows(turned, "adata.X").with_columns(np.argsort(order))], "adata.X")
    whole = sparse.vstack([counts] * 5, format="csr")
    assert stack.shape == whole.shape and stack.backend == "zarr" and parts[0].backend == "hdf5"
    rng = np.random.default_rng(3)
    for rows in (slice(None), slice(2500, 13000), rng.permutation(5 * N)[:2000], np.arange(5, 5 * N, 100), [3]):
        np.testing.assert_array_equal(stack[rows].toarray(), whole[rows].toarray())
    np.testing.assert_array_equal(stack[2990:3005, [3, 1]].toarray(), whole[2990:3005][:, [3, 1]].toarray())
    np.testing.assert_array_equal(stack[np.ix_([9, 7000], [3, 1])].toarray(), whole[[9, 7000]][:, [3, 1]].toarray())
    assert DiskRows.stacked(parts[:1], "adata.X") is parts[0] and stack.copy() is stack
    stack.close()
    with pytest.raises(OSError, match=r"Rows 2048 to 3000 of adata\.X cannot be read from .*h5 csr"):
        stack[2048:3000]


def test_a_damaged_chunk_is_an_error_that_says_where(counts, tmp_path):
    group = zarr_of_many_chunks(counts, tmp_path / "store")
    disk = DiskRows(ad.io.sparse_dataset(group["X"]), "adata.X")
    files = [path for path in chunk_files(tmp_path / "store" / "X" / "data") if not path.name.startswith(".")]
    for path in files:
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(OSError, match=r"Rows 0 to 1024 of adata\.X cannot be read from .*damaged"):
        disk[:]
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(OSError, match=r"is not what it was|cannot be read"):
        disk.with_totals(row_sums(counts))[:]


def test_a_column_out_of_range_is_an_error(counts, tmp_path):
    stored = write(counts, tmp_path / "store", "h5 csr")
    stored.group["indices"][5] = G + 1000
    with pytest.raises(OSError, match="a column is out of range"):
        DiskRows(stored, "adata.X")[:10]


def test_a_closed_file_is_an_error(counts, tmp_path):
    stored = write(counts, tmp_path / "store", "h5 dense")
    disk = DiskRows(stored, "adata.X")
    stored.file.close()
    with pytest.raises(OSError, match="was closed or replaced"):
        disk[:10]


def test_what_cannot_be_read_by_cells_is_refused(counts, tmp_path):
    file = h5py.File(tmp_path / "store", "w")
    ad.io.write_elem(file, "X", sparse.csc_matrix(counts))
    with pytest.raises(TypeError, match=r"layers\['c'\] is stored by genes \(CSC\).*to_memory"):
        DiskRows(ad.io.sparse_dataset(file["X"]), "layers['c']")
    with pytest.raises(TypeError, match="1 dimensions"):
        DiskRows(file["X/data"], "adata.X")


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array])
def test_mixed_index_types_become_one_without_a_copy_of_the_entries(counts, kind):
    plain = kind(counts)
    mixed = kind(plain.shape, dtype=plain.dtype)
    mixed.data, mixed.indices, mixed.indptr = plain.data, plain.indices, plain.indptr.astype(np.int64)
    found = with_one_index_type(mixed)
    assert type(found) is type(plain) and found.indptr.dtype == found.indices.dtype == np.int32
    assert np.shares_memory(found.indices, plain.indices) and np.shares_memory(found.data, plain.data)
    assert (found != plain).nnz == 0 and mixed.indptr.dtype == np.int64
    assert all(with_one_index_type(same) is same for same in (plain, plain.tocsc(), plain.toarray()))


def test_row_starts_that_need_64_bits_are_left(counts):
    mixed = sparse.csr_matrix(counts.shape, dtype=counts.dtype)
    mixed.data, mixed.indices, mixed.indptr = counts.data, counts.indices, counts.indptr.astype(np.int64)
    mixed.indptr[-1] = 2**31
    assert with_one_index_type(mixed) is mixed
