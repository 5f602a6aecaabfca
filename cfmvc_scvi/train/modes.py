"""Train and eval modes, sums of losses and checks that both plans share."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

if TYPE_CHECKING:
    from cfmvc_scvi.module import CFMVCModule


def networks_of(plan: LightningModule) -> CFMVCModule:
    """Networks that a plan trains; Lightning knows any attribute of it as a tensor or a module."""
    return cast("CFMVCModule", plan.module)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Callbacks of a trainer, which does not declare them."""
    return cast(Any, trainer).callbacks


def set_modes(*, trained: Iterable[nn.Module], frozen: Iterable[nn.Module]) -> None:
    """Put networks in train mode with gradients, or in eval mode without."""
    for part in trained:
        part.train().requires_grad_(True)
    for part in frozen:
        part.eval().requires_grad_(False)


def check_finite_loss(loss: float, stage: str, quantity: str, epoch: int, argument: str, lr: float) -> None:
    """Raise when a loss is not finite; nothing is masked."""
    if math.isfinite(loss):
        return
    raise FloatingPointError(
        f"{stage} diverged in epoch {epoch}: the {quantity} is {loss}. The usual cause is a learning rate "
        f"that is too high (now {lr}): pass a lower one, `{argument}={{'lr': {lr / 10:g}}}`, and train again."
    )


class EpochSums:
    """Losses of an epoch, added up on the device; nothing is read from there before the end."""

    def __init__(self) -> None:
        self.n_cells = 0
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, losses: Sequence[Tensor], n_cells: int) -> None:
        """Add mean losses (scalars, always so many) of a batch of so many cells."""
        means = torch.stack(list(losses))
        self._sums = means * n_cells if self._sums is None else self._sums.add_(means, alpha=n_cells)
        self.n_cells += n_cells

    def means(self) -> Tensor:
        """Means over the cells of the epoch, one per loss."""
        assert self._sums is not None, "means of no batches"
        return self._sums / self.n_cells


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


def check_finite_weights(parts: Iterable[nn.Module], stage: str, argument: str, lr: float) -> None:
    """Raise when a trained weight is not finite: the last step of a fit is followed by no loss that would show it."""
    if all(bool(torch.isfinite(p).all()) for part in parts for p in part.parameters()):
        return
    raise FloatingPointError(
        f"{stage} diverged in its last epoch: weights are not finite. The usual cause is a learning rate that is too "
        f"high (now {lr}): pass a lower one, `{argument}={{'lr': {lr / 10:g}}}`, and train again."
    )


def reject_unknown(argument: str, given: dict[str, Any], *accepted_by: Callable) -> None:
    """Raise :class:`TypeError` for keywords that none of the functions has by name."""
    allowed = {name for function in accepted_by for name in inspect.signature(function).parameters}
    unknown = sorted(set(given) - allowed)
    if unknown:
        names = sorted(allowed - {"self", "module", "kwargs", "loss_kwargs"})
        raise TypeError(f"Unknown keys {unknown} in `{argument}`: choose from {names}.")
