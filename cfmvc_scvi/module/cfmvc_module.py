"""The module: networks of both stages and their losses."""

# scvi-tools declares the methods of a module without the types of what they return
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scvi import REGISTRY_KEYS
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from cfmvc_scvi._compat import MODULE_KEYS
from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._types import CountBatch, FlowContext
from cfmvc_scvi.flow import LinearPath, energy_distance
from cfmvc_scvi.likelihood import get_likelihood
from cfmvc_scvi.module.elbo import ElboTerms, draw_with_kl
from cfmvc_scvi.module.transport import TransportMixin
from cfmvc_scvi.nn import (
    ContextEncoder,
    Decoder,
    Encoder,
    FlowField,
    PerturbationAdapter,
    Posterior,
    VelocityParts,
)
from cfmvc_scvi.nn.groups import Groups


class CFMVCModule(TransportMixin, BaseModuleClass):
    r"""Negative-binomial VAE with a split latent, and a conditional flow on its intrinsic part.

    Stage 1 maximises :math:`E_q \log NB(x \mid z_{int}, z_{tech}) - \beta \left[ KL(q(z_{int}) \Vert N(0, I)) +
    KL(q(z_{tech}) \Vert N(m_b, s_b^2)) \right]`: the prior of the technical latent depends on the batch b, that of
    the intrinsic latent does not. Stage 2 regresses the velocity field on straight paths between paired
    latents of the frozen encoder.

    Parameters
    ----------
    n_input
        Genes.
    n_batch, n_labels
        Batches and cell types.
    n_perturbation
        Length of the perturbation vector.
    n_cats_per_cov
        Levels of further categorical covariates.
    n_continuous_cov, n_spatial
        Continuous covariates and spatial coordinates.
    kl_weight_intrinsic, kl_weight_technical
        Weights :math:`\beta` of the two KL terms.
    labels_in_effect, labels_in_context
        Whether the cell type enters the effect coefficients, and the context of the velocity field.
    panel
        Whether genes outside the data share the library (a size factor is registered).
    gene_likelihood
        Distribution of the counts, a name in :data:`~cfmvc_scvi.likelihood.LIKELIHOODS`.
    dispersion
        Whether its dispersion is one per gene, ``"gene"``, or per gene and batch, ``"gene-batch"``.
    energy_weight
        Weight of the energy distance between one-step end points and targets in stage 2.
    """

    spatial_center: Tensor
    spatial_scale: Tensor
    #: Factor on the deviations of decoded cells from their population, per gene, where cells are drawn anew.
    gene_signal: Tensor

    def __init__(
        self,
        n_input: int,
        n_batch: int = 1,
        n_labels: int = 1,
        n_perturbation: int = 1,
        *,
        n_cats_per_cov: Sequence[int] = (),
        n_continuous_cov: int = 0,
        n_spatial: int = 0,
        n_latent: int = 32,
        n_latent_technical: int = 8,
        n_hidden: int = 256,
        n_layers: int = 2,
        n_layers_decoder: int = 1,
        n_basis: int = 16,
        n_hidden_flow: int = 128,
        dropout: float = 0.0,
        flow_source: str = "control",
        kl_weight_intrinsic: float = 0.3,
        kl_weight_technical: float = 1.0,
        labels_in_effect: bool = False,
        labels_in_context: bool = False,
        panel: bool = False,
        gene_likelihood: str = "nb",
        dispersion: str = "gene",
        energy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.n_latent_technical = n_latent_technical
        self.n_batch = n_batch
        self.panel = panel
        self.gene_likelihood = gene_likelihood  # read by scvi-tools' get_likelihood_parameters
        self.flow_source = flow_source
        self.kl_weights = (kl_weight_intrinsic, kl_weight_technical)
        self.energy_weight = energy_weight
        self.labels_in_context = labels_in_context
        categories = [n_batch, n_labels, *n_cats_per_cov]
        shape = {"n_hidden": n_hidden, "dropout": dropout}
        self.encoder = Encoder(
            n_input, n_latent, n_latent_technical, categories, n_continuous_cov, n_layers=n_layers, **shape
        )
        self.decoder = Decoder(
            n_latent,
            n_latent_technical,
            n_input,
            n_layers=n_layers_decoder,
            panel=panel,
            n_batch=n_batch,
            **shape,
        )
        self.likelihood = get_likelihood(gene_likelihood, n_input, dispersion, n_batch)
        self.register_buffer("gene_signal", torch.ones(n_input))
        self.tech_prior_mean = nn.Embedding(n_batch, n_latent_technical)
        self.tech_prior_logvar = nn.Embedding(n_batch, n_latent_technical)
        nn.init.normal_(self.tech_prior_mean.weight, std=0.5)
        nn.init.zeros_(self.tech_prior_logvar.weight)
        context_categories = [n_batch, *([n_labels] if labels_in_context else []), *n_cats_per_cov]
        self.context_encoder = ContextEncoder(context_categories, n_continuous_cov, n_spatial)
        self.adapter = PerturbationAdapter(n_perturbation, n_labels if labels_in_effect else 0, n_basis)
        self.flow_field = FlowField(n_latent, self.context_encoder.n_out, n_basis=n_basis, n_hidden=n_hidden_flow)
        self.register_buffer("flow_center", torch.zeros(n_latent))
        self.register_buffer("flow_scale", torch.ones(()))
        self.register_buffer("spatial_center", torch.zeros(n_spatial))
        self.register_buffer("spatial_scale", torch.ones(n_spatial))
        self.path = LinearPath()

    # ---- which parameters belong to which stage -------------------------------------------------------------

    @property
    def vae_parts(self) -> list[nn.Module]:
        """Networks of stage 1."""
        return [self.encoder, self.decoder, self.likelihood, self.tech_prior_mean, self.tech_prior_logvar]

    @property
    def flow_parts(self) -> list[nn.Module]:
        """Networks of stage 2."""
        return [self.context_encoder, self.adapter, self.flow_field]

    # ---- stage 1 --------------------------------------------------------------------------------------------

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor | FlowContext | None]:
        further = tensors.get(REGISTRY_KEYS.CAT_COVS_KEY)
        context = FlowContext(
            batch=tensors[REGISTRY_KEYS.BATCH_KEY].squeeze(-1).long(),
            labels=tensors[REGISTRY_KEYS.LABELS_KEY].squeeze(-1).long(),
            further=None if further is None else further.long(),
            continuous=tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
        )
        x, size_factor = tensors[REGISTRY_KEYS.X_KEY], tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        return {"x": x, "context": context, "size_factor": size_factor}

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict) -> dict:
        return {
            "z": inference_outputs[MODULE_KEYS.Z_KEY],
            "z_technical": inference_outputs["z_technical"],
            "library": inference_outputs[MODULE_KEYS.LIBRARY_KEY],
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
        }

    @auto_move_data
    def inference(
        self,
        x: Tensor,
        context: FlowContext,
        size_factor: Tensor | None = None,
        n_samples: int = 1,
    ) -> dict:
        """Posterior of both latents and a draw of each.

        Returns
        -------
        ``z`` and ``qz`` (intrinsic), ``z_technical`` and ``qz_technical``, and ``library``, the log of each cell's
        library size, shape (n, 1).
        """
        qz, qz_technical, total = self.posterior(x, context.to(x.device), size_factor)
        draws = () if n_samples == 1 else (n_samples,)
        library = total.log()
        return {
            MODULE_KEYS.Z_KEY: qz.rsample(draws),
            MODULE_KEYS.QZ_KEY: qz,
            "z_technical": qz_technical.rsample(draws),
            "qz_technical": qz_technical,
            MODULE_KEYS.QL_KEY: None,
            MODULE_KEYS.LIBRARY_KEY: library if n_samples == 1 else library.expand(n_samples, *library.shape),
        }

    def posterior(
        self, x: Tensor, context: FlowContext, size_factor: Tensor | None = None
    ) -> tuple[Normal, Normal, Tensor]:
        """Posterior of the intrinsic and the technical latent, and the library sizes, shape (n, 1)."""
        x = x.float()
        total = x.sum(dim=-1, keepdim=True) if size_factor is None else size_factor.float()
        total = total.clamp(min=1.0)
        q = self.encoder(torch.log1p(x / total * CP10K), context.codes, context.continuous)
        return (*_normals(q), total)

    def posterior_of(self, batch: CountBatch) -> tuple[Normal, Normal]:
        """Posterior of the intrinsic and the technical latent, from counts without their zeros."""
        return _normals(self.encoder(batch.lognorm, batch.context.codes, batch.context.continuous))

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        z_technical: Tensor,
        library: Tensor,
        batch_index: Tensor,
        transform_batch: int | np.integer | None = None,
    ) -> dict:
        """Negative binomial of the counts, and both priors."""
        batch = batch_index.squeeze(-1).long()
        if transform_batch is not None:
            target = torch.full_like(batch, int(transform_batch))
            z_technical = self.move_batch(z_technical, batch, target)
            batch = target
        log_share = self.decoder(z, z_technical, batch)
        log_mean = log_share + library
        px = self.likelihood.in_batches(batch).distribution(log_mean.exp(), log_share.exp())
        return {
            MODULE_KEYS.PX_KEY: px,
            "log_mean": log_mean,
            "batch": batch,
            MODULE_KEYS.PL_KEY: None,
            MODULE_KEYS.PZ_KEY: Normal(torch.zeros_like(z), torch.ones_like(z)),
            "pz_technical": self.technical_prior(batch),
        }

    def loss(
        self, tensors: dict[str, Tensor], inference_outputs: dict, generative_outputs: dict, kl_weight: float = 1.0
    ) -> LossOutput:
        """Negative evidence lower bound, with the KL terms weighted; the ELBO reported is unweighted."""
        x = tensors[REGISTRY_KEYS.X_KEY]
        likelihood = self.likelihood.in_batches(generative_outputs["batch"])
        reconstruction = -likelihood.log_prob(x, generative_outputs["log_mean"]).sum(dim=-1)
        kl_int = kl_divergence(inference_outputs[MODULE_KEYS.QZ_KEY], generative_outputs[MODULE_KEYS.PZ_KEY]).sum(-1)
        kl_tech = kl_divergence(inference_outputs["qz_technical"], generative_outputs["pz_technical"]).sum(-1)
        weighted = self.kl_weights[0] * kl_int + self.kl_weights[1] * kl_tech
        return LossOutput(
            loss=(reconstruction + kl_weight * weighted).mean(),
            reconstruction_loss=reconstruction,
            kl_local={"kl_divergence_intrinsic": kl_int, "kl_divergence_technical": kl_tech},
        )

    def elbo_terms(self, batch: CountBatch) -> ElboTerms:
        """Terms of the negative evidence lower bound, as :meth:`loss` has them, without dense arrays beside one.

        What the training of stage 1 runs: the posterior is drawn once, and the reconstruction is
        :meth:`~cfmvc_scvi.likelihood.Likelihood.reconstruction_loss`.
        """
        q = self.encoder(batch.lognorm, batch.context.codes, batch.context.continuous)
        codes = batch.context.batch
        z, *kl = draw_with_kl(q.mean, q.logvar, *self._technical_prior(codes), batch.part)
        features, output = self.decoder.features(z, codes), self.decoder.output
        reconstruction = self.likelihood.reconstruction_loss(features, output, batch, panel=self.panel)
        return ElboTerms(reconstruction, *kl, weights=self.kl_weights)

    def tensors(self, batch: CountBatch) -> dict[str, Tensor]:
        """The same cells as scvi-tools' loaders give them, dense."""
        context = batch.context
        tensors = {
            REGISTRY_KEYS.X_KEY: batch.counts.dense(),
            REGISTRY_KEYS.BATCH_KEY: context.batch.unsqueeze(-1),
            REGISTRY_KEYS.LABELS_KEY: context.labels.unsqueeze(-1),
        }
        if context.further is not None:
            tensors[REGISTRY_KEYS.CAT_COVS_KEY] = context.further
        if context.continuous is not None:
            tensors[REGISTRY_KEYS.CONT_COVS_KEY] = context.continuous
        if batch.has_size_factor:
            tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY] = batch.library.unsqueeze(-1)
        return tensors

    def technical_prior(self, batch: Tensor) -> Normal:
        """Prior of the technical latent in the batches (n,)."""
        mean, logvar = self._technical_prior(batch)
        return Normal(mean, (0.5 * logvar).exp(), validate_args=False)

    def _technical_prior(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.tech_prior_mean(batch), self.tech_prior_logvar(batch).clamp(-6.0, 3.0)

    def move_batch(self, z_technical: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Technical latents as they would be in another batch: same deviation from the prior, in its units."""
        p, q = self.technical_prior(source), self.technical_prior(target)
        return q.loc + (z_technical - p.loc) / p.scale * q.scale

    # ---- stage 2 --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def set_flow_units(self, latent: Tensor, spatial: Tensor | None = None) -> None:
        """Centre and common scale of the latents (n, n_latent), and units of the coordinates (n, n_spatial)."""
        self.flow_center.copy_(latent.mean(dim=0))
        self.flow_scale.copy_(latent.var(dim=0, correction=0).mean().sqrt().clamp(min=1e-6))
        if spatial is not None:
            self.spatial_center.copy_(spatial.mean(dim=0))
            self.spatial_scale.copy_(spatial.std(dim=0, correction=0).clamp(min=1e-6))

    def encode_context(self, context: FlowContext) -> Tensor:
        """Context vector of the velocity field, shape (n, n_context)."""
        codes = context.codes if self.labels_in_context else context.strata_codes
        spatial = context.spatial
        if spatial is not None:
            spatial = (spatial - self.spatial_center) / self.spatial_scale
        return self.context_encoder(codes, context.continuous, spatial)

    def coefficients(
        self, p: Float[Tensor, "n n_perturbation"], labels: Int[Tensor, " n"]
    ) -> Float[Tensor, "n n_basis"]:
        """Effect coefficients alpha (n, n_basis); exactly zero where p is."""
        return self.adapter(p, labels)

    def velocity(
        self,
        z: Float[Tensor, "n n_latent"],
        t: Float[Tensor, " n"],
        context: FlowContext,
        p: Float[Tensor, "n n_perturbation"],
        condition: Int[Tensor, " n"] | None = None,
    ) -> VelocityParts:
        """Velocity at standardised latents ``z`` (n, n_latent) and times ``t`` (n,).

        ``condition`` (n,), where it is known, holds one code for all cells of one ``p``, and saves work where
        these are many (on the CPU; elsewhere, counting the cells of a condition would wait for the device).
        """
        encoded = self.encode_context(context)
        if condition is not None and self.adapter.gate is None and z.device.type == "cpu":
            groups = Groups.of(condition)
            if groups.worth_it(self.flow_field.n_basis):
                alpha = self.coefficients(p[groups.members], context.labels[groups.members])
                return self.flow_field.forward_grouped(z, t, encoded, alpha, groups)
        return self.flow_field(z, t, encoded, self.coefficients(p, context.labels))

    def flow_loss(
        self,
        z0: Float[Tensor, "n n_latent"],
        z1: Float[Tensor, "n n_latent"],
        t: Float[Tensor, " n"],
        context: FlowContext,
        p: Float[Tensor, "n n_perturbation"],
        condition: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the velocity per latent dimension; all points standardised.

        Parameters
        ----------
        z0, z1
            Paired source and target points, shape (n, n_latent).
        t
            Times, shape (n,).
        p
            Perturbation vectors of the targets, shape (n, n_perturbation); zero for control.
        condition
            Code of every target's perturbation vector, shape (n,), where it is known.
        """
        sample = self.path.sample(z0, z1, t)
        velocity = self.velocity(sample.x_t, sample.t, context, p, condition).total
        loss = (velocity - sample.velocity).square().sum(dim=-1).mean()
        if self.energy_weight > 0:
            end = sample.x_t + (1.0 - t).unsqueeze(-1) * velocity
            loss = loss + self.energy_weight * energy_distance(end, z1)
        return loss

    @torch.inference_mode()
    def sample(self, tensors: dict[str, Tensor], n_samples: int = 1, generative_kwargs: dict | None = None) -> Tensor:
        """Counts drawn from the posterior predictive distribution, shape (n, n_genes[, n_samples])."""
        inference, generative = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        log_mean = generative["log_mean"]
        share = (log_mean - inference[MODULE_KEYS.LIBRARY_KEY]).exp()
        drawn = self.likelihood.in_batches(generative["batch"]).distribution_of_cells(log_mean.exp(), share).sample()
        return (drawn.permute(1, 2, 0) if n_samples > 1 else drawn).cpu()


def _normals(q: Posterior) -> tuple[Normal, Normal]:
    """Both latents; not validated: a diverged stage 1 shows in its loss, which is reported with a remedy."""
    intrinsic, technical = (
        Normal(mean, (0.5 * logvar).exp(), validate_args=False) for mean, logvar in (q.intrinsic, q.technical)
    )
    return intrinsic, technical
