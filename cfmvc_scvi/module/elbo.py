"""Terms of the evidence lower bound beside the reconstruction: draws of the latents and their KL divergences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cfmvc_scvi._types import Part, at_least_float32, drawn


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
    mean: Float[Tensor, "n n_both"],
    logvar: Float[Tensor, "n n_both"],
    prior_mean: Float[Tensor, "n n_given"],
    prior_logvar: Float[Tensor, "n n_given"],
    part: Part | None = None,
) -> tuple[Float[Tensor, "n n_both"], Float[Tensor, ""], Float[Tensor, ""]]:
    r"""One draw of diagonal normals, and their KL divergences from a standard normal prior and from one that is given.

    .. math:: z = m + e^{l / 2} \epsilon, \qquad
              KL = \frac{1}{2} \left[ e^{l - l_0} + (m - m_0)^2 e^{-l_0} - 1 - (l - l_0) \right]

    with :math:`\epsilon` from a standard normal, and KL summed over dimensions.

    Parameters
    ----------
    mean, logvar
        Means :math:`m` and log-variances :math:`l`, shape (n, n_standard + n_given).
    prior_mean, prior_logvar
        Means :math:`m_0` and log-variances :math:`l_0` of the prior of the last dimensions, shape (n, n_given).
    part
        Which cells of a batch these are that several processes share.

    Returns
    -------
    The draw, shape (n, n_standard + n_given). KL divergence of the first dimensions from the standard normal, and of
    the last ones from the prior that is given: scalars, means over the rows. All in at least float32.
    """
    mean, logvar, prior_mean, prior_logvar = map(at_least_float32, (mean, logvar, prior_mean, prior_logvar))
    noise = drawn(lambda n: torch.randn(n, mean.shape[1], dtype=mean.dtype, device=mean.device), len(mean), part)
    draw = mean + (0.5 * logvar).exp() * noise
    n_standard = mean.shape[1] - prior_mean.shape[1]
    prior_mean, prior_logvar = (F.pad(x, (n_standard, 0)) for x in (prior_mean, prior_logvar))  # 0 in the first ones
    log_ratio = logvar - prior_logvar
    twice = log_ratio.expm1() - log_ratio + (mean - prior_mean).square() * (-prior_logvar).exp()
    kl = 0.5 * twice.sum(dim=0) / len(mean)
    return draw, kl[:n_standard].sum(), kl[n_standard:].sum()
