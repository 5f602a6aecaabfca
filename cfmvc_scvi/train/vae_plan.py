"""Training plan of stage 1: the VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from scvi.train import TrainingPlan
from torch import Tensor

from cfmvc_scvi._types import CountBatch
from cfmvc_scvi.module import CFMVCModule, ElboTerms
from cfmvc_scvi.train.guards import FiniteWatch, check_finite_weights
from cfmvc_scvi.train.parts import EpochSums, reject_unknown, set_modes
from cfmvc_scvi.train.steps import fused


class VAETrainingPlan(TrainingPlan):
    """scvi-tools' plan with this model's defaults; trains the VAE's networks and leaves the flow's alone.

    Losses are added up on the device and logged once per epoch, under the names that scvi-tools uses.

    Parameters
    ----------
    module
        The module to train.
    lr, weight_decay, eps
        Settings of Adam.
    dispersion_lr
        Step size of Adam for the likelihood's own parameters, the logs of the dispersions, which start at moment
        estimates. They are what is left beside the latent: where that learns noise of few training cells, theta rises,
        and after training it is set anew from validation cells.
    n_epochs_kl_warmup
        Epochs over which the KL weight rises from 0 to its full value.
    **kwargs
        Further arguments of :class:`scvi.train.TrainingPlan`. With ``compile=True`` or ``on_step=True`` its own, slower
        steps are taken.
    """

    module: CFMVCModule

    def __init__(
        self,
        module: CFMVCModule,
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-6,
        eps: float = 1e-8,
        dispersion_lr: float = 1e-2,
        n_epochs_kl_warmup: int | None = 10,
        **kwargs: Any,
    ) -> None:
        reject_unknown("vae_plan_kwargs", kwargs, TrainingPlan.__init__)
        super().__init__(
            module,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps,
            n_epochs_kl_warmup=cast(int, n_epochs_kl_warmup),  # None is understood, but not annotated
            **kwargs,
        )
        self._dispersion_lr = dispersion_lr
        self._by_scvi = bool(kwargs.get("compile") or kwargs.get("on_step"))
        self._sums = EpochSums()
        self._watch = FiniteWatch("stage 1 (VAE)", "negative ELBO", "vae_plan_kwargs", lr)

    @property
    def kl_weight(self) -> float:
        """Scaling factor of both KL terms."""
        return float(super().kl_weight)

    def setup(self, stage: str) -> None:
        """Train the VAE's networks, freeze the flow's: before DDP looks which parameters have gradients."""
        set_modes(trained=self.module.vae_parts, frozen=self.module.flow_parts)

    def on_train_epoch_start(self) -> None:
        """Lightning may have changed the modes for validation."""
        set_modes(trained=self.module.vae_parts, frozen=self.module.flow_parts)
        self._sums = EpochSums()

    def on_train_epoch_end(self) -> None:
        """Log an epoch that was cut short; others are logged with their last batch, in time for the callbacks."""
        super().on_train_epoch_end()
        self._log_train()

    def on_validation_epoch_start(self) -> None:
        """Start the sums of the validation cells."""
        self._validation_sums = EpochSums()

    def training_step(self, batch: CountBatch, batch_idx: int) -> Tensor:
        """Loss of a batch; raises :class:`FloatingPointError` when it is not finite."""
        last = self.trainer.is_last_batch
        if self._by_scvi:
            loss = super().training_step(self.module.tensors(batch), batch_idx)
        else:
            terms = self.module.elbo_terms(batch)
            loss = terms.loss(self.kl_weight)
            self._sums.add(_losses(terms, loss), len(batch))
        if last:
            self._log_train()
        self._watch(loss, self.current_epoch, last)
        return loss if batch.part is None else loss * batch.part.weight

    def validation_step(self, batch: CountBatch, batch_idx: int) -> None:
        """Add the losses of a batch to those of the epoch."""
        if self._by_scvi:
            super().validation_step(self.module.tensors(batch), batch_idx)
            return
        terms = self.module.elbo_terms(batch)
        self._validation_sums.add(_losses(terms, terms.loss(self.kl_weight)), len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the losses of the validation cells."""
        if self._validation_sums.n_cells:
            self._log_sums(self._validation_sums, "validation")

    def on_fit_end(self) -> None:
        """Raise :class:`FloatingPointError` when the weights are not finite."""
        check_finite_weights(self.module.vae_parts, "stage 1 (VAE)", "vae_plan_kwargs", self.lr)

    def configure_optimizers(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Optimiser over the parameters of stage 1 only."""
        set_modes(trained=self.module.vae_parts, frozen=self.module.flow_parts)
        return super().configure_optimizers()

    def _optimizer_creator_fn(  # pyright: ignore[reportIncompatibleMethodOverride]  # annotated as an object there
        self, optimizer_cls: type[torch.optim.Optimizer]
    ) -> Callable[..., torch.optim.Optimizer]:
        def create(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
            parameters = list(parameters)
            settings = {"lr": self.lr, "eps": self.eps, "weight_decay": self.weight_decay}
            own = set(self.module.likelihood.parameters())
            groups = [
                {"params": [p for p in parameters if p not in own]},
                {"params": [p for p in parameters if p in own], "lr": self._dispersion_lr},
            ]
            return optimizer_cls(groups, **settings, **fused(parameters, self.trainer.precision))

        return create

    def _log_train(self) -> None:
        if self._sums.n_cells:
            self.log("kl_weight", self.kl_weight, on_step=False, on_epoch=True, batch_size=self._sums.n_cells)
            self._log_sums(self._sums, "train")
            self._sums = EpochSums()

    def _log_sums(self, sums: EpochSums, mode: str) -> None:
        loss, reconstruction, kl_intrinsic, kl_technical = sums.means().unbind()
        kl = kl_intrinsic + kl_technical
        named = {
            f"elbo_{mode}": reconstruction + kl,
            f"reconstruction_loss_{mode}": reconstruction,
            f"kl_local_{mode}": kl,
            f"kl_global_{mode}": torch.zeros_like(kl),
            f"{mode}_loss": loss,
        }
        for name, value in named.items():
            self.log(
                name,
                value,
                on_step=False,
                on_epoch=True,
                prog_bar=name == "train_loss",
                batch_size=sums.n_cells,
            )


def _losses(terms: ElboTerms, loss: Tensor) -> list[Tensor]:
    """What is minimised, and the terms of the ELBO that is reported, unweighted."""
    return [loss, terms.reconstruction, terms.kl_intrinsic, terms.kl_technical]
