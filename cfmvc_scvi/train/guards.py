"""Guards of a training that diverges: a loss or weight that is not finite, or one far above that of doing nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from cfmvc_scvi.train.parts import networks_of
from cfmvc_scvi.train.processes import callbacks_of, several, total

#: Losses above these multiples of the reference are divergence: in any epoch, and in the last.
_ANY_EPOCH, _LAST_EPOCH = 10.0, 3.0
#: Cells whose batches give the reference of stage 1: one small batch can be far from the rest.
_FIRST_CELLS = 128
_STAGES = {
    "vae": ("stage 1 (VAE)", "negative ELBO", "at the start of the training", "vae_plan_kwargs"),
    "flow": ("stage 2 (flow)", "flow-matching loss", "of a flow that moves nothing", "flow_plan_kwargs"),
}


def check_finite_loss(loss: float, stage: str, quantity: str, epoch: int, argument: str, lr: float) -> None:
    """Raise when a loss is not finite; nothing is masked."""
    if math.isfinite(loss):
        return
    raise FloatingPointError(
        f"{stage} diverged in epoch {epoch}: the {quantity} is {loss}. The usual cause is a learning rate "
        f"that is too high (now {lr}): pass a lower one, `{argument}={{'lr': {lr / 10:g}}}`, and train again."
    )


def check_finite_weights(parts: Iterable[nn.Module], stage: str, argument: str, lr: float) -> None:
    """Raise when a trained weight is not finite: the last step of a fit is followed by no loss that would show it."""
    if all(bool(torch.isfinite(p).all()) for part in parts for p in part.parameters()):
        return
    raise FloatingPointError(
        f"{stage} diverged in its last epoch: weights are not finite. The usual cause is a learning rate that is too "
        f"high (now {lr}): pass a lower one, `{argument}={{'lr': {lr / 10:g}}}`, and train again."
    )


class FiniteWatch:
    """Raises when the loss of a step is not finite, as :func:`check_finite_loss` says.

    On the CPU every step is looked at. On a device, where looking waits for it, losses are added up and looked at
    every ``every`` steps and at the end of an epoch; a loss that is not finite stays in the sum.
    """

    def __init__(self, stage: str, quantity: str, argument: str, lr: float, *, every: int = 32) -> None:
        self._what = (stage, quantity)
        self._remedy = (argument, lr)
        self._every = every
        self._steps = 0
        self._sum: Tensor | float = 0.0

    def __call__(self, loss: Tensor, epoch: int, last: bool) -> None:
        """Look at the loss of a step; ``last`` says that it is the last of its epoch."""
        self._steps += 1
        on_cpu = loss.device.type == "cpu"
        self._sum = loss.item() if on_cpu else self._sum + loss.detach()
        if on_cpu or last or self._steps % self._every == 0:
            check_finite_loss(float(self._sum), *self._what, epoch, *self._remedy)
            self._sum = 0.0


class DivergenceWatch(Callback):
    """Raises when the mean loss of an epoch is far above a reference.

    The reference of stage 1 is the largest loss among the batches of the first 128 cells, so of the first batch where
    that is as large, before any step: the networks start at the principal components. That of stage 2 is the loss of a
    field that is zero, on the same pairs.

    Parameters
    ----------
    stage
        ``"vae"`` or ``"flow"``.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._first, self._first_cells = 0.0, 0
        self._reset(0)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new mean."""
        self._reset(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch to the means."""
        loss = outputs["loss"].detach()
        self._sum, self._n = self._sum + loss, self._n + 1
        if self.stage == "flow":
            still = (batch.z1 - batch.z0).square().sum(dim=-1).mean()
            self._still = self._still + still * (1.0 + networks_of(pl_module).energy_weight)
        elif self._first_cells < _FIRST_CELLS:
            self._first = max(self._first, float(loss))
            self._first_cells += len(next(iter(batch.values())) if isinstance(batch, dict) else batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the epoch's mean loss with the reference."""
        self._check(trainer, pl_module, _ANY_EPOCH)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare more strictly, unless the best weights are taken in place of the last."""
        if not any(getattr(callback, "load_best_on_end", False) for callback in callbacks_of(trainer)):
            self._check(trainer, pl_module, _LAST_EPOCH)

    def state_dict(self) -> dict[str, Any]:
        """What a run goes on with."""
        return {"first": self._first, "first_cells": self._first_cells}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Counterpart of :meth:`state_dict`."""
        self._first, self._first_cells = state_dict["first"], state_dict["first_cells"]

    def _reset(self, epoch: int) -> None:
        self._epoch = epoch
        self._sum: Tensor | float = 0.0
        self._still: Tensor | float = 0.0
        self._n = 0

    def _check(self, trainer: Trainer, pl_module: LightningModule, most: float) -> None:
        if not self._n:
            return
        loss = float(torch.as_tensor(self._sum)) / self._n
        reference = self._first if self.stage == "vae" else float(torch.as_tensor(self._still)) / self._n
        if several():  # each has seen its own cells, and all shall come to one conclusion
            pair = torch.tensor([loss, reference], device=pl_module.device) / trainer.world_size
            loss, reference = total(pair).tolist()
        if loss <= most * max(reference, 1.0):
            return
        stage, quantity, compared, argument = _STAGES[self.stage]
        lr: float = cast(Any, pl_module).lr
        raise FloatingPointError(
            f"{stage} diverged in epoch {self._epoch}: the {quantity} is {loss:.4g}, against {reference:.4g} "
            f"{compared}. The usual cause is a learning rate that is too high (now {lr}): pass a lower one, "
            f"`{argument}={{'lr': {lr / 10:g}}}`, and train again."
        )
