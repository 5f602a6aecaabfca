"""How far the Gaussian process over populations may be off: the error of its mean effects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from cfmvc_scvi.calibration.process import _BLOCK, _START, EffectGP, MeanEffects, _covariance


@dataclass(frozen=True)
class Misfit:
    r"""What the kernel of the process does not hold.

    .. math:: \operatorname{cov}\left[u_g(p, c), u_g(p', c')\right] = \lVert p \rVert \lVert p' \rVert \sum_{i=1}^{3}
              \mathbb 1_i \left( \kappa_{i1} a^+_g + \kappa_{i2} \bar a^+ \right)

    with :math:`a^+_g` the mean squared observed effect of the gene less its sampling variance and :math:`\bar a^+` its
    mean over genes. The indicators are: the same perturbation in the same context; the same perturbation (a saturation,
    say), in whatever context; the same combination of several (an interaction).

    Attributes
    ----------
    kappa
        Shape (3, 2), not negative.
    """

    kappa: np.ndarray

    @classmethod
    def none(cls) -> Misfit:
        """The kernel holds everything."""
        return cls(np.zeros((3, 2)))

    def kernel(self, data: MeanEffects, conditions: Conditions, genes: slice = slice(None)) -> Tensor:
        """What is to be added to the kernel of some genes, shape (n_genes, n, n)."""
        size = torch.from_numpy(self.kappa) @ _amplitudes(data)[:, genes]
        return torch.einsum("ig,inm->gnm", size, conditions.sharing())


@dataclass(frozen=True)
class Conditions:
    """Perturbations in contexts.

    Attributes
    ----------
    members
        Weighted vectors of the perturbations given together, shape (n, most members, n_features); rows of zeros where
        there are fewer.
    context
        Index of the context of each, shape (n,).
    """

    members: np.ndarray
    context: np.ndarray

    @classmethod
    def of(cls, data: MeanEffects) -> Conditions:
        """Conditions of populations."""
        return cls(data.members, data.context)

    def followed_by(self, other: Conditions) -> Conditions:
        """These conditions, then the others."""
        most = max(self.members.shape[1], other.members.shape[1])
        members = [_padded(part.members, most) for part in (self, other)]
        return Conditions(np.concatenate(members), np.concatenate([self.context, other.context]))

    @property
    def p(self) -> np.ndarray:
        """Perturbation vectors, shape (n, n_features)."""
        return self.members.sum(axis=1, dtype=np.float64)

    @property
    def combined(self) -> np.ndarray:
        """Whether each is a combination of several perturbations, shape (n,)."""
        return (self.members != 0).any(axis=2).sum(axis=1) > 1

    @property
    def perturbation(self) -> np.ndarray:
        """A number for each different perturbation vector, shape (n,)."""
        return np.unique(self.p, axis=0, return_inverse=True)[1].ravel()

    def sharing(self) -> Tensor:
        """Product of two conditions' lengths where they share what the parts of a misfit say, shape (3, n, n)."""
        alike = self.perturbation[:, None] == self.perturbation[None, :]
        length = np.linalg.norm(self.p, axis=1)
        product = alike * np.outer(length, length)
        same_context = self.context[:, None] == self.context[None, :]
        both_combined = np.outer(self.combined, self.combined)
        return torch.from_numpy(np.stack([product * same_context, product, product * both_combined])).double()


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
        Part that comes from the populations' finite numbers of cells and samples, same shape.
    freedom
        Degrees of freedom of the noise of every condition, shape (n_conditions, n_genes); ``None`` is infinitely many.
    """

    mean: np.ndarray
    process: np.ndarray
    noise: np.ndarray
    freedom: np.ndarray | None = None

    def averaged(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Variance of the weighted mean over conditions and its degrees of freedom, (n_genes,) both.

        Variances between samples are of the same samples and genes in every condition, so their errors go together:
        with :math:`N` the noise part of the variance :math:`V`, :math:`\nu = \nu_N (V / N)^2` and :math:`\nu_N^{-1/2}`
        the mean of those of the conditions, weighted by their noise (Satterthwaite, 1946).
        """
        process, noise = (np.einsum("c,gcd,d->g", weights, part, weights) for part in (self.process, self.noise))
        if self.freedom is None:
            return process + noise, np.full_like(noise, np.inf)
        own = np.einsum("gcc->cg", self.noise) * weights[:, None] ** 2
        total, by_root = own.sum(axis=0), (own / np.sqrt(self.freedom)).sum(axis=0)
        root = np.divide(by_root, total, out=np.zeros_like(total), where=total != 0)
        uncertain = noise * root  # 0 without noise, and where its variance is known: infinitely many degrees of freedom
        freedom = np.divide(process + noise, uncertain, out=np.full_like(noise, np.inf), where=uncertain != 0) ** 2
        return process + noise, freedom


def effect_error(gp: EffectGP, data: MeanEffects, queries: Conditions, misfit: Misfit | None = None) -> EffectError:
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
    queries
        The conditions asked for.
    misfit
        What the kernel lacks; ``None`` is nothing.
    """
    n = len(data.effect)
    every = Conditions.of(data).followed_by(queries)
    misfit = Misfit.none() if misfit is None else misfit
    means, processes, noises, roots = [], [], [], []
    for genes, kernel, fitted, noise, residual in _blocks(gp, _with_blanks(data, every)):
        weights = torch.linalg.solve(kernel[:, :n, :n] + torch.diag_embed(fitted[:, :n]), kernel[:, :n, n:])
        means.append(-residual[:, n:] + (weights.mT @ residual[:, :n, None]).squeeze(-1))
        kernel = kernel + misfit.kernel(data, every, genes)
        mixed = weights.mT @ kernel[:, :n, n:]
        processes.append(kernel[:, n:, n:] - mixed - mixed.mT + weights.mT @ kernel[:, :n, :n] @ weights)
        noises.append(weights.mT @ (noise[:, :n, None] * weights))
        if data.freedom is not None:
            parts = noise[:, :n, None] * weights**2
            root = torch.from_numpy(data.freedom[:, genes].T ** -0.5)[..., None]
            roots.append((parts * root).sum(dim=1) / parts.sum(dim=1).clamp_min(1e-30))
    freedom = None
    if roots:
        with np.errstate(divide="ignore"):
            freedom = torch.cat(roots).T.numpy() ** -2.0
    return EffectError(torch.cat(means).T.numpy(), torch.cat(processes).numpy(), torch.cat(noises).numpy(), freedom)


def find_misfit(gp: EffectGP, data: MeanEffects) -> Misfit:
    r"""Misfit of the kernel, from populations that are left out.

    Every population is predicted from all others, and from those of other perturbations. The residuals are weighted
    sums of the observed effects,

    .. math:: r_B = W (y - m), \qquad W = \left(\left[M\right]_{BB}\right)^{-1} M_{B \cdot}, \qquad M = (K + s_3 V)^{-1}

    for each group B left out (Rasmussen and Williams, 2006, section 5.4.2, for single populations), so their expected
    squares are linear in the :math:`\kappa`. These are found by non-negative least squares over all populations and
    genes, weighted by the inverse variance of a squared residual without misfit.
    """
    conditions = Conditions.of(data)
    groupings = [np.arange(len(data.effect)), conditions.perturbation]
    parts, amplitudes = conditions.sharing(), _amplitudes(data)
    normal, target = np.zeros((6, 6)), np.zeros(6)
    for genes, kernel, fitted, noise, residual in _blocks(gp, data):
        precision = torch.linalg.inv(kernel + torch.diag_embed(fitted))
        for group in groupings:
            weights = _left_out_weights(precision, group)
            expected = ((weights @ kernel) * weights).sum(dim=-1) + (weights**2 @ noise[..., None]).squeeze(-1)
            excess = (weights @ residual[..., None]).squeeze(-1) ** 2 / expected - 1.0
            share = torch.stack([((weights @ part) * weights).sum(dim=-1) / expected for part in parts])
            design = torch.einsum("ign,jg->gnij", share, amplitudes[:, genes]).reshape(-1, 6).numpy()
            normal += design.T @ design
            target += design.T @ excess.reshape(-1).numpy()
    scale = np.sqrt(np.diag(normal))
    used = scale > 0  # without combinations, for instance, their part has nothing to be found from
    kappa = np.zeros(6)
    if used.any():
        normal = normal[np.ix_(used, used)] / np.outer(scale[used], scale[used])
        factor = np.linalg.cholesky(normal + 1e-6 * np.eye(used.sum()))
        kappa[used] = nnls(factor.T, np.linalg.solve(factor, target[used] / scale[used]))[0] / scale[used]
    return Misfit(kappa.reshape(3, 2))


def _left_out_weights(precision: Tensor, group: np.ndarray) -> Tensor:
    """Weights (genes, n, n) of the residuals when the populations of each one's group are left out."""
    weights = torch.empty_like(precision)
    for g in np.unique(group):
        rows = torch.from_numpy(np.flatnonzero(group == g))
        weights[:, rows] = torch.linalg.solve(precision[:, rows[:, None], rows[None, :]], precision[:, rows])
    return weights


def _amplitudes(data: MeanEffects) -> Tensor:
    """Mean squared effect less its sampling variance, not negative: every gene's own, and the mean; (2, n_genes)."""
    own = np.maximum(data.shares() @ (data.effect**2 - data.variance), 0.0)
    return torch.from_numpy(np.stack([own, np.full_like(own, own.mean())])).double()


def _with_blanks(data: MeanEffects, every: Conditions) -> MeanEffects:
    """The populations, followed by conditions that were not observed: no effect and no noise of their own."""
    blank = np.zeros((len(every.context) - len(data.effect), data.effect.shape[1]))
    return MeanEffects(
        effect=np.concatenate([data.effect, blank]),
        variance=np.concatenate([data.variance, blank]),
        members=every.members,
        context=every.context,
    )


def _padded(members: np.ndarray, most: int) -> np.ndarray:
    """Members with rows of zeros up to so many."""
    return np.pad(members, ((0, 0), (0, most - members.shape[1]), (0, 0)))


def _blocks(gp: EffectGP, data: MeanEffects) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Some genes at a time: kernel (genes, n, n), noise as fitted and as known, residual from the mean (genes, n)."""
    own = {"members": data.members.astype(np.float64), "p": Conditions.of(data).p, "context": data.context}
    process = replace(gp, state=gp.state | own)
    theta = torch.tensor([*np.log([gp.hyper[name] for name in _START]), gp.hyper["mean_slope"]]).double()
    n_genes = data.effect.shape[1]
    size = max(1, _BLOCK // len(data.effect) ** 2)
    for start in range(0, n_genes, size):
        genes = slice(start, min(start + size, n_genes))
        terms = process._terms(data, np.arange(genes.start, genes.stop))
        variance = terms[-1]
        fitted = gp.hyper["noise"] * variance + 1e-6  # the constant keeps the covariance of the process invertible
        covariance, residual = _covariance(theta, *terms)
        kernel = covariance - torch.diag_embed(fitted)
        yield genes, kernel, fitted, max(gp.hyper["noise"], 1.0) * variance, residual
