"""Terms of the evidence lower bound beside the reconstruction: draws of the latents and their KL divergences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cfmvc_scvi._types import at_least_float32


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

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """What is minimised; ``kl_weight`` scales both KL terms."""
        loss = torch.add(self.reconstruction, self.kl_intrinsic, alpha=kl_weight * self.weights[0])
        return torch.add(loss, self.kl_technical, alpha=kl_weight * self.weights[1])


def draw_with_kl(
    mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One draw of diagonal normals, and their KL divergences from a standard normal prior and from one that is given.

    .. math:: z = m + e^{l / 2} \epsilon, \qquad
              KL = \frac{1}{2} \left[ e^{l - l_0} + (m - m_0)^2 e^{-l_0} - 1 - (l - l_0) \right]

    with :math:`\epsilon` from a standard normal, and KL summed over dimensions. One function with its analytic
    gradient: its some fifty small steps, each recorded, would cost a small batch more than the layers between the
    latents and the genes.

    Parameters
    ----------
    mean, logvar
        Means :math:`m` and log-variances :math:`l`, shape (n, n_standard + n_given).
    prior_mean, prior_logvar
        Means :math:`m_0` and log-variances :math:`l_0` of the prior of the last dimensions, shape (n, n_given).

    Returns
    -------
    The draw, shape (n, n_standard + n_given). KL divergence of the first dimensions from the standard normal, and of
    the last ones from the prior that is given: scalars, means over the rows. All in at least float32.
    """
    arguments = (at_least_float32(x) for x in (mean, logvar, prior_mean, prior_logvar))
    return _DrawWithKL.apply(*arguments)


class _DrawWithKL(torch.autograd.Function):
    """See :func:`draw_with_kl`."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, cut = len(mean), mean.shape[1] - prior_mean.shape[1]
        spread = (0.5 * logvar).exp_().mul_(torch.randn_like(mean))
        distance, difference = mean.clone(), logvar.clone()
        distance[:, cut:] -= prior_mean
        difference[:, cut:] -= prior_logvar
        scaled = distance.clone()  # the distance over the prior's variance: the gradient by the mean
        scaled[:, cut:] *= (-prior_logvar).exp()
        growth = difference.expm1()
        square = distance.mul_(scaled)
        ctx.save_for_backward(spread, scaled, growth, square[:, cut:])
        twice = (square + growth).sub_(difference)
        first, last = (twice[:, part].sum() / (2 * n) for part in (slice(cut), slice(cut, None)))
        return mean + spread, first, last

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, by_draw: Tensor, by_first: Tensor, by_last: Tensor
    ) -> tuple[Tensor, ...]:
        spread, scaled, growth, square = ctx.saved_tensors
        cut = scaled.shape[1] - square.shape[1]
        upstream = torch.cat([by_first.expand(cut), by_last.expand(square.shape[1])]).div_(len(scaled))
        half = 0.5 * upstream
        by_mean, by_logvar = scaled * upstream, growth * half
        by_prior_logvar = (growth[:, cut:] + square).mul_(-half[cut:])
        by_prior_mean = -by_mean[:, cut:]
        return by_mean.add_(by_draw), by_logvar.addcmul_(by_draw, spread, value=0.5), by_prior_mean, by_prior_logvar
