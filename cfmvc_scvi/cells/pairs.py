"""Data of stage 2: cached latents, paired anew at every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.random import Generator
from torch import Tensor

from cfmvc_scvi._types import CellSplit, FlowBatch, FlowContext, Part
from cfmvc_scvi.cells.split import shard_of
from cfmvc_scvi.cells.strata import matched_strata, rows_by_group, strata
from cfmvc_scvi.cells.vectors import ConditionVectors
from cfmvc_scvi.flow import Coupling
from cfmvc_scvi.registration.members import Members


@dataclass(frozen=True)
class LatentData:
    """Posterior of the intrinsic latent of every cell, in the flow's units, and its condition.

    Attributes
    ----------
    mean, scale
        Posterior mean and standard deviation, shape (n, n_latent).
    context
        Context of every cell.
    condition
        Index of every cell's condition; 0 is control. Shape (n,).
    p
        Perturbations of every condition.
    """

    mean: Tensor
    scale: Tensor
    context: FlowContext
    condition: np.ndarray
    p: Members

    def draw(self, rows: np.ndarray, generator: torch.Generator) -> Tensor:
        """One posterior draw per row, shape (len(rows), n_latent)."""
        noise, at = torch.randn(len(rows), self.mean.shape[1], generator=generator), torch.as_tensor(rows)
        return noise.mul_(self.scale.index_select(0, at)).add_(self.mean.index_select(0, at))


class PairLoader:
    """Batches of paired source and target latents; every pass draws and pairs anew.

    Targets are all cells of the rows given, so every condition counts in proportion to its cells. A perturbed
    cell is paired with a control cell of its own cell type (of any type where its own has none), within its batch and
    further categorical covariates where those are unbalanced (:mod:`~cfmvc_scvi.cells.strata`), or with noise; a
    control cell with itself, or with noise.

    Parameters
    ----------
    source
        ``"control"`` or ``"noise"``.
    seed
        Seed of the first pass.
    fixed
        Draw the same pairs in every pass (for validation).
    spare_controls
        Control rows to pair with where ``rows`` holds no control cell.
    device
        Where the batches are made. A pass is drawn and paired on the CPU and brought there as a whole.
    first_epoch
        Number of the first pass: a pass depends on the seed and its number alone.
    shard
        Index of this process and number of processes: each draws the same pairs, and gets its
        :class:`~cfmvc_scvi._types.Part` of every batch.
    """

    def __init__(
        self,
        data: LatentData,
        rows: np.ndarray,
        coupling: Coupling,
        source: str,
        batch_size: int,
        *,
        seed: int = 0,
        fixed: bool = False,
        spare_controls: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        first_epoch: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.data = data
        self.rows = rows
        self.coupling = coupling
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.fixed = fixed
        self.device = device
        self.first_epoch = first_epoch
        self.shard = shard
        self._passes = 0
        self._context = data.context.to(device)
        self._p = ConditionVectors(data.p, device)
        self._condition = torch.as_tensor(data.condition).to(device)
        self._groups = _group_rows(data, rows, spare_controls, need_controls=source == "control")
        if not self._groups:
            raise ValueError(f"None of the {len(rows)} cells can be paired: there is no control cell among them.")

    def __len__(self) -> int:
        return max(1, -(-len(self.rows) // self.batch_size))

    def __iter__(self) -> Iterator[FlowBatch]:
        rng = np.random.default_rng([self.seed, 0 if self.fixed else self.first_epoch + self._passes])
        self._passes += 1
        targets, z0, z1 = self._pair(rng, torch.Generator().manual_seed(int(rng.integers(2**63))))
        order = rng.permutation(len(targets))
        order, rows, z0, z1 = (torch.as_tensor(x).to(self.device) for x in (order, targets, z0, z1))
        for batch in order.tensor_split(len(self)):
            part = Part(*self.shard, len(batch))
            chosen = batch[part.rows]
            batch_rows = rows.index_select(0, chosen)
            condition = self._condition.index_select(0, batch_rows)
            yield FlowBatch(
                z0=z0.index_select(0, chosen),
                z1=z1.index_select(0, chosen),
                context=self._context[batch_rows],
                p=self._p.rows(condition),
                condition=condition,
                part=None if part.count == 1 else part,
            )

    def _pair(self, rng: Generator, noise: torch.Generator) -> tuple[np.ndarray, Tensor, Tensor]:
        rows = np.concatenate([targets for targets, _ in self._groups])
        z0, z1 = (self.data.mean.new_empty(len(rows), self.data.mean.shape[1]) for _ in range(2))
        start = 0
        for targets, sources in self._groups:
            here = slice(start, start + len(targets))
            z1[here] = self.data.draw(targets, noise)
            z0[here] = self._start(z1[here], sources, rng, noise)
            start += len(targets)
        return rows, z0, z1

    def _start(self, z1: Tensor, sources: np.ndarray | None, rng: Generator, noise: torch.Generator) -> Tensor:
        if self.source == "noise":
            z0 = torch.randn(z1.shape, generator=noise)
        elif sources is None:
            return z1
        else:
            z0 = self.data.draw(sources, noise)
        return z0[torch.as_tensor(self.coupling.pair(z0.numpy(), z1.numpy(), rng))]


class LatentDataModule(LightningDataModule):
    """Training and validation pairs of stage 2; ``first_epoch`` is the number of the first pass."""

    first_epoch: int = 0

    def __init__(
        self,
        data: LatentData,
        split: CellSplit,
        coupling: Coupling,
        source: str,
        batch_size: int,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train_idx, self.val_idx, self.test_idx = split.as_list()
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self._train_controls = self.train_idx[data.condition[self.train_idx] == 0]
        self.batch_size = batch_size
        self._arguments: dict[str, Any] = {"data": data, "coupling": coupling, "source": source, "seed": seed}

    def train_dataloader(self) -> PairLoader:
        """Pairs of the training cells, new in every epoch."""
        return self._make(self.train_idx, first_epoch=self.first_epoch)

    def val_dataloader(self) -> PairLoader | list:
        """Pairs of the validation cells, the same in every epoch."""
        return self._make(self.val_idx, fixed=True, spare_controls=self._train_controls) if self.n_val else []

    def transfer_batch_to_device(self, batch: FlowBatch, device: torch.device, dataloader_idx: int) -> FlowBatch:
        """Move a batch to the device of the network, where it is not there already."""
        return batch if batch.z0.device == device else batch.to(device)

    def _make(self, rows: np.ndarray, **kwargs: Any) -> PairLoader:
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device
        shard = shard_of(self.trainer, len(rows))
        arguments = self._arguments | {"batch_size": self.batch_size, "device": device, "shard": shard}
        return PairLoader(rows=rows, **arguments, **kwargs)


def _group_rows(
    data: LatentData, rows: np.ndarray, spare_controls: np.ndarray | None, *, need_controls: bool
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Target rows by condition, cell type and stratum, with the rows of their controls; ``None`` for control targets.

    Cells that are not matched within strata form one group, with all controls of the cell type.
    """
    labels, stratum, condition = data.context.labels.numpy(), strata(data.context), data.condition
    pool = rows[condition[rows] == 0]
    if not len(pool) and spare_controls is not None:
        pool = spare_controls
    groups: list[tuple[np.ndarray, np.ndarray | None]] = []
    pools = {int(label): pool[labels[pool] == label] for label in np.unique(labels[rows])}
    for (code, label), targets in rows_by_group(condition, labels, rows).items():
        if code == 0:
            groups.append((targets, None))
            continue
        own = pools[label]
        rest = np.ones(len(targets), dtype=bool)
        for s, here in matched_strata(stratum[targets], stratum[own]).items():
            groups.append((targets[here], own[stratum[own] == s]))
            rest &= ~here
        sources = own if len(own) else pool
        if rest.any() and (len(sources) or not need_controls):
            groups.append((targets[rest], sources))
    return groups
