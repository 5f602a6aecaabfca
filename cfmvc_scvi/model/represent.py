"""Latent representation of cells."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from anndata import AnnData
from scvi import settings
from scvi.model.base import RNASeqMixin, VAEMixin

from cfmvc_scvi.cells.latents import CellPosterior
from cfmvc_scvi.cells.table import ROW_UNIT, CellTable
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


class EmbeddingMixin(RNASeqMixin, VAEMixin):
    """Latents of :class:`~cfmvc_scvi.CFMVC`; ELBO, reconstruction error and normalised expression are scvi-tools'."""

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
            adata = align_genes(adata, self.get_var_names())
            self._reader().read(adata)
        return super()._validate_anndata(adata, **kwargs)

    def _forget_other_data(self, had_data: bool) -> None:
        """Let go of data that scvi-tools registered for one call; it would keep them as long as the model.

        A model loaded without data takes the first it meets for its own; it is left without, as it was.
        """
        if self.adata_manager is None:
            return
        own = self.adata_manager.adata_uuid
        managers = self._per_instance_manager_store.get(self.id, {})
        for other in set(managers) - ({own} if had_data else set()):
            del managers[other]
        if not had_data:
            self._setup_adata_manager_store.pop(own, None)
            self._adata = self._adata_manager = None

    def _cells(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | None = None,
        batch: str | None = None,
        *,
        allow_unknown: bool = False,
    ) -> CellTable:
        """Cells as the networks read them; nothing is written into the AnnData."""
        if adata is None:
            self._require_adata("use its cells")
            adata = self.adata
        read = functools.partial(self._reader().read, adata, batch=batch, allow_unknown=allow_unknown)
        rows = None if indices is None else as_rows(indices, adata.n_obs)
        # no counts at all would be refused: where no cell is asked for, all are checked
        cells = read(rows=rows) if rows is None or len(rows) else read().take(rows)
        if adata is not self.adata:
            _warn_of_empty_cells(cells)
        return cells

    @torch.inference_mode()
    def _encode(self, cells: CellTable, batch_size: int | None = None) -> CellPosterior:
        """Posterior of both latents of every cell."""
        self.module.eval()
        n, module = len(cells), self.module
        dims = (module.n_latent, module.n_latent, module.n_latent_technical, module.n_latent_technical)
        # filled in place: kept pieces between the large arrays of every chunk would splinter the memory
        whole = CellPosterior(*(torch.empty(n, dim) for dim in dims))
        start = 0
        for table, rows in _in_whole_units(cells, batch_size or settings.batch_size):
            q, q_tech = module.posterior_of(table.batch(rows).to(self._device))
            stop = min(start + rows.stop - rows.start, n)
            whole.put(start, CellPosterior(q.loc, q.scale, q_tech.loc, q_tech.scale)[: stop - start])
            start = stop
        return whole


def _in_whole_units(cells: CellTable, size: int) -> Iterator[tuple[CellTable, slice]]:
    """Chunks of cells, in whole units of rows: only the cells that fill none are copied, and padded."""
    whole = len(cells) // ROW_UNIT * ROW_UNIT
    for rows in cells.chunks(size):
        if rows.start < whole:
            yield cells, slice(rows.start, min(rows.stop, whole))
    if whole < len(cells):
        yield cells.take(np.arange(whole, len(cells))).padded(), slice(0, ROW_UNIT)


def as_rows(indices: Sequence[int], n_cells: int) -> np.ndarray:
    """Integer rows of indices or of a boolean mask.

    Raises
    ------
    IndexError
        For a mask of another length or rows out of range.
    """
    rows = np.asarray(indices)
    if rows.dtype == bool:
        if len(rows) != n_cells:
            raise IndexError(f"`indices` is a mask of length {len(rows)} for {n_cells} cells.")
        return np.flatnonzero(rows)
    rows = rows.astype(np.int64)
    if len(rows) and (rows.min() < -n_cells or rows.max() >= n_cells):
        raise IndexError(f"`indices` reach from {rows.min()} to {rows.max()}; there are {n_cells} cells.")
    return rows % n_cells if n_cells else rows


def _warn_of_empty_cells(cells: CellTable) -> None:
    empty = np.flatnonzero(np.asarray(cells.counts.sum(axis=1)).ravel() == 0)
    if len(empty):
        warnings.warn(
            f"{len(empty)} cells have no counts in the model's genes, e.g. {list(cells.obs.index[empty[:3]])}: what "
            "comes out for them is a guess from their cell type. Leave them out.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )


def _value(mean: torch.Tensor, scale: torch.Tensor, rng: np.random.Generator | None) -> np.ndarray:
    if rng is None:
        return mean.numpy()
    return mean.numpy() + scale.numpy() * rng.standard_normal(mean.shape, dtype=np.float32)
