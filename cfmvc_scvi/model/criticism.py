"""Posterior predictive checks: cells drawn from the trained model beside the cells that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._base import ModelBase, as_rows, single_precision
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.calibration.held_out_spread import drawn_shares, keep_signal, populations_of
from cfmvc_scvi.registration.keys import perturbation_labels
from cfmvc_scvi.registration.spelling import texts_of

#: Genes below this mean count are left out of the ratios of a population: a handful of counts decides them.
_MIN_MEAN = 0.05


@dataclass(frozen=True)
class PredictiveCheck:
    """Observed cells beside cells drawn from their posterior predictive distribution.

    Attributes
    ----------
    genes
        One row per gene, over all cells: ``mean``, ``variance`` and ``zeros`` (share of cells without a count) of the
        observed counts, and the same of the drawn ones with the ending ``_drawn``.
    populations
        One row per population: ``n_cells``, ``library`` and ``library_drawn`` (mean counts of a cell), ``mean_ratio``
        and ``variance_ratio`` (median over genes of drawn over observed; of genes with a mean of at least 0.05 counts)
        and ``zeros_difference`` (mean over these genes of the drawn less the observed share of zeros).
    """

    genes: pd.DataFrame
    populations: pd.DataFrame


class PredictiveCheckMixin(ModelBase):
    """Posterior predictive checks of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: cells, their encoding and the vocabulary.
    """

    @single_precision
    @torch.inference_mode()
    def posterior_predictive_check(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        *,
        groupby: str | None = None,
        seed: int | None = None,
        batch_size: int = 512,
    ) -> PredictiveCheck:
        """Compare cells with counts drawn for them by the trained VAE.

        Every cell is encoded, both latents are drawn from their posterior, decoded at the cell's own library size and
        batch, its deviation from its population shrunk to what decoded means explain of cells outside training, and
        counts are drawn from the likelihood (Gelman, Meng and Stern 1996). Drawn variances well above the
        observed ones say that latents or dispersions are too wide; well below, that the model calls differences between
        cells noise. Cells that were trained on are reproduced better than others: give ``model.validation_indices``
        for those that were not.

        Parameters
        ----------
        adata
            Cells with the model's genes, in any order; ``None`` takes the registered ones.
        indices
            Rows of ``adata``, a mask, or names of cells.
        groupby
            Column of ``adata.obs`` that says which population a cell belongs to; ``None`` takes the perturbations.
        seed
            Of all draws; ``None`` takes that of ``scvi.settings``.
        batch_size
            Cells at a time.

        Returns
        -------
        :class:`PredictiveCheck`; :func:`cfmvc_scvi.pl.posterior_predictive_check` draws it.

        Raises
        ------
        RuntimeError
            When stage 1 is not trained, or there are no data.
        KeyError
            When there is no column of that name.
        ValueError
            When no cells are given.
        """
        self._require_vae("check what it draws")
        data = self._require_adata("check it on its cells") if adata is None else adata
        cells = self._cells(data, indices)
        if not len(cells):
            raise ValueError("No cells to check: `indices` is empty. Give rows of the data, or leave it out for all.")
        group = self._group_of(data, groupby)
        group = group if indices is None else group[as_rows(indices, data.n_obs, data.obs_names)]
        names, code = np.unique(group, return_inverse=True)
        n_genes = len(self._var_names)
        seen, drawn = (_Sums(len(names), n_genes) for _ in range(2))
        rng = np.random.default_rng(self._seed if seed is None else seed)
        context, condition = cells.context, self._conditions_of(data).code
        condition = condition if indices is None else condition[as_rows(indices, data.n_obs, data.obs_names)]
        population = populations_of(context.batch.numpy(), context.labels.numpy(), condition)
        signal = self.module.eval().gene_signal.cpu().numpy()
        order = np.argsort(population, kind="stable")  # populations are drawn together
        for rows in np.split(order, range(batch_size, len(cells), batch_size)):
            part = cells.take(rows)
            share = keep_signal(drawn_shares(self.module, part, rng), part.library, population[rows], signal)
            mean = np.exp(share) * part.library[:, None]
            seen.add(part.dense(slice(None)), code[rows])
            drawn.add(self.module.likelihood.in_batches(part.context.batch).draw(mean, rng), code[rows])
        return PredictiveCheck(_by_gene(seen, drawn, self._var_names), _by_population(seen, drawn, names))

    def _group_of(self, data: AnnData, groupby: str | None) -> np.ndarray:
        """Name of every cell's population."""
        if groupby is None:
            return perturbation_labels(data, self.setup_keys).astype(str)
        if groupby not in data.obs:
            raise KeyError(f"`groupby` is {groupby!r}; `adata.obs` has {sorted(map(str, data.obs.columns))}.")
        return texts_of(obs_of(data)[groupby]).astype(str)


class _Sums:
    """Cells, and sums over them of counts, of their squares and of zeros, per population."""

    def __init__(self, n_groups: int, n_genes: int) -> None:
        self.n = np.zeros(n_groups)
        self.x, self.square, self.zeros = np.zeros((3, n_groups, n_genes))

    def add(self, counts: np.ndarray, code: np.ndarray) -> None:
        """Add the cells (n, n_genes) of these populations (n,)."""
        x = counts.astype(np.float64)
        member = sparse.csr_matrix((np.ones(len(x)), (code, np.arange(len(x)))), (len(self.n), len(x)))
        self.n += np.asarray(member.sum(axis=1)).ravel()
        for total, values in ((self.x, x), (self.square, x**2), (self.zeros, x == 0)):
            total += member @ values

    def statistics(self, pooled: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, variance and share of zeros, each (n_groups, n_genes); of all cells together (1, n_genes)."""
        parts = (self.n[:, None], self.x, self.square, self.zeros)
        n, x, square, zeros = (part.sum(axis=0, keepdims=True) for part in parts) if pooled else parts
        return x / n, np.maximum(square / n - (x / n) ** 2, 0.0), zeros / n


def _by_gene(seen: _Sums, drawn: _Sums, names: Sequence[str]) -> pd.DataFrame:
    columns = {}
    for ending, sums in (("", seen), ("_drawn", drawn)):
        for name, values in zip(("mean", "variance", "zeros"), sums.statistics(pooled=True), strict=True):
            columns[name + ending] = values[0]
    return pd.DataFrame(columns, index=pd.Index(names, name="gene"))


def _by_population(seen: _Sums, drawn: _Sums, names: np.ndarray) -> pd.DataFrame:
    rows = []
    of_seen, of_drawn = seen.statistics(), drawn.statistics()
    for i in range(len(names)):
        mean, variance, zeros = (part[i] for part in of_seen)
        usable = mean >= _MIN_MEAN
        mean_drawn, variance_drawn, zeros_drawn = (part[i] for part in of_drawn)
        several = usable & (variance > 0)
        rows.append(
            {
                "n_cells": int(seen.n[i]),
                "library": mean.sum(),
                "library_drawn": mean_drawn.sum(),
                "mean_ratio": _median(mean_drawn[usable] / mean[usable]),
                "variance_ratio": _median(variance_drawn[several] / variance[several]),
                "zeros_difference": float((zeros_drawn - zeros)[usable].mean()) if usable.any() else np.nan,
            }
        )
    return pd.DataFrame(rows, index=pd.Index(names, name="population"))


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
