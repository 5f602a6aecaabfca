"""Reconstruction loss of stage 1: last layer, softmax, library size and negative binomial in one function."""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from cfmvc_scvi._sparse import column_shares
from cfmvc_scvi._types import CountBatch
from cfmvc_scvi.module.elbo import at_least_float32

#: Counts up to this one are counted per gene, and need no gamma function.
_TABLE = 16


def reconstruction_loss(
    features: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, batch: CountBatch, *, panel: bool = False
) -> Tensor:
    r"""Mean negative log-likelihood of cells, from the input of the decoder's last layer.

    .. math:: -\frac{1}{n} \sum_i \sum_g \log NB(x_{ig} \mid L_i \rho_{ig}, \theta_g), \qquad
              \rho_i = \operatorname{softmax}(\ell_i), \qquad \ell_i = b + W h_i

    With :math:`s = \log \mu - \log \theta` the log-likelihood of a cell is

    .. math:: \sum_{g: x_g > 0} \left[ \log \frac{\Gamma(x_g + \theta_g)}{\Gamma(\theta_g)\, x_g!}
              + x_g \log \sigma(s_g) \right] - \sum_g \theta_g \log(1 + \mu_g / \theta_g) ,

    so that gamma functions are needed where counts are not zero alone: of the zeros one logarithm is left. As
    counts are whole numbers, :math:`\Gamma(x + \theta) / \Gamma(\theta) = \prod_{k < x} (\theta + k)`, whose logarithms
    sum up from how many counts of the gene are above each k. Of counts above 16 the rest is the difference of two
    log-gammas in double precision; a batch with fractional values takes log-gammas alone. The gradient by the logits,

    .. math:: \frac{\partial}{\partial \ell_g} = d_g - \rho_g \sum_h d_h , \qquad
              d_g = x_g - (x_g + \theta_g)\, \sigma(s_g) ,

    is worked out in the same pass.

    On the CPU every thread has genes of its own: their rows of the weights, their logits and their counts
    (:func:`cfmvc_scvi._sparse.column_shares`).

    Parameters
    ----------
    features
        Input h of the last layer, shape (n, n_features).
    weight, bias
        W and b of the last layer, shape (n_genes, n_features) and (n_genes,).
    log_theta
        Log of the inverse dispersion, shape (n_genes,).
    batch
        Counts and library sizes :math:`L` of the cells.
    panel
        Whether one more gene, of logit 0, takes part in the softmax; its count is not observed.

    Returns
    -------
    Scalar, differentiable once by the four tensors, in their precision but at least float32. Under autocast the
    products with the weights are in its precision.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, weight = features.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):  # counts are added up in a matrix product, exactly
        return _ReconstructionLoss.apply(features, weight, bias, at_least_float32(log_theta), batch, panel)


class _ReconstructionLoss(torch.autograd.Function):
    """See :func:`reconstruction_loss`. Arrays of cells and genes are (shares, n, n_genes / shares), one per thread."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, batch: CountBatch, panel: bool
    ) -> Tensor:
        n_genes, shares = len(log_theta), _n_shares(features, len(log_theta))
        by_share = weight.view(shares, n_genes // shares, -1).transpose(1, 2)
        logits = torch.baddbmm(
            bias.to(weight.dtype).view(shares, 1, -1), features.expand(shares, *features.shape), by_share
        )
        logits = at_least_float32(logits)
        need_gradient = any(ctx.needs_input_grad[:4])
        loss, by_log_theta = _loss_of_logits(logits, log_theta, batch, panel, need_gradient)
        if need_gradient:  # the logits have become the gradient by them
            ctx.save_for_backward(features, weight, logits, by_log_theta)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, by_logits, by_log_theta = ctx.saved_tensors
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            by_logits, by_log_theta = by_logits * upstream, by_log_theta * upstream
        shares, n, size = by_logits.shape
        by_bias = _over_cells(by_logits)
        by_logits = by_logits.to(weight.dtype)
        by_features = torch.bmm(by_logits, weight.view(shares, size, -1)).sum(dim=0)
        by_weight = torch.bmm(by_logits.transpose(1, 2), features.expand(shares, n, -1)).view_as(weight)
        return by_features, by_weight, by_bias, by_log_theta, None, None


def _n_shares(features: Tensor, n_genes: int) -> int:
    """Equal shares of the genes, one per thread where they can be divided so."""
    return column_shares(n_genes) if features.device.type == "cpu" else 1


def _over_cells(x: Tensor) -> Tensor:
    """Sum over the cells, (n_genes,), of (shares, n, size): a product, in which every thread keeps to its share."""
    return torch.bmm(x.new_ones(len(x), 1, x.shape[1]), x).view(-1)


def _loss_of_logits(
    work: Tensor, log_theta: Tensor, batch: CountBatch, panel: bool, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss, and its gradient by ``log_theta`` (n_genes,); the logits (shares, n, size) become the gradient by them."""
    shares, n, size = work.shape
    theta, library = log_theta.exp(), batch.library.to(work.dtype)
    counts = batch.counts.by_row  # and by the genes of the threads
    values, rows, genes = counts.values.to(work.dtype), counts.rows, counts.columns
    place = _place(rows, genes, work.shape)
    share = torch.softmax(work, dim=-1)  # within the thread's genes; the part is what these have of all
    log_part = work.amax(dim=-1) - share.amax(dim=-1).log_()
    log_total = reduce(torch.logaddexp, log_part)
    if panel:
        log_total = softplus(log_total)
    part = (log_part - log_total).exp_()

    s = torch.take(work, place).sub_(log_theta.index_select(0, genes))  # unlike index_select on several threads
    s.add_((library.log() - log_total).index_select(0, rows))
    odds = torch.mul(share, (part * library).unsqueeze(-1)).mul_(theta.reciprocal().view(shares, 1, size))
    log_odds_sum = _over_cells(torch.log1p(odds, out=work))
    ways, by_ways = (_log_ways if batch.whole else _log_ways_of_fractions)(values, genes, theta)
    loss = (torch.dot(theta, log_odds_sum) - ways - torch.dot(values, logsigmoid(s))) / n
    if not need_gradient:
        return loss, None
    by_s = odds.div_(torch.add(odds, 1.0, out=work)).mul_((theta / n).view(shares, 1, size))
    at_counts = torch.sigmoid(s).mul_(theta.index_select(0, genes)).sub_(torch.sigmoid(s.neg_()).mul_(values)).div_(n)
    by_s.view(-1).index_put_((place,), at_counts)
    by_log_theta = (theta * log_odds_sum).sub_(by_ways).div_(n).sub_(_over_cells(by_s))
    part.mul_(by_s.sum(dim=-1).sum(dim=0))
    torch.addcmul(by_s, share, part.unsqueeze(-1), value=-1.0, out=work)
    return loss, by_log_theta


def _place(rows: Tensor, genes: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Place of cells and genes in a flat array (shares * n * size,)."""
    first = _places_of_first(*shape, genes.device)
    return torch.add(first.index_select(0, genes), rows, alpha=shape[-1])


@lru_cache(maxsize=8)
def _places_of_first(shares: int, n: int, size: int, device: torch.device) -> Tensor:
    """Place of the first cell's genes in that array (shares * size,)."""
    gene = torch.arange(shares * size, device=device).view(shares, size)
    return (gene + torch.arange(shares, device=device).view(-1, 1) * ((n - 1) * size)).view(-1)


def _log_ways(values: Tensor, genes: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log of :math:`\Gamma(x + \theta) / (\Gamma(\theta)\, x!)`, summed over all counts, which are whole numbers.

    Returns
    -------
    A scalar, and its derivatives by :math:`\log \theta`, shape (n_genes,).
    """
    above = _counts_above(values, genes, theta)
    counted = torch.arange(_TABLE, dtype=theta.dtype, device=theta.device).unsqueeze(-1)
    terms = theta + counted
    result = torch.dot((terms / (counted + 1.0)).log_().view(-1), above.view(-1))
    derivative = (above / terms).sum(dim=0).mul_(theta)
    large = (values > _TABLE).nonzero().squeeze(-1)
    if len(large):
        wide = theta.dtype if theta.device.type == "mps" else torch.float64  # which has no float64
        counts, at = values.index_select(0, large).to(wide), genes.index_select(0, large)
        scale = theta.index_select(0, at).to(wide)
        ends = torch.stack([scale + counts, scale + _TABLE, counts + 1.0])
        high, low, ways = torch.lgamma(ends).sum(dim=1).unbind()
        result = result + (high - low - ways + len(large) * math.lgamma(_TABLE + 1.0)).to(theta.dtype)
        high, low = torch.digamma(ends[:2])
        derivative.index_add_(0, at, high.sub_(low).mul_(scale).to(theta.dtype))
    return result, derivative


def _counts_above(values: Tensor, genes: Tensor, theta: Tensor) -> Tensor:
    """How many counts of every gene are above 0, 1, 2, ...; shape (_TABLE, n_genes), in the precision of ``theta``."""
    n_genes = len(theta)
    # how many are 0, 1, 2, ..., and what is above the table with its last
    cell = values.to(torch.int32).clamp_(max=_TABLE).mul_(n_genes).add_(genes)
    equal = torch.bincount(cell, minlength=(_TABLE + 1) * n_genes)[n_genes:].to(theta.dtype).view(_TABLE, n_genes)
    return equal.sum(dim=0) - equal.cumsum(dim=0) + equal


def _log_ways_of_fractions(values: Tensor, genes: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`_log_ways`; for values that are not whole."""
    at = theta.index_select(0, genes)
    result = torch.lgamma(values + at) - torch.lgamma(at) - torch.lgamma(values + 1.0)
    slope = at * (torch.digamma(values + at) - torch.digamma(at))
    return result.sum(), torch.zeros_like(theta).index_add_(0, genes, slope)
