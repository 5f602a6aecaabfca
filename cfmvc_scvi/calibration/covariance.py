"""Covariance of observed mean effects between populations, by block, and its marginal likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Start values of the shared hyperparameters, on the log scale.
START = {"length": 1.0, "common": 0.3, "context": 0.2, "slope": 0.05, "noise": 0.6, "pair": 0.1}
#: Keeps the covariance of the process invertible.
JITTER = 1e-6


class Geometry(NamedTuple):
    """What the covariances of all genes in blocks of populations have in common, float64.

    Attributes
    ----------
    overlap, pairs, distance
        Inner products of the perturbation vectors and of their pairs, and distances of the contexts, shape (n_blocks,
        size, size).
    length
        Lengths of the perturbation vectors, shape (n_blocks, size).
    """

    overlap: Tensor
    pairs: Tensor
    distance: Tensor
    length: Tensor


class Terms(NamedTuple):
    """What the covariance of some genes in blocks of populations is made of, float64.

    Attributes
    ----------
    overlap, pairs, distance
        As in :class:`Geometry`.
    x, x_strength
        Centred control level of the genes in the contexts, and that times the lengths of the perturbation vectors,
        shape (n_genes, n_blocks, size).
    amplitude
        Mean squared effects of the genes, shape (n_genes,).
    effect, variance
        Observed effects and their sampling variances, shape (n_genes, n_blocks, size).
    """

    overlap: Tensor
    pairs: Tensor
    distance: Tensor
    x: Tensor
    x_strength: Tensor
    amplitude: Tensor
    effect: Tensor
    variance: Tensor


def as_theta(hyper: Mapping[str, float]) -> Tensor:
    """Hyperparameters as the functions of this module take them: logarithms, and the slope of the mean."""
    return torch.tensor([*np.log([hyper[name] for name in START]), hyper["mean_slope"]], dtype=torch.float64)


def kernel(
    theta: Tensor, overlap: Tensor, pairs: Tensor, distance: Tensor, amplitude: Tensor, x: Tensor, x_other: Tensor
) -> Tensor:
    """Covariance of effects without noise, shape (n_genes, ..., n, m).

    Parameters
    ----------
    theta
        Hyperparameters.
    overlap, pairs, distance
        As in :class:`Terms`, shape (..., n, m).
    amplitude
        Shape (n_genes,).
    x, x_other
        Shapes (n_genes, ..., n) and (n_genes, ..., m).
    """
    length, common, context, slope, _, pair = theta[:6].exp()
    shared = common + context * torch.exp(-distance / (2 * length))
    amplitude = amplitude.reshape(-1, *[1] * overlap.dim())
    return amplitude * (overlap * shared + pair * pairs) + overlap * (slope * x[..., :, None] * x_other[..., None, :])


def covariance(theta: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance (n_genes, n_blocks, size, size) of the observed effects and their residuals from the mean.

    ``given`` are :class:`Terms`; residuals have shape (n_genes, n_blocks, size).
    """
    terms = Terms(*given)
    smooth = kernel(theta, terms.overlap, terms.pairs, terms.distance, terms.amplitude, terms.x, terms.x)
    noise = torch.diag_embed(theta[4].exp() * terms.variance + JITTER)
    return smooth + noise, terms.effect - theta[6] * terms.x_strength


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solution of symmetric positive definite systems, shapes (..., size, size) and (..., size)."""
    if matrix.shape[-1] == 1:
        return right / matrix[..., 0]
    return torch.cholesky_solve(right.unsqueeze(-1), torch.linalg.cholesky(matrix)).squeeze(-1)


def negative_log_likelihood(theta: Tensor, *given: Tensor) -> Tensor:
    """Of all blocks of :class:`Terms`, mean over genes, but for a constant."""
    matrix, residual = covariance(theta, *given)
    if matrix.shape[-1] == 1:
        diagonal = matrix[..., 0]
        return (0.5 * (residual.square() / diagonal + diagonal.log())).sum(dim=(1, 2)).mean()
    factor = torch.linalg.cholesky(matrix)
    z = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return (0.5 * z.square().sum(dim=-1) + log_det).sum(dim=1).mean()
