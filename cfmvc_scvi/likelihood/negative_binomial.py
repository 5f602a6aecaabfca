"""The negative binomial: likelihood, and counterfactual counts of an observed cell."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from scvi.distributions import NegativeBinomial as ScviNegativeBinomial
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._types import CountBatch
from cfmvc_scvi.likelihood.base import Likelihood
from cfmvc_scvi.likelihood.dispersion import moment_log_theta
from cfmvc_scvi.likelihood.fused_loss import reconstruction_loss

#: Bounds of the log of the inverse dispersion.
_LOG_THETA = (-12.0, 12.0)


class NegativeBinomial(Likelihood):
    r"""Negative binomial with an inverse dispersion :math:`\theta` per gene: variance = mean + mean² / theta.

    Parameters
    ----------
    n_genes
        Genes.
    n_batch
        Number of batches for one theta per gene and batch; ``None`` for one per gene. The attributes then have shape
        (n_batch, n_genes) instead of (n_genes,).

    Attributes
    ----------
    log_theta
        Log of theta, shape (n_genes,); it is read within [-12, 12]. While stage 1 trains it is learned beside the
        latent, afterwards it is what the latent leaves of the overdispersion around the means of populations, as cells
        outside training show (:meth:`leave_to_latent`).
    learned_log_theta
        What training ended with, shape (n_genes,), infinite before. It belongs to the decoded means of single cells,
        which hold part of their noise: changes of observed cells are predicted with it.
    start_log_theta
        Start value of training, shape (n_genes,): the overdispersion around the means of populations.
    """

    dispersions: ClassVar[tuple[str, ...]] = ("gene", "gene-batch")
    start_log_theta: Tensor
    learned_log_theta: Tensor

    def __init__(self, n_genes: int, n_batch: int | None = None) -> None:
        super().__init__(n_genes)
        shape = (n_genes,) if n_batch is None else (n_batch, n_genes)
        self.log_theta = nn.Parameter(torch.zeros(shape))
        for name in ("start_log_theta", "learned_log_theta"):
            self.register_buffer(name, torch.full(shape, torch.inf))

    def in_batches(self, batch: Int[Tensor, " n"]) -> Likelihood:
        """See :meth:`Likelihood.in_batches`; itself where theta is the same in all batches."""
        return self if self.log_theta.dim() == 1 else _OfCells(self, batch)

    @property
    def bounded_log_theta(self) -> Tensor:
        """Log of :attr:`theta`, kept within [-12, 12]."""
        return self.log_theta.clamp(*_LOG_THETA)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion, of the shape of :attr:`log_theta`."""
        return self.bounded_log_theta.exp()

    @torch.no_grad()
    def start_from(self, counts: np.ndarray, library: np.ndarray, stratum: np.ndarray, batch: np.ndarray) -> None:
        """See :meth:`Likelihood.start_from`; here the method of moments, :func:`moment_log_theta`."""
        start = moment_log_theta(counts, library, stratum)
        self.log_theta.copy_(torch.from_numpy(start))
        for code in np.unique(batch) if self.log_theta.dim() == 2 else ():
            own = batch == code
            of_batch = moment_log_theta(counts[own], library[own], stratum[own], towards=start)
            self.log_theta[code] = torch.from_numpy(of_batch)
        self.start_log_theta.copy_(self.log_theta)

    @property
    def overdispersion(self) -> np.ndarray | None:
        """See :attr:`Likelihood.overdispersion`; here that of the start values, the mean over batches."""
        known = not self.start_log_theta.isinf().any()
        by_batch = np.exp(-self.start_log_theta.cpu().numpy().astype(np.float64).reshape(-1, self.n_genes))
        return by_batch.mean(axis=0) if known else None

    @torch.no_grad()
    def leave_to_latent(self, explained: np.ndarray) -> None:
        """See :meth:`Likelihood.leave_to_latent`; theta becomes 1 / ((1 - explained) x overdispersion)."""
        self.back_to_training()
        self.learned_log_theta.copy_(self.log_theta)
        left = torch.from_numpy(np.log1p(-explained).astype(np.float32)).to(self.log_theta.device)
        self.log_theta.copy_(self.start_log_theta - left)

    @torch.no_grad()
    def back_to_training(self) -> None:
        """See :meth:`Likelihood.back_to_training`."""
        if not self.learned_log_theta.isinf().any():
            self.log_theta.copy_(self.learned_log_theta)
            self.learned_log_theta.fill_(torch.inf)

    def log_prob(
        self, x: Real[Tensor, "n n_genes"], log_mean: Float[Tensor, "*draws n n_genes"]
    ) -> Float[Tensor, "*draws n n_genes"]:
        """See :meth:`Likelihood.log_prob`."""
        return nb_log_prob(x, log_mean, self.theta)

    def distribution(self, mean: Tensor, share: Tensor) -> ScviNegativeBinomial:
        """See :meth:`Likelihood.distribution`."""
        return ScviNegativeBinomial(mu=mean, theta=self.theta, scale=share)

    def distribution_of_cells(self, mean: Tensor, share: Tensor) -> ScviNegativeBinomial:
        """See :meth:`Likelihood.distribution_of_cells`."""
        return ScviNegativeBinomial(mu=mean, theta=self.log_theta_of_cells.exp(), scale=share)

    def reconstruction_loss(self, features: Tensor, output: nn.Linear, batch: CountBatch, *, panel: bool) -> Tensor:
        """See :meth:`Likelihood.reconstruction_loss`; here in one function with its gradient."""
        return reconstruction_loss(features, output.weight, output.bias, self.bounded_log_theta, batch, panel=panel)

    def expected_lognorm(
        self, mean: Float[np.ndarray, "n n_genes"], library: Float[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n n_genes"]:
        """See :meth:`Likelihood.expected_lognorm`."""
        return expected_lognorm(mean, self._theta_of_cells(), library)

    def draw(self, mean: Float[np.ndarray, "n n_genes"], rng: np.random.Generator) -> Int[np.ndarray, "n n_genes"]:
        """See :meth:`Likelihood.draw`."""
        return draw_nb(mean, self.theta.detach().cpu().numpy(), rng)

    def draw_counterfactual(
        self,
        x: Real[np.ndarray, " n_genes"],
        mean0: Float[np.ndarray, " n_genes"],
        log_ratio: Float[np.ndarray, " n_genes"],
        rng: np.random.Generator,
    ) -> Int[np.ndarray, " n_genes"]:
        """See :meth:`Likelihood.draw_counterfactual`, and :func:`counterfactual_mean` for what is drawn."""
        return draw_counterfactual(x, mean0, log_ratio, self._theta_of_cells().reshape(self.n_genes), rng)

    @property
    def log_theta_of_cells(self) -> Tensor:
        """Log of theta beside the decoded means of single cells."""
        learned = self.learned_log_theta
        return self.bounded_log_theta if learned.isinf().any() else learned.clamp(*_LOG_THETA)

    def _theta_of_cells(self) -> np.ndarray:
        return self.log_theta_of_cells.exp().detach().cpu().numpy()


class _OfCells(NegativeBinomial):
    """The same for cells of known batches: one theta per cell and gene."""

    def __init__(self, of_batches: NegativeBinomial, batch: Int[Tensor, " n"]) -> None:
        Likelihood.__init__(self, of_batches.n_genes)
        self.of_batches, self.batch = of_batches, batch.long()

    @property
    def bounded_log_theta(self) -> Tensor:
        return self.of_batches.bounded_log_theta[self.batch]

    @property
    def log_theta_of_cells(self) -> Tensor:
        return self.of_batches.log_theta_of_cells[self.batch]


def nb_log_prob(x: Tensor, log_mean: Tensor, theta: Tensor) -> Tensor:
    r"""Log-probability of counts under a negative binomial, in at least float32.

    .. math:: \log NB(x \mid \mu, \theta) = \log\frac{\Gamma(x + \theta)}{\Gamma(\theta)\, x!}
              + x \log\frac{\mu}{\mu + \theta} + \theta \log\frac{\theta}{\mu + \theta}

    written in :math:`s = \log \mu - \log \theta`, so that neither a mean near zero nor one of 1e6 loses
    digits: the two logarithms are :math:`\log \sigma(s)` and :math:`\log \sigma(-s)`.

    Parameters
    ----------
    x
        Counts, shape (n, n_genes).
    log_mean
        Log of the mean, shape (n, n_genes).
    theta
        Inverse dispersion, shape (n_genes,) or (n, n_genes); variance = mean + mean² / theta.

    Returns
    -------
    Shape (n, n_genes).
    """
    if x.dtype != torch.float64:
        x, log_mean, theta = x.float(), log_mean.float(), theta.float()
    s = log_mean - theta.log()
    combinatorial = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1.0)
    return combinatorial + x * logsigmoid(s) + theta * logsigmoid(-s)


def counterfactual_mean(x: np.ndarray, mean0: np.ndarray, log_ratio: np.ndarray, theta: np.ndarray) -> np.ndarray:
    r"""Expected counts of an observed cell, had its means been :math:`\rho \mu_0` instead of :math:`\mu_0`.

    The negative binomial is a Poisson whose rate :math:`\lambda \sim \mathrm{Gamma}(\theta, \theta/\mu_0)` differs
    from cell to cell. Given the count, :math:`\lambda \mid x \sim \mathrm{Gamma}(\theta + x, 1 + \theta/\mu_0)`. The
    counterfactual keeps the cell's own rate and multiplies it by :math:`\rho`: counts are thinned where
    :math:`\rho \le 1` and added where :math:`\rho > 1`,

    .. math:: E[x' \mid x] = \rho x \quad (\rho \le 1), \qquad
              x + (\rho - 1)\, \mu_0 \frac{\theta + x}{\theta + \mu_0} \quad (\rho > 1).

    Marginally :math:`x' \sim NB(\rho \mu_0, \theta)`, and :math:`\rho = 1` returns :math:`x` exactly.

    Parameters
    ----------
    x
        Observed counts, shape (n, n_genes).
    mean0
        Means before, shape (n, n_genes).
    log_ratio
        :math:`\log \rho`, shape (n, n_genes).
    theta
        Inverse dispersion, shape (n_genes,).
    """
    gain = np.expm1(log_ratio)
    rate = mean0 * (theta + x) / (theta + mean0)
    return x + np.where(gain > 0, gain * rate, gain * x)


def draw_counterfactual(
    x: np.ndarray, mean0: np.ndarray, log_ratio: np.ndarray, theta: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Counterfactual counts of one cell, drawn as :func:`counterfactual_mean` describes.

    All arrays have shape (n_genes,); returns integers of the same shape.
    """
    gain = np.expm1(log_ratio)
    drawn = x.astype(np.int64)
    down = (gain < 0) & (x > 0)
    drawn[down] = rng.binomial(drawn[down], np.exp(log_ratio[down]))
    up = gain > 0
    rate = rng.gamma(theta[up] + x[up]) * (mean0[up] / (mean0[up] + theta[up]))
    drawn[up] += rng.poisson(gain[up] * rate)
    return drawn


def draw_nb(mean: np.ndarray, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts of a negative binomial with these means, as a Poisson of gamma-distributed rates."""
    return rng.poisson(rng.gamma(np.broadcast_to(theta, mean.shape)) * (mean / theta))


def expected_lognorm(mean: np.ndarray, theta: np.ndarray, library: np.ndarray, n_terms: int = 48) -> np.ndarray:
    r"""Mean of log1p of counts per 10,000 when the counts are negative binomial.

    .. math:: E\left[\log\left(1 + 10^4 x / L\right)\right], \qquad x \sim NB(\mu, \theta)

    The sum over the first ``n_terms`` counts is exact; where they leave out mass, the rest is put at its own mean,
    less the second-order term of the delta method.

    Parameters
    ----------
    mean
        Means, shape (n, n_genes).
    theta
        Inverse dispersion, shape (n_genes,) or (n, n_genes).
    library
        Library size of every row, shape (n,).
    """
    mean = mean.astype(np.float64)
    theta = theta.astype(np.float64)
    per_count = CP10K / library[:, None].astype(np.float64)
    odds = mean / (mean + theta)
    mass = np.exp(-theta * np.log1p(mean / theta))
    total, value, term = mass.copy(), np.zeros_like(mean), np.empty_like(mean)
    for k in range(1, n_terms):
        mass *= odds
        mass *= (k - 1 + theta) / k
        total += mass
        value += np.multiply(mass, np.log1p(per_count * k), out=term)
    rest = np.maximum(1.0 - total, 0.0)
    first, second = _moments_beyond(rest, mass, mean, theta, n_terms - 1)
    safe = np.maximum(rest, 1e-12)
    center = first / safe
    spread = np.maximum(second / safe - center**2, 0.0)
    curvature = 0.5 * spread * (per_count / (1.0 + per_count * center)) ** 2
    tail = np.maximum(np.log1p(per_count * center) - curvature, np.log1p(per_count * n_terms))
    return value + np.where(rest > 1e-9, rest * tail, 0.0)


def _moments_beyond(
    rest: np.ndarray, last: np.ndarray, mean: np.ndarray, theta: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    r"""Sums of :math:`j p_j` and :math:`j^2 p_j` over the counts above k, from their mass and that of k.

    They follow from :math:`j p_j = \frac{\mu}{\mu + \theta} (j - 1 + \theta) p_{j - 1}`, summed over :math:`j > k`.
    """
    mass = theta * (rest + last)
    first = mean / theta * (k * last + mass)
    second = mean / theta * (k**2 * last + (1.0 + theta) * (first + k * last) + mass)
    return first, second
