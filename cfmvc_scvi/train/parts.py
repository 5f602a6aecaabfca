"""What both plans share: modes of the networks, sums of losses, the check of keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from cfmvc_scvi.train.processes import several, total

if TYPE_CHECKING:
    from cfmvc_scvi.module import CFMVCModule


def networks_of(plan: LightningModule) -> CFMVCModule:
    """Networks that a plan trains; Lightning knows any attribute of it as a tensor or a module."""
    return cast("CFMVCModule", plan.module)


def set_modes(*, trained: Iterable[nn.Module], frozen: Iterable[nn.Module]) -> None:
    """Put networks in train mode with gradients, or in eval mode without."""
    for part in trained:
        part.train().requires_grad_(True)
    for part in frozen:
        part.eval().requires_grad_(False)


class EpochSums:
    """Losses of an epoch, added up on the device; nothing is read from there before the end."""

    def __init__(self) -> None:
        self.n_cells = 0
        self._sums: Tensor | None = None

    @torch.no_grad()
    def add(self, losses: Sequence[Tensor], n_cells: int) -> None:
        """Add the mean losses of a batch of ``n_cells`` cells: scalars, the same number of them every time."""
        means = torch.stack(list(losses))
        self._sums = means * n_cells if self._sums is None else self._sums.add_(means, alpha=n_cells)
        self.n_cells += n_cells

    def means(self) -> Tensor:
        """Means over the cells of the epoch, one per loss; over those of all processes, which all have to call it."""
        assert self._sums is not None, "means of no batches"
        if not several():
            return self._sums / self.n_cells
        *sums, n_cells = total(torch.cat([self._sums.double(), self._sums.new_tensor([self.n_cells]).double()]))
        return (torch.stack(sums) / n_cells).to(self._sums.dtype)


def reject_unknown(argument: str, given: dict[str, Any], *accepted_by: Callable) -> None:
    """Raise :class:`TypeError` for keywords that none of the functions has by name."""
    allowed = {name for function in accepted_by for name in inspect.signature(function).parameters}
    unknown = sorted(set(given) - allowed)
    if unknown:
        names = sorted(allowed - {"self", "module", "kwargs", "loss_kwargs"})
        raise TypeError(f"Unknown keys {unknown} in `{argument}`: choose from {names}.")
