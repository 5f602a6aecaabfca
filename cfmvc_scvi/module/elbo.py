"""Terms of the evidence lower bound beside the reconstruction: draws of the latents and their KL divergences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class ElboTerms:
    """Terms of the negative evidence lower bound, each a scalar: the mean over the cells of a batch.

    Attributes
    ----------
    reconstruction
        Negative log-likelihood.
    kl_intrinsic, kl_technical
        KL divergence of each latent.
    weights
        Weight of each KL term in the loss.
    """

    reconstruction: Tensor
    kl_intrinsic: Tensor
    kl_technical: Tensor
    weights: tuple[float, float]

    def loss(self, kl_weight: Tensor | float = 1.0) -> Tensor:
        """What is minimised; ``kl_weight`` scales both KL terms."""
        weighted = self.weights[0] * self.kl_intrinsic + self.weights[1] * self.kl_technical
        return self.reconstruction + kl_weight * weighted


def at_least_float32(x: Tensor) -> Tensor:
    """The same in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def gaussian_draw(mean: Tensor, logvar: Tensor) -> Tensor:
    """One draw of normal distributions, differentiable, in at least float32."""
    mean, logvar = at_least_float32(mean), at_least_float32(logvar)
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> tuple[Tensor, Tensor]:
    r"""KL divergences of diagonal normals, side by side, from a standard normal prior and from one that is given.

    .. math:: KL = \frac{1}{2} \left[ e^{l - l_0} + (m - m_0)^2 e^{-l_0} - 1 - (l - l_0) \right]

    summed over dimensions. One function with its analytic gradient: its some forty small steps, each recorded, would
    cost a small batch more than the layers between the latents and the genes.

    Parameters
    ----------
    mean, logvar
        Means :math:`m` and log-variances :math:`l`, shape (n, n_standard + n_given).
    prior_mean, prior_logvar
        Means :math:`m_0` and log-variances :math:`l_0` of the prior of the last dimensions, shape (n, n_given).

    Returns
    -------
    KL divergence of the first dimensions from the standard normal, and of the last ones from the prior that is given:
    scalars, means over the rows.
    """
    arguments = (at_least_float32(x) for x in (mean, logvar, prior_mean, prior_logvar))
    return _GaussianKL.apply(*arguments)


class _GaussianKL(torch.autograd.Function):
    """See :func:`gaussian_kl`."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, cut = len(mean), mean.shape[1] - prior_mean.shape[1]
        distance, difference = mean.clone(), logvar.clone()
        distance[:, cut:] -= prior_mean
        difference[:, cut:] -= prior_logvar
        scaled = distance.clone()  # the distance over the prior's variance: the gradient by the mean
        scaled[:, cut:] *= (-prior_logvar).exp()
        growth = difference.expm1()
        square = distance.mul_(scaled)
        ctx.save_for_backward(scaled, growth, square[:, cut:])
        twice = (square + growth).sub_(difference)
        first, last = (twice[:, part].sum() / (2 * n) for part in (slice(cut), slice(cut, None)))
        return first, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_first: Tensor, by_last: Tensor) -> tuple[Tensor, ...]:
        scaled, growth, square = ctx.saved_tensors
        cut = scaled.shape[1] - square.shape[1]
        upstream = torch.cat([by_first.expand(cut), by_last.expand(square.shape[1])]) / len(scaled)
        by_mean, half = scaled * upstream, 0.5 * upstream
        by_prior_logvar = (growth[:, cut:] + square).mul_(-half[cut:])
        return by_mean, growth * half, -by_mean[:, cut:], by_prior_logvar
