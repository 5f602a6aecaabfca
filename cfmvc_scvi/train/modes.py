"""Train and eval modes, gradients and checks that both plans share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def set_modes(*, trained: Iterable[nn.Module], frozen: Iterable[nn.Module]) -> None:
    """Put networks in train mode with gradients, or in eval mode without."""
    for part in trained:
        part.train().requires_grad_(True)
    for part in frozen:
        part.eval().requires_grad_(False)


def check_finite_loss(loss: Tensor, stage: str, quantity: str, epoch: int, argument: str, lr: float) -> None:
    """Raise when a loss is not finite; nothing is masked."""
    if bool(torch.isfinite(loss)):
        return
    raise FloatingPointError(
        f"{stage} diverged in epoch {epoch}: the {quantity} is {float(loss)}. The usual cause is a learning rate "
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


def reject_unknown(argument: str, given: dict[str, Any], *accepted_by: Callable) -> None:
    """Raise :class:`TypeError` for keywords that none of the functions has by name."""
    allowed = {name for function in accepted_by for name in inspect.signature(function).parameters}
    unknown = sorted(set(given) - allowed)
    if unknown:
        names = sorted(allowed - {"self", "module", "kwargs", "loss_kwargs"})
        raise TypeError(f"Unknown keys {unknown} in `{argument}`: choose from {names}.")
