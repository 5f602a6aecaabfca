"""Data of stage 1: batches of counts, from CSR in memory or on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from scipy import sparse

from cfmvc_scvi._constants import CP10K, LARGE_COUNT
from cfmvc_scvi._sparse import Entries, SparseRows, column_shares, columns_of_parts, shape_of
from cfmvc_scvi._types import CellSplit, CountBatch, FlowContext
from cfmvc_scvi.cells.table import CellTable, canonical

#: Share of the free memory of a GPU that the counts may take with ``data_on_device="auto"``.
DEVICE_BUDGET = 0.4
#: Cells whose counts are gathered at a time, and then cut into batches; smaller batches would each pay for a call.
_GATHERED = 1024


class CountLoader:
    """Batches of counts of some cells, with only what stage 1 reads.

    The order of a pass is a function of the seed and the number of the pass alone.

    Parameters
    ----------
    source
        Where the counts are.
    rows
        Cells that a pass goes through.
    batch_size
        Cells per batch.
    shuffle
        Draw the order of every pass anew; else it is that of ``rows``.
    drop_last
        Leave out the cells that do not fill a batch.
    seed
        Seed of the order.
    first_epoch
        Number of the first pass: a run that is resumed sets it to the epochs already done.
    shard
        Index of this process and number of processes: each gets its share of every pass, all of one size.
    """

    def __init__(
        self,
        source: HostCounts | DeviceCounts,
        rows: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        first_epoch: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.source = source
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.first_epoch = first_epoch
        self.shard = shard
        self._passes = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.rows) // self.shard[1], self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[CountBatch]:
        order = self.rows
        if self.shuffle:
            rng = np.random.default_rng([self.seed, self.first_epoch + self._passes])
            order = rng.permutation(self.rows)
        self._passes += 1
        index, n_shards = self.shard
        order = order[index : len(order) // n_shards * n_shards : n_shards]
        order = order[: len(self) * self.batch_size]
        size = max(1, _GATHERED // self.batch_size) * self.batch_size
        for start in range(0, len(order), size):
            yield from self.source.batches(order[start : start + size], self.batch_size)


class HostCounts:
    """Counts of all cells in memory, as the user's own CSR matrix where it is one; no copy of it is made."""

    def __init__(self, cells: CellTable) -> None:
        counts = cells.counts if sparse.issparse(cells.counts) else sparse.csr_matrix(cells.counts)
        self.cells = replace(cells, counts=counts, context=stage1_context(cells.context))
        self._shares = column_shares(shape_of(counts)[1]) if counts.has_canonical_format else 1
        self._lines = _cut(counts, self._shares)

    def batches(self, rows: np.ndarray, size: int) -> Iterator[CountBatch]:
        """Counts of the cells at these rows, so many cells at a time; the last batch may have fewer."""
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        sizes, shares = [len(part) for part in parts], np.arange(self._shares)[:, None]
        counts = canonical(self._lines[np.concatenate([(part * self._shares + shares).ravel() for part in parts])])
        context, library = self.cells.context[rows], torch.from_numpy(self.cells.library[rows])
        cells = np.concatenate([np.tile(part, self._shares) for part in parts])
        lognorm = _lognorm(counts, self.cells.library[cells])
        every_counts = SparseRows.in_parts(counts, sizes, self._shares)
        every_turned = columns_of_parts(lognorm, sizes, self._shares)
        large = np.flatnonzero(counts.data > LARGE_COUNT)
        every_large = np.split(large, np.searchsorted(large, counts.indptr[np.cumsum(sizes)[:-1] * self._shares]))
        values, cell, entry = torch.from_numpy(lognorm.data), 0, 0
        for counts, turned, large in zip(every_counts, every_turned, every_large, strict=True):
            first, entry = entry, entry + len(counts.by_row)
            start, cell = cell, cell + len(counts)
            yield CountBatch(
                counts=counts,
                library=library[start:cell],
                context=context[start:cell],
                has_size_factor=self.cells.has_size_factor,
                whole=self.cells.whole,
                normalized=counts.with_values(values[first:entry], turned),
                large=torch.from_numpy(large - first),
            )

    def bytes_on_device(self) -> int:
        """Memory that :class:`DeviceCounts` would take."""
        return 8 * self.cells.counts.nnz + 64 * len(self.cells)


class DeviceCounts:
    """The same on a device: batches are gathered there, and nothing but the order goes there in an epoch."""

    def __init__(self, host: HostCounts, device: torch.device) -> None:
        cells, counts = host.cells, host.cells.counts
        if not counts.has_canonical_format:
            counts = counts.copy()
            counts.sum_duplicates()
        self.device = device
        self.starts = counts.indptr.astype(np.int64)
        self.values = torch.from_numpy(counts.data.astype(np.float32, copy=False)).to(device)
        self.genes = torch.from_numpy(counts.indices.astype(np.int32, copy=False)).to(device)
        self.context = cells.context.to(device)
        self.library = torch.from_numpy(cells.library).to(device)
        self.n_genes = counts.shape[1]
        self.has_size_factor = cells.has_size_factor
        self.whole = cells.whole

    def batches(self, rows: np.ndarray, size: int) -> Iterator[CountBatch]:
        """Counts of the cells at these rows, so many cells at a time; the last batch may have fewer."""
        return self._batch(rows).split(size)

    def _batch(self, rows: np.ndarray) -> CountBatch:
        lengths = self.starts[rows + 1] - self.starts[rows]
        starts = np.r_[0, np.cumsum(lengths)]
        at, shift, lengths = (
            torch.from_numpy(x).to(self.device) for x in (rows, self.starts[rows] - starts[:-1], lengths)
        )
        cell = torch.repeat_interleave(lengths, output_size=int(starts[-1]))
        entry = torch.arange(len(cell), device=self.device) + shift.index_select(0, cell)
        genes = self.genes.index_select(0, entry)
        return CountBatch(
            counts=SparseRows(Entries(self.values.index_select(0, entry), cell, genes, starts), self.n_genes),
            library=self.library.index_select(0, at),
            context=self.context[at],
            has_size_factor=self.has_size_factor,
            whole=self.whole,
        )


class CountDataModule(LightningDataModule):
    """Training and validation batches of stage 1; ``first_epoch`` is the number of the first pass.

    Parameters
    ----------
    cells
        All registered cells.
    split
        Rows of training, validation and test.
    batch_size
        Cells per batch. Training leaves out what does not fill a batch, where there are more cells than that.
    on_device
        Keep the counts on the device of the network: ``True``, ``False``, or ``"auto"``: on a CUDA device where they
        take no more than :data:`DEVICE_BUDGET` of its free memory (8 bytes per count that is not zero).
    seed
        Seed of the order of the cells.
    """

    first_epoch: int = 0

    def __init__(
        self,
        cells: CellTable,
        split: CellSplit,
        batch_size: int,
        *,
        on_device: bool | Literal["auto"] = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if on_device not in (True, False, "auto"):
            raise ValueError(f"Unknown `data_on_device` {on_device!r}: choose True, False or 'auto'.")
        self.train_idx, self.val_idx, self.test_idx = split.as_list()
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.batch_size = min(batch_size, self.n_train)
        self.on_device = on_device
        self.seed = seed
        self._host = HostCounts(cells)
        self._source: HostCounts | DeviceCounts | None = None

    def setup(self, stage: str | None = None) -> None:
        """Bring the counts to where the batches are made."""
        assert self.trainer is not None  # it calls this
        device = self.trainer.strategy.root_device
        self._source = DeviceCounts(self._host, device) if self._fits(device) else self._host

    def teardown(self, stage: str | None = None) -> None:
        """Free the device."""
        self._source = None

    def train_dataloader(self) -> CountLoader:
        """Batches of the training cells, in a new order in every epoch."""
        drop_last = self.n_train > self.batch_size
        return self._loader(self.train_idx, shuffle=True, drop_last=drop_last, first_epoch=self.first_epoch)

    def val_dataloader(self) -> CountLoader | list:
        """Batches of the validation cells, always in one order."""
        return self._loader(self.val_idx) if self.n_val else []

    def transfer_batch_to_device(self, batch: CountBatch, device: torch.device, dataloader_idx: int) -> CountBatch:
        """Move a batch to the device of the network, where it is not there already."""
        return batch if batch.library.device == device else batch.to(device)

    def _loader(self, rows: np.ndarray, **kwargs: Any) -> CountLoader:
        shard = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return CountLoader(self._source or self._host, rows, self.batch_size, seed=self.seed, shard=shard, **kwargs)

    def _fits(self, device: torch.device) -> bool:
        if self.on_device != "auto":
            return bool(self.on_device)
        if device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return self._host.bytes_on_device() <= DEVICE_BUDGET * free


def stage1_context(context: FlowContext) -> FlowContext:
    """Codes and continuous covariates without the coordinates, which stage 1 does not read."""
    continuous = None if context.continuous is None else context.continuous.float()
    return replace(context, continuous=continuous, spatial=None)


def _lognorm(lines: sparse.csr_matrix, library: np.ndarray) -> sparse.csr_matrix:
    """log1p of counts per 10,000 of lines with these library sizes."""
    scale = np.repeat((CP10K / torch.from_numpy(library)).numpy(), np.diff(lines.indptr))
    values = torch.from_numpy(np.multiply(scale, lines.data, out=scale)).log1p_().numpy()
    return sparse.csr_matrix((values, lines.indices, lines.indptr), lines.shape)


def _cut(counts: sparse.csr_matrix, shares: int) -> sparse.csr_matrix:
    """Every row as one line for each share of the columns; entries are not copied, and must be in order."""
    (n_rows, n_columns), ends = shape_of(counts), counts.indptr[1:]
    starts = [counts.indptr[:-1]]
    for share in range(1, shares):
        low, high, column = starts[-1], ends, share * n_columns // shares
        while (open_ := low < high).any():  # the first entry at this column or after it, in all rows at once
            middle = low + (high - low) // 2
            before = open_ & (counts.indices[np.minimum(middle, counts.nnz - 1)] < column)
            low, high = np.where(before, middle + 1, low), np.where(before, high, middle)
        starts.append(low)
    indptr = np.append(np.stack(starts, axis=1).ravel(), ends[-1:])
    return sparse.csr_matrix((counts.data, counts.indices, indptr), (n_rows * shares, n_columns))
