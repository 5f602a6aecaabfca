"""Training plan of stage 1: the VAE."""

from __future__ import annotations

from typing import Any

from scvi.train import TrainingPlan
from torch import Tensor

from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.train.modes import check_finite_loss, check_finite_weights, reject_unknown, set_modes


class VAETrainingPlan(TrainingPlan):
    """scvi-tools' plan with this model's defaults; trains the VAE's networks and leaves the flow's alone.

    Parameters
    ----------
    module
        The module to train.
    lr, weight_decay, eps
        Settings of Adam.
    n_epochs_kl_warmup
        Epochs over which the KL weight rises from 0 to its full value.
    **kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: CFMVCModule,
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        eps: float = 1e-8,
        n_epochs_kl_warmup: int | None = 10,
        **kwargs: Any,
    ) -> None:
        reject_unknown("vae_plan_kwargs", kwargs, TrainingPlan.__init__)
        super().__init__(
            module, lr=lr, weight_decay=weight_decay, eps=eps, n_epochs_kl_warmup=n_epochs_kl_warmup, **kwargs
        )

    def on_fit_start(self) -> None:
        """Train the VAE's networks, freeze the flow's."""
        set_modes(trained=self.module.vae_parts, frozen=self.module.flow_parts)

    def on_train_epoch_start(self) -> None:
        """Lightning may have changed the modes for validation."""
        set_modes(trained=self.module.vae_parts, frozen=self.module.flow_parts)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch; raises :class:`FloatingPointError` when it is not finite."""
        loss = super().training_step(batch, batch_idx)
        check_finite_loss(loss, "stage 1 (VAE)", "negative ELBO", self.current_epoch, "vae_plan_kwargs", self.lr)
        return loss

    def on_fit_end(self) -> None:
        """Raise :class:`FloatingPointError` when the weights are not finite."""
        check_finite_weights(self.module.vae_parts, "stage 1 (VAE)", "vae_plan_kwargs", self.lr)

    def configure_optimizers(self) -> dict[str, Any]:
        """Optimiser over the parameters of stage 1 only."""
        set_modes(trained=self.module.vae_parts, frozen=self.module.flow_parts)
        return super().configure_optimizers()
