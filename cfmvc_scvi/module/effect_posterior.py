"""How far the Gaussian process over populations may be off: the error of its mean effects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cfmvc_scvi.module.effect_gp import _START, EffectGP, MeanEffects, _covariance

#: Numbers of one block of covariances held at a time (64 MB of float64).
_BLOCK = 8_000_000


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


@dataclass(frozen=True)
class LeftOut:
    """Observed effects minus their prediction from the other groups of populations; arrays (n, n_genes).

    Attributes
    ----------
    residual
        Observed minus predicted.
    process, noise
        The two parts of its variance; ``noise`` includes that of the observation itself.
    """

    residual: np.ndarray
    process: np.ndarray
    noise: np.ndarray


def effect_error(gp: EffectGP, data: MeanEffects, p: np.ndarray, context: np.ndarray) -> EffectError:
    r"""Effects of perturbation vectors in contexts by the process, and the covariance of their errors.

    The process predicts a weighted sum of the observed effects, :math:`\hat w = m_* + A^\top (y - m)` with
    :math:`A = (K + s_3 V)^{-1} K_*`, V the sampling variances. Its fitted noise :math:`s_3` is often below 1, because
    the kernel takes part of the noise for effect; the posterior variance that goes with it is then too small where
    the condition was measured. The sampling variance however is known, so the error of the same weighted sum is stated
    with it:

    .. math:: \operatorname{cov}(w - \hat w) = \underbrace{K_{**} - A^\top K_* - K_*^\top A + A^\top K A}_{process}
              + \underbrace{\max(s_3, 1)\, A^\top V A}_{noise}

    (Rasmussen and Williams, 2006, section 2.6: linear smoothers; for :math:`s_3 \ge 1` the sum is the posterior
    covariance of their eq. 2.24.)

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
    """
    n = len(data.p)
    means, processes, noises = [], [], []
    for kernel, fitted, noise, residual in _blocks(gp, _with_queries(data, p, context)):
        inner, cross = kernel[:, :n, :n], kernel[:, :n, n:]
        weights = torch.linalg.solve(inner + torch.diag_embed(fitted[:, :n]), cross)
        mixed = weights.mT @ cross
        means.append(-residual[:, n:] + (weights.mT @ residual[:, :n, None]).squeeze(-1))
        processes.append(kernel[:, n:, n:] - mixed - mixed.mT + weights.mT @ inner @ weights)
        noises.append(weights.mT @ (noise[:, :n, None] * weights))
    return EffectError(torch.cat(means).T.numpy(), torch.cat(processes).numpy(), torch.cat(noises).numpy())


def left_out(gp: EffectGP, data: MeanEffects, group: np.ndarray) -> LeftOut:
    r"""Every population predicted from those of all other groups.

    .. math:: r_B = W y, \qquad W = \left(\left[M\right]_{BB}\right)^{-1} M_{B \cdot}, \qquad M = (K + s_3 V)^{-1}

    for each group B, without a further fit (Rasmussen and Williams, 2006, section 5.4.2, for single populations); the
    variance of the sum is stated as in :func:`effect_error`. The hyperparameters are those of all populations.

    Parameters
    ----------
    group
        Group of every population, shape (n,): populations of one group are left out together.
    """
    groups = [torch.from_numpy(np.flatnonzero(group == g)) for g in np.unique(group)]
    parts: list[tuple[Tensor, ...]] = []
    for kernel, fitted, noise, residual in _blocks(gp, data):
        precision = torch.linalg.inv(kernel + torch.diag_embed(fitted))
        weights = torch.empty_like(precision)
        for rows in groups:
            weights[:, rows] = torch.linalg.solve(precision[:, rows[:, None], rows[None, :]], precision[:, rows])
        error = (weights @ residual[..., None]).squeeze(-1)
        process = ((weights @ kernel) * weights).sum(dim=-1)
        parts.append((error, process, (weights**2 @ noise[..., None]).squeeze(-1)))
    return LeftOut(*(torch.cat(part).T.numpy() for part in zip(*parts, strict=True)))


def _with_queries(data: MeanEffects, p: np.ndarray, context: np.ndarray) -> MeanEffects:
    """The populations, followed by conditions that were not observed: no effect and no noise of their own."""
    blank = np.zeros((len(p), data.effect.shape[1]))
    return MeanEffects(
        effect=np.concatenate([data.effect, blank]),
        variance=np.concatenate([data.variance, blank]),
        p=np.concatenate([data.p, p]),
        context=np.concatenate([data.context, context]),
    )


def _blocks(gp: EffectGP, data: MeanEffects) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Kernel (genes, n, n), noise as fitted and as known, and residual from the mean, each (genes, n), in blocks."""
    process = replace(gp, state=gp.state | {"p": data.p.astype(np.float64), "context": data.context})
    theta = torch.tensor([*np.log([gp.hyper[name] for name in _START]), gp.hyper["mean_slope"]]).double()
    n_genes = data.effect.shape[1]
    size = max(1, _BLOCK // len(data.p) ** 2)
    for start in range(0, n_genes, size):
        terms = process._terms(data, np.arange(start, min(start + size, n_genes)))
        variance = terms[-1]
        fitted = gp.hyper["noise"] * variance + 1e-6  # the constant keeps the covariance of the process invertible
        covariance, residual = _covariance(theta, *terms)
        yield covariance - torch.diag_embed(fitted), fitted, max(gp.hyper["noise"], 1.0) * variance, residual
