"""Reconstruction loss of stage 1: softmax, library size and negative binomial in one function with its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from cfmvc_scvi._types import CountBatch

#: Counts up to this one are looked up in a table of every gene; Stirling's series takes over above it.
_TABLE = 16
#: Numbers of the dense (cells x genes) array that are worked on together on the CPU, so that they stay in its cache.
_BLOCK = 1 << 17


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


def gaussian_draw(mean: Tensor, logvar: Tensor) -> Tensor:
    """One draw of normal distributions, differentiable, in at least float32."""
    mean, logvar = _at_least_float32(mean), _at_least_float32(logvar)
    return mean + (0.5 * logvar).exp() * torch.randn_like(mean)


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor | float, prior_logvar: Tensor | float) -> Tensor:
    """KL divergence of a diagonal normal from its prior: sum over dimensions, mean over cells (n, n_latent)."""
    mean, logvar = _at_least_float32(mean), _at_least_float32(logvar)
    difference = logvar - prior_logvar
    distance = (mean - prior_mean).square()
    if isinstance(prior_logvar, Tensor):
        distance = distance * (-prior_logvar).exp()
    return 0.5 * (difference.exp() + distance - 1.0 - difference).sum(dim=-1).mean()


def reconstruction_loss(
    logits: Tensor, log_theta: Tensor, batch: CountBatch, *, panel: bool = False, overwrite: bool = False
) -> Tensor:
    r"""Mean negative log-likelihood of cells, from the logits of the decoder.

    .. math:: -\frac{1}{n} \sum_i \sum_g \log NB(x_{ig} \mid L_i \rho_{ig}, \theta_g), \qquad
              \rho_i = \operatorname{softmax}(\ell_i)

    With :math:`s = \log \mu - \log \theta` the log-likelihood of a cell is

    .. math:: \sum_{g: x_g > 0} \left[ \log \frac{\Gamma(x_g + \theta_g)}{\Gamma(\theta_g)\, x_g!}
              + x_g \log \sigma(s_g) \right] - \sum_g \theta_g \log(1 + \mu_g / \theta_g) ,

    so that gamma functions are needed where counts are not zero alone: of the zeros one logarithm is left. As
    counts are whole numbers, :math:`\Gamma(x + \theta) / \Gamma(\theta) = \prod_{k < x} (\theta + k)` comes from a
    table per gene (above 16 from Stirling's series), without the cancellation of two log-gammas; a batch with
    fractional values takes the log-gammas. The gradient

    .. math:: \frac{\partial}{\partial \ell_g} = d_g - \rho_g \sum_h d_h , \qquad
              d_g = x_g - (x_g + \theta_g)\, \sigma(s_g)

    is worked out in the same pass over blocks of cells that fit the processor's cache.

    Parameters
    ----------
    logits
        :math:`\ell`, shape (n, n_genes).
    log_theta
        Log of the inverse dispersion, shape (n_genes,).
    batch
        Counts and library sizes :math:`L` of the cells.
    panel
        Whether one more gene, of logit 0, takes part in the softmax; its count is not observed.
    overwrite
        Work in the memory of ``logits``, which then hold nothing of use. Only for logits that no other function keeps.

    Returns
    -------
    Scalar, differentiable once by ``logits`` and ``log_theta``, in their precision but at least float32.
    """
    return _ReconstructionLoss.apply(_at_least_float32(logits), _at_least_float32(log_theta), batch, panel, overwrite)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _ReconstructionLoss(torch.autograd.Function):
    """See :func:`reconstruction_loss`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_theta: Tensor, batch: CountBatch, panel: bool, overwrite: bool) -> Tensor:
        theta = log_theta.exp()
        work = logits.detach() if overwrite and logits.is_contiguous() else logits.detach().clone()
        values = batch.values.to(work.dtype)
        need_gradient = any(ctx.needs_input_grad[:2])
        softplus, slope, log_odds = _dense_part(work, theta, log_theta, values, batch, panel, need_gradient)
        ways, derivative = _log_ways(values, batch.genes, theta, need_gradient)
        at_counts = ways + values * logsigmoid(log_odds)
        loss = (torch.dot(theta, softplus) - at_counts.sum()) / len(batch)
        if need_gradient:
            by_log_theta = (theta * softplus).index_add_(0, batch.genes, derivative, alpha=-1.0)
            ctx.save_for_backward(work, by_log_theta.div_(len(batch)).sub_(slope))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        by_logits, by_log_theta = ctx.saved_tensors
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            by_logits, by_log_theta = by_logits * upstream, by_log_theta * upstream
        return by_logits, by_log_theta, None, None, None


def _dense_part(
    work: Tensor,
    theta: Tensor,
    log_theta: Tensor,
    values: Tensor,
    batch: CountBatch,
    panel: bool,
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits (n, n_genes) into the loss's gradient by them, in place.

    Returns the sums over cells of log(1 + mean / theta) and of the gradient by s, each (n_genes,), and s at the counts.
    """
    n, n_genes = work.shape
    inverse, scaled = theta.reciprocal(), theta / n
    softplus, slope = torch.zeros_like(theta), torch.zeros_like(theta)
    log_theta_at, log_odds = log_theta.index_select(0, batch.genes), torch.empty_like(values)
    library = batch.library.to(work.dtype).unsqueeze(-1)
    log_library = library.log()
    size = n if work.device.type != "cpu" else max(1, _BLOCK // n_genes)
    odds_buffer, spare_buffer = (work.new_empty(min(size, n), n_genes) for _ in range(2))
    for start in range(0, n, size):
        block = work[start : start + size]
        odds, spare = odds_buffer[: len(block)], spare_buffer[: len(block)]
        here = batch.entries(start, start + len(block))
        position = batch.position[here] - start * n_genes
        rows = batch.rows[here] - start
        logits_at = block.view(-1).index_select(0, position)
        rows_library = library[start : start + size]

        top = block.amax(dim=1, keepdim=True)
        if panel:
            top = top.clamp(min=0.0)
        block.sub_(top).exp_()
        total = block.sum(dim=1, keepdim=True)
        if panel:
            total = total + (-top).exp()
        block.mul_(rows_library / total)  # the mean
        offset = (log_library[start : start + size] - top - total.log()).squeeze(-1)
        s = torch.add(logits_at, offset.index_select(0, rows), out=log_odds[here]).sub_(log_theta_at[here])
        torch.mul(block, inverse, out=odds)
        softplus += torch.log1p(odds, out=spare).sum(dim=0)
        if not need_gradient:
            continue
        torch.add(odds, 1.0, out=spare)
        by_s = odds.div_(spare).mul_(scaled)
        by_s.view(-1).scatter_add_(0, position, torch.sigmoid(-s).mul_(values[here]).div_(-n))
        slope += by_s.sum(dim=0)
        torch.addcmul(by_s, block, by_s.sum(dim=1, keepdim=True) / rows_library, value=-1.0, out=block)
    return softplus, slope, log_odds


def _log_ways(values: Tensor, genes: Tensor, theta: Tensor, need_derivative: bool) -> tuple[Tensor, Tensor]:
    r"""Log of :math:`\Gamma(x + \theta) / (\Gamma(\theta)\, x!)`, and its derivative by :math:`\log \theta`; (m,)."""
    if not bool((values == values.trunc()).all()):
        at = theta.index_select(0, genes)
        result = torch.lgamma(values + at) - torch.lgamma(at) - torch.lgamma(values + 1.0)
        return result, at * (torch.digamma(values + at) - torch.digamma(at)) if need_derivative else result
    counted = torch.arange(_TABLE, dtype=theta.dtype, device=theta.device).unsqueeze(-1)
    terms = theta + counted
    cell = values.clamp(max=_TABLE).long().mul_(len(theta)).add_(genes)
    result = _cumulative((terms / (counted + 1.0)).log()).index_select(0, cell)
    derivative = _cumulative(theta / terms).index_select(0, cell) if need_derivative else result
    large = (values > _TABLE).nonzero().squeeze(-1)
    if len(large):
        counts, scale = values[large], theta.index_select(0, genes[large])
        low, high = scale + _TABLE, scale + counts
        growth = torch.log1p((counts - _TABLE) / low)
        rising = (low - 0.5) * growth + (counts - _TABLE) * (high.log() - 1.0) + _stirling(high) - _stirling(low)
        result[large] += rising - torch.lgamma(counts + 1.0) + math.lgamma(_TABLE + 1.0)
        if need_derivative:
            derivative[large] += scale * (growth + _digamma_rest(high) - _digamma_rest(low))
    return result, derivative


def _cumulative(terms: Tensor) -> Tensor:
    """Sums of the first 0, 1, 2, ... rows, flat."""
    table = terms.new_zeros(len(terms) + 1, terms.shape[1])
    torch.cumsum(terms, dim=0, out=table[1:])
    return table.view(-1)


def _stirling(y: Tensor) -> Tensor:
    """Stirling's series of log-gamma after its leading terms; below 1e-11 off for y >= 16."""
    square = y.square()
    return (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * square)) / square) / y


def _digamma_rest(y: Tensor) -> Tensor:
    """Digamma less the logarithm; below 1e-11 off for y >= 16."""
    square = y.square()
    return -0.5 / y - (1.0 / 12.0 - (1.0 / 120.0 - 1.0 / (252.0 * square)) / square) / square
