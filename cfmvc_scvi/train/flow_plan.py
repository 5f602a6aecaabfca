"""Training plan of stage 2: the flow on frozen latents."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from cfmvc_scvi._types import FlowBatch, drawn
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.train.guards import FiniteWatch, check_finite_weights
from cfmvc_scvi.train.parts import EpochSums, set_modes
from cfmvc_scvi.train.steps import fused


class FlowTrainingPlan(LightningModule):
    """Regresses the velocity field on paths between paired latents.

    Only the context encoder, the perturbation adapter and the velocity field get gradients; the VAE stays in
    eval mode.

    Parameters
    ----------
    module
        The module to train.
    lr, weight_decay
        Settings of AdamW; the learning rate falls to zero along a half cosine.
    """

    module: CFMVCModule

    def __init__(self, module: CFMVCModule, *, lr: float = 1e-3, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.module = module
        self.lr = lr
        self.weight_decay = weight_decay
        self._losses = EpochSums()
        self._watch = FiniteWatch("stage 2 (flow)", "flow-matching loss", "flow_plan_kwargs", lr)

    def setup(self, stage: str) -> None:
        """Freeze the VAE, train the flow: before DDP looks which parameters have gradients."""
        self._set_modes()

    def on_train_epoch_start(self) -> None:
        """Lightning may have changed the modes for validation."""
        self._set_modes()
        self._losses = EpochSums()

    def on_train_epoch_end(self) -> None:
        """Log an epoch that was cut short; others are logged with their last batch, in time for the callbacks."""
        self._log_train()

    def on_validation_epoch_start(self) -> None:
        """Start the sum of the validation cells."""
        self._validation_losses = EpochSums()

    def training_step(self, batch: FlowBatch, batch_idx: int) -> Tensor:
        """Flow-matching loss at random times."""
        loss = self._loss(batch, drawn(lambda n: torch.rand(n, device=self.device), len(batch), batch.part))
        last = self.trainer.is_last_batch
        self._watch(loss, self.current_epoch, last)
        self._losses.add([loss], len(batch))
        if last:
            self._log_train()
        return loss if batch.part is None else loss * batch.part.weight

    def validation_step(self, batch: FlowBatch, batch_idx: int) -> None:
        """Flow-matching loss at fixed, evenly spread times."""
        loss = self._loss(batch, drawn(self._spread_times, len(batch), batch.part))
        self._validation_losses.add([loss], len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the loss of the validation cells."""
        self._log("flow_loss_validation", self._validation_losses)

    def on_fit_end(self) -> None:
        """Raise :class:`FloatingPointError` when the weights are not finite."""
        check_finite_weights(self.module.flow_parts, "stage 2 (flow)", "flow_plan_kwargs", self.lr)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with a cosine schedule over all steps."""
        self._set_modes()
        parameters = [p for part in self.module.flow_parts for p in part.parameters()]
        one_kernel = fused(parameters, self.trainer.precision)
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, **one_kernel)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _spread_times(self, n: int) -> Tensor:
        return (torch.arange(n, device=self.device) + 0.5) / n

    def _loss(self, batch: FlowBatch, t: Tensor) -> Tensor:
        return self.module.flow_loss(batch.z0, batch.z1, t, batch.context, batch.p, batch.condition)

    def _log_train(self) -> None:
        self._log("flow_loss_train", self._losses, prog_bar=True)
        self._losses = EpochSums()

    def _log(self, name: str, losses: EpochSums, **kwargs: Any) -> None:
        if losses.n_cells:
            value = losses.means()[0]
            self.log(name, value, on_step=False, on_epoch=True, batch_size=losses.n_cells, **kwargs)

    def _set_modes(self) -> None:
        set_modes(trained=self.module.flow_parts, frozen=self.module.vae_parts)
