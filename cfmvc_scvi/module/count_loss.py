"""Reconstruction loss of stage 1: softmax, library size and negative binomial in one function with its gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from cfmvc_scvi._types import CountBatch
from cfmvc_scvi.module.elbo import at_least_float32

#: Counts up to this one are counted per gene, and need no gamma function; Stirling's series takes over above it.
_TABLE = 16
#: Numbers of the dense (cells x genes) array that are worked on together on the CPU, so that they stay in its cache.
_BLOCK = 1 << 18


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
    counts are whole numbers, :math:`\Gamma(x + \theta) / \Gamma(\theta) = \prod_{k < x} (\theta + k)`, whose logarithms
    sum up from how many counts of the gene are above each k (above 16 Stirling's series takes over), without the
    cancellation of two log-gammas; a batch with fractional values takes the log-gammas. The gradient

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
    logits, log_theta = at_least_float32(logits), at_least_float32(log_theta)
    with torch.autocast(logits.device.type, enabled=False):  # counts are added up in a matrix product, exactly
        return _ReconstructionLoss.apply(logits, log_theta, batch, panel, overwrite)


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
        at_counts = ways + torch.dot(values, logsigmoid(log_odds))
        loss = (torch.dot(theta, softplus) - at_counts) / len(batch)
        if need_gradient:
            by_log_theta = (theta * softplus).sub_(derivative).div_(len(batch)).sub_(slope)
            ctx.save_for_backward(work, by_log_theta)
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
    log_odds = torch.empty_like(values)
    library = batch.library.to(work.dtype).unsqueeze(-1)
    size = n if work.device.type != "cpu" else max(1, _BLOCK // n_genes)
    buffers = [work.new_empty(min(size, n), n_genes) for _ in range(2)]
    for start in range(0, n, size):
        block = work[start : start + size]
        share, odds = (buffer[: len(block)] for buffer in buffers)
        here = batch.entries(start, start + len(block))
        position, genes = batch.position[here], batch.genes[here]
        rows_library = library[start : start + size]

        log_total = _softmax_into(share, block, panel)
        offset = (rows_library.log() - log_total).squeeze(-1)
        s = torch.index_select(work.view(-1), 0, position, out=log_odds[here])
        s.sub_(log_theta.index_select(0, genes)).add_(offset.index_select(0, batch.rows[here] - start))
        torch.mul(share, rows_library, out=odds).mul_(inverse)
        softplus += torch.log1p(odds, out=block).sum(dim=0)
        if not need_gradient:
            continue
        torch.add(odds, 1.0, out=block)
        by_s = odds.div_(block).mul_(scaled)
        at_counts = torch.sigmoid(-s).mul_(values[here]).div_(-n)
        by_s.view(-1).scatter_add_(0, position - start * n_genes, at_counts)
        slope += by_s.sum(dim=0)
        torch.addcmul(by_s, share, by_s.sum(dim=1, keepdim=True), value=-1.0, out=block)
    return softplus, slope, log_odds


def _softmax_into(out: Tensor, logits: Tensor, panel: bool) -> Tensor:
    """Softmax of the rows, written into ``out``; returns the log of the sum of the exponentials, (n, 1)."""
    torch.softmax(logits, dim=1, out=out)
    # the largest share is one over the sum of the exponentials, taken from the largest logit on
    log_total = logits.amax(dim=1, keepdim=True) - out.amax(dim=1, keepdim=True).log()
    if not panel:
        return log_total
    out.mul_(torch.sigmoid(log_total))
    return torch.nn.functional.softplus(log_total)


def _log_ways(values: Tensor, genes: Tensor, theta: Tensor, need_derivative: bool) -> tuple[Tensor, Tensor]:
    r"""Log of :math:`\Gamma(x + \theta) / (\Gamma(\theta)\, x!)`, summed over all counts, and its derivative.

    Returns
    -------
    A scalar, and the derivatives by :math:`\log \theta`, shape (n_genes,).
    """
    whole = values.long()
    if not torch.equal(whole.to(values.dtype), values):
        return _log_ways_of_fractions(values, genes, theta)
    above = _counts_above(whole, genes, theta)
    counted = torch.arange(_TABLE, dtype=theta.dtype, device=theta.device).unsqueeze(-1)
    terms = theta + counted
    result = torch.dot((terms / (counted + 1.0)).log_().view(-1), above.view(-1))
    derivative = (above / terms).sum(dim=0).mul_(theta) if need_derivative else result
    large = (values > _TABLE).nonzero().squeeze(-1)
    if len(large):
        counts, at = values.index_select(0, large), genes.index_select(0, large)
        scale = theta.index_select(0, at)
        low, high = scale + _TABLE, scale + counts
        growth = torch.log1p((counts - _TABLE) / low)
        rising = (low - 0.5) * growth + (counts - _TABLE) * (high.log() - 1.0) + _stirling(high) - _stirling(low)
        result = result + (rising - torch.lgamma(counts + 1.0) + math.lgamma(_TABLE + 1.0)).sum()
        if need_derivative:
            derivative.index_add_(0, at, scale * (growth + _digamma_rest(high) - _digamma_rest(low)))
    return result, derivative


def _counts_above(whole: Tensor, genes: Tensor, theta: Tensor) -> Tensor:
    """How many counts of every gene are above 0, 1, 2, ...; shape (_TABLE, n_genes), in the precision of ``theta``."""
    n_genes = len(theta)
    equal = theta.new_zeros(
        (_TABLE + 1) * n_genes
    )  # how many are 0, 1, 2, ..., and what is above the table with its last
    cell = whole.clamp(max=_TABLE).mul_(n_genes).add_(genes)
    equal.scatter_add_(0, cell, equal.new_ones(len(cell)))
    return theta.new_ones(_TABLE, _TABLE).triu_() @ equal[n_genes:].view(_TABLE, n_genes)


def _log_ways_of_fractions(values: Tensor, genes: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`_log_ways`; for values that are not whole."""
    at = theta.index_select(0, genes)
    result = torch.lgamma(values + at) - torch.lgamma(at) - torch.lgamma(values + 1.0)
    slope = at * (torch.digamma(values + at) - torch.digamma(at))
    return result.sum(), torch.zeros_like(theta).index_add_(0, genes, slope)


def _stirling(y: Tensor) -> Tensor:
    """Stirling's series of log-gamma after its leading terms; below 1e-11 off for y >= 16."""
    square = y.square()
    return (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * square)) / square) / y


def _digamma_rest(y: Tensor) -> Tensor:
    """Digamma less the logarithm; below 1e-11 off for y >= 16."""
    square = y.square()
    return -0.5 / y - (1.0 / 12.0 - (1.0 / 120.0 - 1.0 / (252.0 * square)) / square) / square
