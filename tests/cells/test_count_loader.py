"""Batches of stage 1: which cells, in which order, with which counts, from where."""

from __future__ import annotations

import gc
import weakref

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from scipy import sparse

from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi._types import CellSplit, CountBatch, FlowContext
from cfmvc_scvi.cells.count_loader import CountDataModule, CountLoader
from cfmvc_scvi.cells.count_source import CountSource, DeviceCounts, DiskCounts, MemoryCounts, block_order, count_source
from cfmvc_scvi.cells.table import CellTable

N, G = 23, 12


def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.poisson(0.6, size=(N, G)).astype(np.float32)
    x[4] = 0.0
    return x


def table(matrix, continuous: bool = False) -> CellTable:
    covariates = torch.arange(N, dtype=torch.float64).unsqueeze(1) if continuous else None
    context = FlowContext(torch.arange(N) % 2, torch.arange(N) % 3, None, covariates, torch.zeros(N, 2))
    library = np.maximum(counts().sum(axis=1), 1.0)
    return CellTable(matrix, pd.DataFrame(index=range(N)), context, library, has_size_factor=False)


def on_disk(matrix) -> DiskRows:
    """The matrix in a zarr store in memory, as one on disk is read."""
    group = zarr.group(zarr.storage.MemoryStore())
    ad.io.write_elem(group, "X", matrix)
    return DiskRows(ad.io.sparse_dataset(group["X"]) if sparse.issparse(matrix) else group["X"], "adata.X")


def unsorted_with_duplicates() -> sparse.csr_matrix:
    """The same counts, each stored as two entries, in no order."""
    x = sparse.csr_matrix(counts())
    rows = np.repeat(np.arange(N), np.diff(x.indptr))
    entries = np.concatenate([x.data - 0.5, np.full(x.nnz, 0.5)]).astype(np.float32)
    order = np.argsort(np.tile(rows, 2), kind="stable")
    indptr = np.r_[0, np.cumsum(2 * np.diff(x.indptr))]
    return sparse.csr_matrix((entries[order], np.tile(x.indices, 2)[order], indptr), shape=(N, G))


SOURCES = {
    "csr": lambda: MemoryCounts(table(sparse.csr_matrix(counts()))),
    "dense": lambda: MemoryCounts(table(counts())),
    "integers": lambda: MemoryCounts(table(sparse.csr_matrix(counts().astype(np.int64)))),
    "duplicates": lambda: MemoryCounts(table(unsorted_with_duplicates())),
    "disk": lambda: DiskCounts(table(on_disk(sparse.csr_matrix(counts())))),
    "disk, dense": lambda: DiskCounts(table(on_disk(counts()))),
    "disk, duplicates": lambda: DiskCounts(table(on_disk(unsorted_with_duplicates()))),
    "device": lambda: DeviceCounts(MemoryCounts(table(sparse.csr_matrix(counts()))), torch.device("cpu")),
    "device, duplicates": lambda: DeviceCounts(MemoryCounts(table(unsorted_with_duplicates())), torch.device("cpu")),
}


def one_batch(source: CountSource, rows: np.ndarray) -> CountBatch:
    (batch,) = source.batches(rows, len(rows))
    return batch


@pytest.mark.parametrize("name", SOURCES)
def test_a_batch_holds_the_cells_asked_for(name):
    rows = np.array([7, 4, 0, 22, 7])
    batch = one_batch(SOURCES[name](), rows)
    library = np.maximum(counts().sum(axis=1), 1.0)[rows]
    np.testing.assert_array_equal(batch.counts.dense().numpy(), counts()[rows])
    np.testing.assert_allclose(batch.lognorm.dense(), np.log1p(counts()[rows] / library[:, None] * 1e4), rtol=1e-6)
    np.testing.assert_array_equal(batch.library.numpy(), library)
    np.testing.assert_array_equal(batch.context.batch.numpy(), rows % 2)
    np.testing.assert_array_equal(batch.context.labels.numpy(), rows % 3)
    entries = batch.counts
    assert len(batch) == 5 and entries.values.dtype == torch.float32 and batch.context.spatial is None
    cell, gene = counts()[rows].nonzero()
    np.testing.assert_array_equal(entries.rows, cell)
    np.testing.assert_array_equal(entries.columns, gene)
    np.testing.assert_array_equal(entries.starts, np.r_[0, np.cumsum(np.bincount(cell, minlength=5))])


def test_continuous_covariates_are_float32():
    batch = one_batch(MemoryCounts(table(sparse.csr_matrix(counts()), continuous=True)), np.array([3, 1]))
    assert batch.context.continuous.dtype == torch.float32
    np.testing.assert_array_equal(batch.context.continuous.numpy(), [[3.0], [1.0]])


def test_the_users_matrix_is_neither_copied_nor_changed():
    matrix = sparse.csr_matrix(counts())
    before = matrix.copy()
    source = MemoryCounts(table(matrix))
    assert source.cells.counts is matrix
    batch = one_batch(source, np.arange(N))
    batch.counts.values.mul_(2.0)
    assert (matrix != before).nnz == 0


class Rows(CountSource):
    """A source whose batches are the rows themselves; it remembers how many were asked for at a time."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batches(self, rows: np.ndarray, size: int) -> list[np.ndarray]:
        self.asked.append(len(rows))
        return np.split(rows, range(size, len(rows), size))


def loader(**kwargs) -> CountLoader:
    return CountLoader(Rows(), np.arange(100, 100 + N), kwargs.pop("batch_size", 5), **kwargs)


def whole_pass(pairs: CountLoader) -> np.ndarray:
    return np.concatenate(list(pairs))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_batch_sizes(drop_last, sizes):
    batches = loader(drop_last=drop_last)
    assert len(batches) == len(sizes)
    assert [len(rows) for rows in batches] == sizes


def test_several_batches_are_gathered_at_a_time(monkeypatch):
    monkeypatch.setattr(CountSource, "n_gathered", 12)
    for batch_size, expected in ((5, [10, 10, 3]), (12, [12, 11]), (20, [20, 3])):
        batches = loader(batch_size=batch_size)
        assert [len(rows) for rows in batches] == [
            len(rows) for rows in np.split(np.arange(N), range(batch_size, N, batch_size))
        ]
        assert batches.source.asked == expected
    dropped = loader(batch_size=5, drop_last=True)
    assert sum(len(rows) for rows in dropped) == sum(dropped.source.asked) == 20


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_batches_gathered_together_are_those_gathered_alone(name, size):
    """Also where a cell has no counts, and where the last part is smaller."""
    rows, source = np.array([7, 4, 0, 22, 7]), SOURCES[name]()
    for i, part in enumerate(source.batches(rows, size)):
        alone = one_batch(source, rows[i * size : (i + 1) * size])
        for matrix in ("counts", "lognorm"):
            ours, expected = getattr(part, matrix), getattr(alone, matrix)
            assert torch.equal(ours.dense(), expected.dense()) and len(ours) == len(expected) == len(part)
            for name in ("values", "columns", "starts"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name))
                np.testing.assert_array_equal(getattr(ours.transposed, name), getattr(expected.transposed, name))
        assert torch.equal(part.library, alone.library)
        assert all(map(torch.equal, part.context.codes, alone.context.codes))
    assert i == -(-len(rows) // size) - 1


def test_a_batch_is_freed_without_the_garbage_collector():
    """Batches that refer to themselves would pile up by hundreds."""
    source = SOURCES["csr"]()
    gc.disable()
    try:
        batch = next(source.batches(np.arange(9), 4))
        assert len(batch.lognorm.transposed.values) == len(batch.counts.values)
        seen = weakref.ref(batch)
        del batch
        assert seen() is None
    finally:
        gc.enable()


def test_a_pass_is_a_permutation_and_a_new_one_every_time():
    batches = loader(shuffle=True)
    first, second = whole_pass(batches), whole_pass(batches)
    assert (first != second).any()
    for rows in (first, second):
        np.testing.assert_array_equal(np.sort(rows), np.arange(100, 100 + N))


def test_the_order_is_a_function_of_the_seed_and_the_number_of_the_pass():
    np.random.seed(1)  # the global state has no part in it
    batches = loader(shuffle=True, seed=3)
    passes = [whole_pass(batches) for _ in range(4)]
    np.random.seed(2)
    resumed = loader(shuffle=True, seed=3)
    resumed.first_epoch = 2
    np.testing.assert_array_equal(whole_pass(resumed), passes[2])
    np.testing.assert_array_equal(whole_pass(resumed), passes[3])
    expected = np.random.default_rng([3, 1]).permutation(np.arange(100, 100 + N))
    np.testing.assert_array_equal(passes[1], expected)
    assert (whole_pass(loader(shuffle=True, seed=4)) != passes[0]).any()


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"), [(4, True, [4] * 5), (5, False, [5] * 4 + [3]), (11, False, [11, 12])]
)
def test_processes_share_every_batch(batch_size, drop_last, sizes):
    """Of a last batch smaller than the number of processes each has some cells: it belongs to the one before."""

    def of(*shard: int) -> CountLoader:
        source = MemoryCounts(table(sparse.csr_matrix(counts()), continuous=True))
        return CountLoader(source, np.arange(N), batch_size, shuffle=True, drop_last=drop_last, shard=shard)

    whole = np.concatenate([batch.context.continuous.numpy().ravel() for batch in of(0, 1)])
    parts = [of(index, 3) for index in range(3)]
    batches = [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(own) for own in batches]
    start = 0
    for shared in zip(*batches, strict=True):
        n = shared[0].part.n
        rows = [batch.context.continuous.numpy().ravel() for batch in shared]
        np.testing.assert_array_equal(np.concatenate(rows), whole[start : start + n])
        assert [batch.part.index for batch in shared] == [0, 1, 2] and min(len(batch) for batch in shared) > 0
        assert sum(batch.part.weight for batch in shared) / 3 == pytest.approx(1.0)
        start += n
    assert start == len(whole) and [own.part.n for own in batches[0]] == sizes


def test_without_shuffling_the_order_is_that_of_the_rows():
    np.testing.assert_array_equal(whole_pass(loader()), np.arange(100, 100 + N))


def data_module(n_train: int, batch_size: int) -> CountDataModule:
    rows = np.arange(N)
    split = CellSplit(rows[:n_train], rows[n_train:], rows[:0])
    return CountDataModule(MemoryCounts(table(sparse.csr_matrix(counts()))), split, batch_size)


@pytest.mark.parametrize(("n_train", "batch_size", "sizes"), [(20, 6, [6, 6, 6]), (20, 20, [20]), (5, 64, [5])])
def test_training_drops_an_unfinished_batch_and_validation_does_not(n_train, batch_size, sizes):
    data = data_module(n_train, batch_size)
    assert [len(batch) for batch in data.train_dataloader()] == sizes
    assert sum(len(batch) for batch in data.val_dataloader()) == N - n_train
    assert data.batch_size == min(batch_size, n_train)


def test_no_validation_cells_no_loader():
    assert data_module(N, 4).val_dataloader() == []


def test_unknown_place_for_the_data():
    split = CellSplit(np.arange(3), np.arange(0), np.arange(0))
    with pytest.raises(ValueError, match="data_on_device.*'gpu'.*'auto'"):
        CountDataModule(MemoryCounts(table(sparse.csr_matrix(counts()))), split, 2, on_device="gpu")


def test_a_batch_moves_as_a_whole():
    batch = one_batch(SOURCES["csr"](), np.array([2, 9]))
    moved = batch.to("meta")
    assert isinstance(moved, CountBatch)
    tensors = (moved.counts.values, moved.counts.columns, moved.library, *moved.context.codes)
    assert {x.device.type for x in tensors} == {"meta"}


@pytest.mark.parametrize("n", [1, 7, 100, 1003])
def test_the_order_on_disk_has_every_cell_once_and_neighbours_close(n):
    rows = np.arange(0, 3 * n, 3)
    order = block_order(rows, np.random.default_rng(0), n_mixed=40, block=10)
    np.testing.assert_array_equal(np.sort(order), rows)
    for part in np.split(order, range(40, n, 40)):
        blocks = np.sort(part) // 3
        assert 1 + (np.diff(blocks) > 1).sum() <= 6
    np.testing.assert_array_equal(order, block_order(rows, np.random.default_rng(0), n_mixed=40, block=10))
    if n > 10:
        assert (order != block_order(rows, np.random.default_rng(1), n_mixed=40, block=10)).any()
        assert (order != rows).any()


def test_every_cell_on_disk_may_be_in_any_batch():
    """No cell is bound to the end of a pass, where one is left out, nor to its neighbours."""
    rows, first = np.arange(1005), np.zeros(1005)
    for seed in range(300):
        first[block_order(rows, np.random.default_rng(seed), n_mixed=40, block=10)[-5:]] += 1
    assert first.max() <= 12 and first[:500].sum() == pytest.approx(first[505:].sum(), rel=0.25)


def test_a_pass_over_disk_gathers_what_was_mixed(monkeypatch):
    monkeypatch.setattr(DiskCounts, "n_gathered", 8)
    source = DiskCounts(table(on_disk(sparse.csr_matrix(counts()))))
    passes = [
        np.concatenate([batch.counts.dense().numpy() for batch in CountLoader(source, np.arange(N), 4, shuffle=True)])
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*passes)
    expected = block_order(np.arange(N), np.random.default_rng([0, 0]), 8)
    np.testing.assert_array_equal(passes[0], counts()[expected])


def test_the_source_is_where_the_counts_are():
    assert isinstance(count_source(table(on_disk(counts()))), DiskCounts)
    assert isinstance(count_source(table(counts())), MemoryCounts)
    disk = count_source(table(on_disk(counts())))
    assert disk.bytes_on_device() is None
    with pytest.raises(ValueError, match="pass `data_on_device=False`"):
        disk.to_device(torch.device("cpu"))
