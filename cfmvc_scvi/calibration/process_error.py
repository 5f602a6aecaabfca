"""How far the Gaussian process over populations may be off: the error of its mean effects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from cfmvc_scvi.calibration.blocks import blocks_by_size, gene_slices, pieces, sample_components
from cfmvc_scvi.calibration.covariance import JITTER, as_theta, covariance
from cfmvc_scvi.calibration.process import BLOCK, SAMPLE, EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_query import Conditions, QuerySolver, related

#: Genes that the misfit is found from where populations are sampled.
_SOME_GENES = 300


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

    def sizes(self, data: MeanEffects) -> np.ndarray:
        """What every indicator adds to the kernel, for vectors of length 1, shape (3, n_genes)."""
        return self.kappa @ amplitude_pair(data)


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


def effect_error(
    gp: EffectGP,
    data: MeanEffects,
    queries: Conditions,
    misfit: Misfit | None = None,
    genes: np.ndarray | None = None,
) -> EffectError:
    r"""Effects of perturbation vectors in contexts by the process, and the covariance of their errors.

    The process predicts a weighted sum of the observed effects, :math:`\hat w = m_* + A^\top (y - m)` with
    :math:`A = (K + s_3 V)^{-1} K_*`, V the sampling variances. Its fitted noise :math:`s_3` is often below 1, because
    the kernel takes part of the noise for effect; the posterior variance that goes with it is then too small where
    the condition was measured. The sampling variance however is known. So the error of the same weighted sum is stated
    with it, and with a kernel :math:`K' = K + U` to which the misfit is added:

    .. math:: \operatorname{cov}(w - \hat w) = \underbrace{K'_{**} - A^\top K'_* - K_*'^\top A + A^\top K' A}_{process}
              + \underbrace{\max(s_3, 1)\, A^\top V A}_{noise}

    :math:`A^\top K A` is worked out as :math:`A^\top (K_* - s_3 V A)`, and only the populations that share features
    with the conditions, directly or by way of others, take part.

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
    genes
        Places of the genes that are asked for; ``None`` is all.
    """
    sizes = torch.from_numpy((Misfit.none() if misfit is None else misfit).sizes(data))
    if genes is not None:
        sizes, gp, data = sizes[:, genes], gp.at_genes(genes), data.at_genes(genes)
    near = related(data, queries)
    solver, sharing = QuerySolver(gp, near, queries), shared_parts(near, queries)
    n, k = len(near.effect), len(queries.context)
    theta, own = as_theta(gp.hyper), torch.eye(k, dtype=torch.float64)
    means, processes, noises, roots = [], [], [], []
    for here in gene_slices(data.effect.shape[1], (n + k) ** 2 if solver.space is None else (n + k) * k, BLOCK):
        prior, shared, weights = solver.solve(theta, here)
        before, residual = solver.means(here)
        means.append(before + (weights.mT @ residual[..., None]).squeeze(-1))
        noise = solver.variance(here)[..., None]
        inner = weights.mT @ (shared - (gp.hyper["noise"] * noise + JITTER) * weights)
        mixed = weights.mT @ shared
        process = prior - mixed - mixed.mT + inner
        left = torch.cat([-weights, own.expand(len(weights), k, k)], dim=1)
        for (group, length), size in zip(sharing, sizes[:, here], strict=True):
            summed = left.new_zeros(len(left), int(group.max()) + 1, k).index_add_(1, group, length[:, None] * left)
            process = process + size[:, None, None] * (summed.mT @ summed)
        processes.append(process)
        noises.append(max(gp.hyper["noise"], 1.0) * (weights.mT @ (noise * weights)))
        if near.freedom is not None:
            parts = max(gp.hyper["noise"], 1.0) * noise * weights**2
            root = torch.from_numpy(near.freedom[:, here].T.astype(np.float64) ** -0.5)[..., None]
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
    genes, weighted by the inverse variance of a squared residual without misfit. Of more than 300 populations a random
    sample serves, as in the fit of the hyperparameters, and 300 genes.
    """
    amplitudes = torch.from_numpy(amplitude_pair(data))
    chosen = np.arange(data.effect.shape[1])
    if len(data.effect) > SAMPLE:
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:_SOME_GENES])
    data = data.take(sample_components(data.component, SAMPLE))
    kind, combined, length = data.members.kinds(), data.members.combined(), data.members.length()
    theta, normal, target = as_theta(gp.hyper), np.zeros((6, 6)), np.zeros(6)
    for size in blocks_by_size(data.component):
        for rows, slices in pieces(size, len(chosen), BLOCK // 4):
            geometry = gp.geometry(data, rows)
            parts = sharing(kind[rows], data.context[rows], combined[rows], length[rows])
            alike = torch.from_numpy(kind[rows][:, :, None] == kind[rows][:, None, :])
            groupings = [torch.eye(rows.shape[1], dtype=torch.bool).expand_as(alike), alike]
            for here in slices:
                genes = chosen[here]
                terms = gp.terms(data, geometry, genes, rows)
                matrix, residual = covariance(theta, *terms)
                precision = torch.linalg.inv(matrix)
                kernel = matrix - torch.diag_embed(gp.hyper["noise"] * terms.variance + JITTER)
                noise = max(gp.hyper["noise"], 1.0) * terms.variance
                for alone in groupings:
                    weights = left_out_weights(precision, alone)
                    expected = ((weights @ kernel) * weights).sum(dim=-1)
                    expected = expected + (weights**2 @ noise[..., None]).squeeze(-1)
                    excess = (weights @ residual[..., None]).squeeze(-1) ** 2 / expected - 1.0
                    share = torch.stack([((weights @ part) * weights).sum(dim=-1) / expected for part in parts])
                    design = torch.einsum("igbm,jg->gbmij", share, amplitudes[:, genes]).reshape(-1, 6).numpy()
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


def left_out_weights(precision: Tensor, alike: Tensor) -> Tensor:
    """Weights of the residuals when the populations of each one's group are left out.

    Parameters
    ----------
    precision
        Inverse covariances, shape (..., size, size).
    alike
        Whether two populations are of one group, broadcast to that shape.
    """
    return torch.linalg.solve(precision * alike, precision)  # groups do not mix in the first matrix


def sharing(kind: np.ndarray, context: np.ndarray, combined: np.ndarray, length: np.ndarray) -> Tensor:
    """Product of two conditions' lengths where they share what the parts of a misfit say.

    Parameters
    ----------
    kind, context, combined, length
        Of conditions in blocks, shape (n_blocks, size): a number for each different perturbation vector, the context,
        whether several were given together, and the length of the vector.

    Returns
    -------
    Tensor (3, n_blocks, size, size).
    """
    first, second = np.s_[:, :, None], np.s_[:, None, :]
    product = (kind[first] == kind[second]) * (length[first] * length[second])
    same_context = context[first] == context[second]
    parts = [product * same_context, product, product * (combined[first] & combined[second])]
    return torch.from_numpy(np.stack(parts)).double()


def shared_parts(data: MeanEffects, queries: Conditions) -> list[tuple[Tensor, Tensor]]:
    """The same as groups: for each part, the group of every population and condition, and its length in it."""
    kind, in_context, length, combined = queries.after(data)
    _, both = np.unique(np.stack([kind, in_context]), axis=1, return_inverse=True)
    numbers = [torch.from_numpy(np.asarray(group, dtype=np.int64).ravel()) for group in (both, kind, kind)]
    lengths = [torch.from_numpy(values) for values in (length, length, length * combined)]
    return list(zip(numbers, lengths, strict=True))


def amplitude_pair(data: MeanEffects) -> np.ndarray:
    """Mean squared effect less its sampling variance, not negative: every gene's own, and the mean; (2, n_genes)."""
    own = data.amplitudes[1]
    return np.stack([own, np.full_like(own, own.mean())])
