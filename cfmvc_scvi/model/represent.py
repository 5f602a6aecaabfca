"""Latent representation of cells."""

# our arguments are others than those of scvi-tools' methods of the same name
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.model.base import RNASeqMixin, VAEMixin

from cfmvc_scvi._arguments import cells_of
from cfmvc_scvi._base import ModelBase, single_precision
from cfmvc_scvi._compat import deregister, forget_registered, is_registered
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._types import obs_of, same_names
from cfmvc_scvi.registration.keys import counts_matrix, has_presence_matrix
from cfmvc_scvi.registration.spelling import texts_of

_PERTURBATION = CFMVC_KEYS.PERTURBATION_KEY


def _forgetting(name: str) -> Callable:
    """A method of scvi-tools that leaves no reference to the data it was called with."""
    method = getattr(RNASeqMixin, name, None) or getattr(VAEMixin, name)

    @functools.wraps(method)
    @single_precision
    def call(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_in_call:  # these methods call each other: data are checked, and forgotten, once
            return method(self, *args, **kwargs)
        had_data = self.adata is not None
        self._is_in_call = True
        try:
            return method(self, *args, **kwargs)
        finally:
            self._is_in_call, self._has_checked_own = False, False
            self._forget_other_data(had_data)

    return call


class RepresentationMixin(RNASeqMixin, VAEMixin, ModelBase):
    """Latents of :class:`~cfmvc_scvi.CFMVC`; ELBO, reconstruction error and normalised expression are scvi-tools'.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: its cells, their encoding and its registration.
    """

    _is_in_call = False
    _has_checked_own = False

    get_elbo = _forgetting("get_elbo")
    get_reconstruction_error = _forgetting("get_reconstruction_error")
    _scvi_normalized_expression = _forgetting("get_normalized_expression")
    get_likelihood_parameters = _forgetting("get_likelihood_parameters")
    get_latent_library_size = _forgetting("get_latent_library_size")
    get_feature_correlation_matrix = _forgetting("get_feature_correlation_matrix")
    posterior_predictive_sample = _forgetting("posterior_predictive_sample")
    differential_expression = _forgetting("differential_expression")

    @functools.wraps(RNASeqMixin.get_normalized_expression)
    def get_normalized_expression(self, *args: Any, **kwargs: Any) -> Any:
        """scvi-tools' method; samples over all cells (``n_samples_overall``) have no names and come as an array."""
        if kwargs.get("n_samples_overall") is not None and not kwargs.get("return_numpy"):
            kwargs["return_numpy"] = True
        return self._scvi_normalized_expression(*args, **kwargs)

    def get_marginal_ll(self, *args: Any, **kwargs: Any) -> float:
        """Not available: the marginal likelihood needs importance sampling over both latents; see :meth:`get_elbo`."""
        raise NotImplementedError(
            "CFMVC has no `get_marginal_ll`: importance sampling over its two latents is not implemented. `get_elbo` "
            "is a lower bound of it, `get_reconstruction_error` the part of the counts."
        )

    @classmethod
    def deregister(cls, adata: AnnData) -> None:
        """Let go of an AnnData that was set up, so that its memory is free once nothing of yours refers to it.

        :meth:`setup_anndata` and :meth:`load` make scvi-tools keep the data for as long as the process runs, in case a
        model is made of them. Call this between the folds of a cross-validation, say, followed by ``del adata, model``.
        Columns that scvi-tools wrote into it (``_scvi_...``) are removed. Models made of it keep working on other data;
        to use it again, call :meth:`setup_anndata` again.

        Parameters
        ----------
        adata
            The AnnData that was set up, not a copy of it.
        """
        deregister(cls, adata)

    @single_precision
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
        """Data for scvi-tools' own methods, checked as ours are: units, genes by name, categories.

        scvi-tools writes into what it is given, compares the number of genes alone, and overlooks a new category
        that is 0 or False. So new data are handed on as a copy that shares their counts, and so are the registered ones
        where their genes are no longer those of the model.
        """
        own = adata is None or adata is self.adata
        adata = self._require_adata("use its cells") if adata is None else cells_of("adata", adata)
        if own and not same_names(adata.var_names, pd.Index(self._var_names)):
            own = False
        elif not own and is_registered(self, adata):
            return super()._validate_anndata(adata, **kwargs)
        if not (own and self._has_checked_own):
            self._read(adata)
        self._has_checked_own = own and self._is_in_call
        return super()._validate_anndata(adata if own else self._to_hand_on(adata), **kwargs)

    def _to_hand_on(self, adata: AnnData) -> AnnData:
        """The same cells for scvi-tools to write into: the model's genes, its spelling of categories, shared counts."""
        keys = self.setup_keys
        columns = adata.var_names.get_indexer(pd.Index(self._var_names))
        counts: Any = counts_matrix(adata, keys.layer)
        counts = counts if len(columns) == adata.n_vars and (np.diff(columns) == 1).all() else counts[:, columns]
        obs = obs_of(adata).loc[:, [name for name in adata.obs if not str(name).startswith("_scvi")]].copy()
        fields = {REGISTRY_KEYS.BATCH_KEY: keys.batch_key, REGISTRY_KEYS.LABELS_KEY: keys.labels_key}
        fields |= {} if has_presence_matrix(adata, keys.perturbation_key) else {_PERTURBATION: keys.perturbation_key}
        for field, key in fields.items():
            levels = self._levels(field)
            if key is not None and key in obs:
                native = dict(zip(texts_of(levels), levels, strict=True))
                texts = texts_of(obs[key])
                obs[key] = pd.Series([native.get(text, text) for text in texts], obs.index)
            elif key is not None and field == _PERTURBATION:
                obs[key] = levels[0]  # what these methods give does not depend on it
        obsm: Any = {
            key: adata.obsm[key] for key in (keys.spatial_key, keys.perturbation_key) if key and key in adata.obsm
        }
        layers: Any = {} if keys.layer is None else {keys.layer: counts}
        x = counts if keys.layer is None else None
        return AnnData(x, obs=obs, var=pd.DataFrame(index=adata.var_names[columns]), obsm=obsm, layers=layers)

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
