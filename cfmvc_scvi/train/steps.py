"""Steps of the optimiser without the work around them that both plans can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn

#: Numbers up to which a parameter is joined with others.
_SMALL = 100_000


class NoProfiler(PassThroughProfiler):
    """Profiler that does nothing, around every hook of a step, in less time than Lightning's own."""

    _nothing = nullcontext()

    def profile(  # pyright: ignore[reportIncompatibleMethodOverride]  # any context manager will do
        self, action_name: str
    ) -> AbstractContextManager[None]:
        """See :meth:`lightning.pytorch.profilers.Profiler.profile`."""
        return self._nothing


class JoinedParameters:
    """Small parameters as parts of one vector, for which an optimiser takes a single step.

    On the CPU a step of Adam starts all threads once per parameter, however small that is. The parameters stay what
    they are, but their memory is the vector's, and that of their gradients its gradient's, to which a backward pass
    adds. One without a gradient has a gradient of zeros.

    Parameters
    ----------
    parameters
        At least one, all on one device and of one type.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in self.parameters]))
        self._parts = self._cut(self.vector.detach())
        self._gradient = torch.zeros_like(self.vector)
        self._gradients = self._cut(self._gradient)
        self.join()

    def join(self) -> None:
        """Bring the memory of those parameters and gradients into the vectors that is not, or no longer, there."""
        self.vector.grad = self._gradient
        for p, part, gradient in zip(self.parameters, self._parts, self._gradients, strict=True):
            if p.data_ptr() != part.data_ptr():
                part.copy_(p.detach())
                p.data = part
            if p.grad is not gradient:
                gradient.zero_() if p.grad is None else gradient.copy_(p.grad)
                p.grad = gradient

    def zero_gradients(self) -> None:
        """Start the sums of the next backward passes."""
        self._gradient.zero_()
        for p, gradient in zip(self.parameters, self._gradients, strict=True):
            p.grad = gradient

    def _cut(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]


class LeanSteps(LightningModule if TYPE_CHECKING else object):
    """Plan without work that steps of a small network would feel.

    Gradients whose norm needs no clipping are left alone, and others are scaled where the optimiser reads them:
    Lightning's own clipping multiplies every gradient by a factor. On other devices than the CPU, where looking at the
    norm waits for the device, it is Lightning's own. Gradients are dropped without the optimiser's bookkeeping. And the
    name of the running hook, which Lightning sets around each, is stored without asking whether it is a module.
    """

    _joined: JoinedParameters | None = None

    def lean_optimizer(
        self, optimizer: Callable[..., torch.optim.Optimizer], parameters: Iterable[nn.Parameter], **settings: Any
    ) -> torch.optim.Optimizer:
        """Optimiser whose step is one kernel, on devices that have it, and for which small parameters are joined.

        Not one kernel in mixed precision, where Lightning clips no gradients of a fused optimiser. Joined they are
        everywhere, so that a run may go on with its optimiser's state on another device.
        """
        parameters, self._joined = list(parameters), None
        fused = {p.device.type for p in parameters} <= {"cpu", "cuda"} and "16" not in str(self.trainer.precision)
        small = [p for p in parameters if p.numel() <= _SMALL]
        if len(small) > 1:
            self._joined = JoinedParameters(small)
            parameters = [*(p for p in parameters if p.numel() > _SMALL), self._joined.vector]
        return optimizer(parameters, fused=fused or None, **settings)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def on_after_backward(self) -> None:
        """Join what something else has taken apart."""
        super().on_after_backward()
        if self._joined:
            self._joined.join()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """See :meth:`lightning.pytorch.LightningModule.optimizer_zero_grad`."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None
        if self._joined:
            self._joined.zero_gradients()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """See :meth:`lightning.pytorch.LightningModule.configure_gradient_clipping`."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        by_norm = gradient_clip_algorithm in (None, "norm")
        on_cpu = all(p.device.type == "cpu" for p in parameters)
        if not (gradient_clip_val and by_norm and on_cpu and parameters and hasattr(nn.utils, "clip_grads_with_norm_")):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        gradients = [p.grad.flatten() for p in parameters]
        norm = torch.stack([torch.dot(g, g) for g in gradients]).sum().sqrt()
        needed = not float(norm) <= gradient_clip_val
        if optimizer.defaults.get("fused"):  # divides the gradients by it in its own pass over them
            vars(optimizer)["grad_scale"] = (norm + 1e-6) / gradient_clip_val if needed else None
        elif needed:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
