"""Latent representation of cells."""

# our arguments are others than those of scvi-tools' methods of the same name
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi.model.base import RNASeqMixin, VAEMixin

from cfmvc_scvi._base import ModelBase
from cfmvc_scvi._compat import forget_registered
from cfmvc_scvi.model.persist import align_genes


def _forgetting(name: str) -> Callable:
    """A method of scvi-tools that leaves no reference to the data it was called with."""
    method = getattr(RNASeqMixin, name, None) or getattr(VAEMixin, name)

    @functools.wraps(method)
    def call(self, *args: Any, **kwargs: Any) -> Any:
        had_data = self.adata is not None
        try:
            return method(self, *args, **kwargs)
        finally:
            self._forget_other_data(had_data)

    return call


class RepresentationMixin(RNASeqMixin, VAEMixin, ModelBase):
    """Latents of :class:`~cfmvc_scvi.CFMVC`; ELBO, reconstruction error and normalised expression are scvi-tools'.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: its cells, their encoding and its registration.
    """

    get_elbo = _forgetting("get_elbo")
    get_reconstruction_error = _forgetting("get_reconstruction_error")
    get_normalized_expression = _forgetting("get_normalized_expression")
    get_likelihood_parameters = _forgetting("get_likelihood_parameters")
    get_latent_library_size = _forgetting("get_latent_library_size")
    get_feature_correlation_matrix = _forgetting("get_feature_correlation_matrix")
    posterior_predictive_sample = _forgetting("posterior_predictive_sample")
    differential_expression = _forgetting("differential_expression")

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        *,
        latent: Literal["intrinsic", "technical", "both"] = "intrinsic",
        give_mean: bool = True,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Latent representation of cells; needs stage 1 only.

        Parameters
        ----------
        adata
            Cells with the model's genes, in any order; ``None`` takes the registered ones.
        indices
            Rows of ``adata``; the result keeps their order.
        latent
            ``"intrinsic"`` (biology), ``"technical"`` (batch), or ``"both"`` side by side.
        give_mean
            Posterior mean; otherwise one draw, from the seed of ``scvi.settings``.
        batch_size
            Cells encoded at a time.

        Returns
        -------
        Array (n_cells, n_latent), float32.
        """
        self._require_vae("embed cells")
        if latent not in ("intrinsic", "technical", "both"):
            raise ValueError(f"Unknown `latent` {latent!r}: choose 'intrinsic', 'technical' or 'both'.")
        posterior = self._encode(self._cells(adata, indices), batch_size)
        rng = None if give_mean else np.random.default_rng(self._seed)
        parts = {
            "intrinsic": _value(posterior.mean, posterior.scale, rng),
            "technical": _value(posterior.technical_mean, posterior.technical_scale, rng),
        }
        return np.concatenate(list(parts.values()), axis=1) if latent == "both" else parts[latent]

    def _validate_anndata(self, adata: AnnData | None = None, **kwargs: Any) -> AnnData:
        """New data for scvi-tools' own methods: genes aligned by name on a copy, unknown categories refused.

        scvi-tools compares the number of genes alone, and overlooks a new category that is 0 or False.
        """
        if adata is not None and adata is not self.adata:
            adata = align_genes(adata, self._var_names)
            self._reader.read(adata)
        return super()._validate_anndata(adata, **kwargs)

    def _forget_other_data(self, had_data: bool) -> None:
        """Let go of data that scvi-tools registered for one call; it would keep them as long as the model.

        A model loaded without data takes the first it meets for its own; it is left without, as it was.
        """
        if self.adata_manager is None:
            return
        forget_registered(self, keep_own=had_data)


def _value(mean: torch.Tensor, scale: torch.Tensor, rng: np.random.Generator | None) -> np.ndarray:
    if rng is None:
        return mean.numpy()
    return mean.numpy() + scale.numpy() * rng.standard_normal(mean.shape, dtype=np.float32)
