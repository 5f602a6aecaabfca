"""Steps of the optimiser without the work around them that both plans can do without."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.profilers import PassThroughProfiler
from torch import nn


class NoProfiler(PassThroughProfiler):
    """Profiler that does nothing, around every hook of a step, in less time than Lightning's own."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:
        """See :meth:`lightning.pytorch.profilers.Profiler.profile`."""
        return self._nothing


def fused_where_possible(
    optimizer: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], trainer: Any, **settings: Any
) -> torch.optim.Optimizer:
    """Optimiser whose step is one kernel, on devices that have it.

    Not in mixed precision, where Lightning clips no gradients of a fused optimiser.
    """
    parameters = list(parameters)
    fused = {p.device.type for p in parameters} <= {"cpu", "cuda"} and "16" not in str(trainer.precision)
    return optimizer(parameters, fused=fused or None, **settings)


class LeanSteps:
    """Plan without work that steps of a small network would feel.

    Gradients whose norm needs no clipping are left alone, and others are scaled where the optimiser reads them:
    Lightning's own clipping multiplies every gradient by a factor. On other devices than the CPU, where looking at the
    norm waits for the device, it is Lightning's own. Gradients are dropped without the optimiser's bookkeeping. And the
    name of the running hook, which Lightning sets around each, is stored without asking whether it is a module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """See :meth:`lightning.pytorch.LightningModule.optimizer_zero_grad`."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """See :meth:`lightning.pytorch.LightningModule.configure_gradient_clipping`."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        by_norm = gradient_clip_val and gradient_clip_algorithm in (None, "norm")
        on_cpu = all(p.device.type == "cpu" for p in parameters)
        if not (by_norm and on_cpu and parameters and hasattr(nn.utils, "clip_grads_with_norm_")):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        gradients = [p.grad.flatten() for p in parameters]
        norm = torch.stack([torch.dot(g, g) for g in gradients]).sum().sqrt()
        needed = not float(norm) <= gradient_clip_val
        if optimizer.defaults.get("fused"):  # divides the gradients by it in its own pass over them
            optimizer.grad_scale = (norm + 1e-6) / gradient_clip_val if needed else None
        elif needed:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
