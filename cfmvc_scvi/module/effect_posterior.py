"""How far the Gaussian process over populations may be off: the error of its mean effects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from cfmvc_scvi.module.effect_gp import _START, EffectGP, MeanEffects, _covariance

#: Numbers of one block of covariances held at a time (64 MB of float64).
_BLOCK = 8_000_000


@dataclass(frozen=True)
class Misfit:
    r"""What the kernel of the process does not hold, relative to the mean squared effect of a gene.

    .. math:: \operatorname{cov}\left[u(p, c), u(p', c')\right] = \lVert p \rVert \lVert p' \rVert \, a^+_g \left(
              \kappa_p \mathbb 1[p = p'] + \kappa_c \mathbb 1[p = p', c = c'] \right)

    with :math:`a^+_g` the mean squared observed effect of the gene less its sampling variance. The first part is common
    to all contexts of a perturbation (an interaction, a saturation), the second belongs to one context.

    Attributes
    ----------
    perturbation, context
        :math:`\kappa_p` and :math:`\kappa_c`.
    """

    perturbation: float = 0.0
    context: float = 0.0


@dataclass(frozen=True)
class EffectError:
    """Estimated mean effects of some conditions and the covariance of their errors, every gene apart.

    Attributes
    ----------
    mean
        Estimates, shape (n_conditions, n_genes).
    process
        Part of the covariance that comes from what no population shows, shape (n_genes, n_conditions, n_conditions).
    noise
        Part that comes from the populations' finite numbers of cells, same shape.
    """

    mean: np.ndarray
    process: np.ndarray
    noise: np.ndarray


def effect_error(
    gp: EffectGP, data: MeanEffects, p: np.ndarray, context: np.ndarray, misfit: Misfit | None = None
) -> EffectError:
    r"""Effects of perturbation vectors in contexts by the process, and the covariance of their errors.

    The process predicts a weighted sum of the observed effects, :math:`\hat w = m_* + A^\top (y - m)` with
    :math:`A = (K + s_3 V)^{-1} K_*`, V the sampling variances. Its fitted noise :math:`s_3` is often below 1, because
    the kernel takes part of the noise for effect; the posterior variance that goes with it is then too small where
    the condition was measured. The sampling variance however is known. So the error of the same weighted sum is stated
    with it, and with a kernel :math:`K' = K + U` to which the misfit is added:

    .. math:: \operatorname{cov}(w - \hat w) = \underbrace{K'_{**} - A^\top K'_* - K_*'^\top A + A^\top K' A}_{process}
              + \underbrace{\max(s_3, 1)\, A^\top V A}_{noise}

    (Rasmussen and Williams, 2006, section 2.6: linear smoothers; with :math:`s_3 \ge 1` and without misfit the sum is
    the posterior covariance of their eq. 2.24.)

    Parameters
    ----------
    gp
        The fitted process.
    data
        The populations it was fitted on.
    p
        Perturbation vectors, shape (n_conditions, n_features).
    context
        Index of the context of each, shape (n_conditions,).
    misfit
        What the kernel lacks; ``None`` is nothing.
    """
    n = len(data.p)
    misfit = Misfit() if misfit is None else misfit
    queries = _with_queries(data, p, context)
    lacking = misfit.perturbation * _sharing(queries, within=False) + misfit.context * _sharing(queries, within=True)
    means, processes, noises = [], [], []
    for genes, kernel, fitted, noise, residual in _blocks(gp, queries):
        weights = torch.linalg.solve(kernel[:, :n, :n] + torch.diag_embed(fitted[:, :n]), kernel[:, :n, n:])
        means.append(-residual[:, n:] + (weights.mT @ residual[:, :n, None]).squeeze(-1))
        kernel = kernel + _net_amplitude(data)[genes, None, None] * lacking
        mixed = weights.mT @ kernel[:, :n, n:]
        processes.append(kernel[:, n:, n:] - mixed - mixed.mT + weights.mT @ kernel[:, :n, :n] @ weights)
        noises.append(weights.mT @ (noise[:, :n, None] * weights))
    return EffectError(torch.cat(means).T.numpy(), torch.cat(processes).numpy(), torch.cat(noises).numpy())


def find_misfit(gp: EffectGP, data: MeanEffects) -> Misfit:
    r"""Misfit of the kernel, from populations that are left out.

    Every population is predicted from all others, and from those of other perturbations. The residuals are weighted
    sums of the observed effects,

    .. math:: r_B = W (y - m), \qquad W = \left(\left[M\right]_{BB}\right)^{-1} M_{B \cdot}, \qquad M = (K + s_3 V)^{-1}

    for each group B left out (Rasmussen and Williams, 2006, section 5.4.2, for single populations), so their expected
    squares are linear in :math:`\kappa_p` and :math:`\kappa_c`. These are found by non-negative least squares over all
    populations and genes, weighted by the inverse variance of a squared residual without misfit.
    """
    same = np.unique(data.p, axis=0, return_inverse=True)[1].ravel()
    groupings = [np.arange(len(same)), same]
    parts = [_sharing(data, within=within) for within in (False, True)]
    normal, target = np.zeros((2, 2)), np.zeros(2)
    for genes, kernel, fitted, noise, residual in _blocks(gp, data):
        precision = torch.linalg.inv(kernel + torch.diag_embed(fitted))
        for group in groupings:
            weights = _left_out_weights(precision, group)
            expected = ((weights @ kernel) * weights).sum(dim=-1) + (weights**2 @ noise[..., None]).squeeze(-1)
            excess = (weights @ residual[..., None]).squeeze(-1) ** 2 - expected
            amplitude = _net_amplitude(data)[genes, None]
            columns = [amplitude * ((weights @ part) * weights).sum(dim=-1) / expected for part in parts]
            design = torch.stack(columns, dim=-1).reshape(-1, 2).numpy()
            normal += design.T @ design
            target += design.T @ (excess / expected).reshape(-1).numpy()
    if not normal.diagonal().all():
        return Misfit()
    factor = np.linalg.cholesky(normal + 1e-9 * np.diag(normal.diagonal()))
    found, _ = nnls(factor.T, np.linalg.solve(factor, target))
    return Misfit(*found.tolist())


def _left_out_weights(precision: Tensor, group: np.ndarray) -> Tensor:
    """Weights (genes, n, n) of the residuals when the populations of each one's group are left out."""
    weights = torch.empty_like(precision)
    for g in np.unique(group):
        rows = torch.from_numpy(np.flatnonzero(group == g))
        weights[:, rows] = torch.linalg.solve(precision[:, rows[:, None], rows[None, :]], precision[:, rows])
    return weights


def _sharing(data: MeanEffects, *, within: bool) -> Tensor:
    """Lengths of two populations' vectors where they are of one perturbation (and context), else 0; shape (n, n)."""
    same = np.unique(data.p, axis=0, return_inverse=True)[1].ravel()
    alike = same[:, None] == same[None, :]
    if within:
        alike &= data.context[:, None] == data.context[None, :]
    length = np.linalg.norm(data.p, axis=1)
    return torch.from_numpy(alike * np.outer(length, length)).double()


def _net_amplitude(data: MeanEffects) -> Tensor:
    """Mean squared effect of every gene less its sampling variance, not negative, shape (n_genes,)."""
    return torch.from_numpy(np.maximum((data.effect**2 - data.variance).mean(axis=0), 0.0)).double()


def _with_queries(data: MeanEffects, p: np.ndarray, context: np.ndarray) -> MeanEffects:
    """The populations, followed by conditions that were not observed: no effect and no noise of their own."""
    blank = np.zeros((len(p), data.effect.shape[1]))
    return MeanEffects(
        effect=np.concatenate([data.effect, blank]),
        variance=np.concatenate([data.variance, blank]),
        p=np.concatenate([data.p, p]),
        context=np.concatenate([data.context, context]),
    )


def _blocks(gp: EffectGP, data: MeanEffects) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Some genes at a time: kernel (genes, n, n), noise as fitted and as known, residual from the mean (genes, n)."""
    process = replace(gp, state=gp.state | {"p": data.p.astype(np.float64), "context": data.context})
    theta = torch.tensor([*np.log([gp.hyper[name] for name in _START]), gp.hyper["mean_slope"]]).double()
    n_genes = data.effect.shape[1]
    size = max(1, _BLOCK // len(data.p) ** 2)
    for start in range(0, n_genes, size):
        genes = slice(start, min(start + size, n_genes))
        terms = process._terms(data, np.arange(genes.start, genes.stop))
        variance = terms[-1]
        fitted = gp.hyper["noise"] * variance + 1e-6  # the constant keeps the covariance of the process invertible
        covariance, residual = _covariance(theta, *terms)
        kernel = covariance - torch.diag_embed(fitted)
        yield genes, kernel, fitted, max(gp.hyper["noise"], 1.0) * variance, residual
