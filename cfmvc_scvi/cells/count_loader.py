"""Data of stage 1: batches of counts in the order of each pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from cfmvc_scvi._types import CellSplit, CountBatch, Part
from cfmvc_scvi.cells.count_source import CountSource
from cfmvc_scvi.cells.split import shard_of

#: Share of the free memory of a GPU that the counts may take with ``data_on_device="auto"``.
DEVICE_BUDGET = 0.4


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
        Index of this process and number of processes: each gets its :class:`~cfmvc_scvi._types.Part` of every batch.
        Fewer cells at the end of a pass than there are processes go to the batch before.
    """

    def __init__(
        self,
        source: CountSource,
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
        whole, rest = divmod(len(self.rows), self.batch_size)
        is_batch = rest >= self.shard[1] or (rest > 0 and whole == 0)
        return whole + 1 if is_batch and not self.drop_last else whole

    def __iter__(self) -> Iterator[CountBatch]:
        together = max(1, self.source.n_gathered // self.batch_size)
        order = self.rows
        if self.shuffle:
            rng = np.random.default_rng([self.seed, self.first_epoch + self._passes])
            order = self.source.order(self.rows, rng, together * self.batch_size)
        self._passes += 1
        if self.drop_last:
            order = order[: len(self) * self.batch_size]
        batches = np.split(order, range(self.batch_size, len(self) * self.batch_size, self.batch_size))
        for start in range(0, len(self), together):
            for n, same in groupby(batches[start : start + together], key=len):
                part = Part(*self.shard, n)
                rows = np.concatenate([batch[part.rows] for batch in same])
                for batch in self.source.batches(rows, part.rows.stop - part.rows.start):
                    yield batch if part.count == 1 else replace(batch, part=part)


class CountDataModule(LightningDataModule):
    """Training and validation batches of stage 1; ``first_epoch`` is the number of the first pass.

    Parameters
    ----------
    source
        Counts of all registered cells.
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
        source: CountSource,
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
        self._source = self._in_use = source

    def setup(self, stage: str | None = None) -> None:
        """Bring the counts to where the batches are made."""
        assert self.trainer is not None  # it calls this
        device = self.trainer.strategy.root_device
        self._in_use = self._source.to_device(device) if self._fits(device) else self._source

    def teardown(self, stage: str | None = None) -> None:
        """Free the device."""
        self._in_use = self._source

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
        shard = shard_of(self.trainer, len(rows))
        return CountLoader(self._in_use, rows, self.batch_size, seed=self.seed, shard=shard, **kwargs)

    def _fits(self, device: torch.device) -> bool:
        if self.on_device != "auto":
            return bool(self.on_device)
        if device.type != "cuda":
            return False
        needed, (free, _) = self._source.bytes_on_device(), torch.cuda.mem_get_info(device)
        return needed is not None and needed <= DEVICE_BUDGET * free
