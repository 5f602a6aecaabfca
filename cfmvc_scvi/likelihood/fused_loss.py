"""Reconstruction loss of stage 1: last layer, softmax, library size and negative binomial in one function."""

from __future__ import annotations

import math
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, softplus

from cfmvc_scvi._constants import LARGE_COUNT
from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CountBatch, at_least_float32


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
        n_genes, shares = len(log_theta), batch.counts.shares if features.device.type == "cpu" else 1
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
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weight, by_logits, by_log_theta = ctx.saved_tensors
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            by_logits, by_log_theta = by_logits * upstream, by_log_theta * upstream
        shares, n, size = by_logits.shape
        by_bias = _over_cells(by_logits)
        by_logits = by_logits.to(weight.dtype)
        by_features = reduce(torch.add, torch.bmm(by_logits, weight.view(shares, size, -1)).unbind())
        by_weight = torch.bmm(by_logits.transpose(1, 2), features.expand(shares, n, -1)).view_as(weight)
        return by_features, by_weight, by_bias, by_log_theta, None, None


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
    values, genes = counts.values.to(work.dtype), counts.columns
    place = _place(batch.counts, shares)
    share = torch.softmax(work, dim=-1)  # within the thread's genes; the part is what these have of all
    log_part = work.amax(dim=-1) - share.amax(dim=-1).log_()
    log_total = reduce(torch.logaddexp, log_part)
    if panel:
        log_total = softplus(log_total)
    part = (log_part - log_total).exp_()

    work.add_((library.log() - log_total).unsqueeze(-1)).sub_(log_theta.view(shares, 1, size))
    s = torch.take(work, place)
    odds = torch.mul(share, (part * library).unsqueeze(-1)).mul_(theta.reciprocal().view(shares, 1, size))
    log_odds_sum = _over_cells(torch.log1p(odds, out=work))
    ways, by_ways = (
        _log_ways(values, genes, theta, batch.large) if batch.whole else _log_ways_of_fractions(values, genes, theta)
    )
    loss = (torch.dot(theta, log_odds_sum) - ways - torch.dot(values, logsigmoid(s))) / n
    if not need_gradient:
        return loss, None
    by_s = odds.div_(torch.add(odds, 1.0, out=work)).mul_((theta / n).view(shares, 1, size))
    by_s.view(-1).scatter_add_(0, place, s.neg_().sigmoid_().mul_(values).div_(-n))
    by_log_theta = (theta * log_odds_sum).sub_(by_ways).div_(n).sub_(_over_cells(by_s))
    part.mul_(by_s.sum(dim=-1).sum(dim=0))
    torch.addcmul(by_s, share, part.unsqueeze(-1), value=-1.0, out=work)
    return loss, by_log_theta


def _place(counts: SparseRows, shares: int) -> Tensor:
    """Place of every count in a flat array (shares * n * size,); ``shares`` are those of the counts, or one."""
    n, size = len(counts), counts.n_columns // shares
    entries = counts.by_row
    columns = entries.columns if n * counts.n_columns < 2**31 else entries.columns.long()
    place = torch.add(columns, entries.rows, alpha=size)
    for share in range(1, shares):
        place[entries.starts[share * n] : entries.starts[(share + 1) * n]] += share * (n - 1) * size
    return place.long()


def _log_ways(values: Tensor, genes: Tensor, theta: Tensor, large: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Log of :math:`\Gamma(x + \theta) / (\Gamma(\theta)\, x!)`, summed over all counts, which are whole numbers.

    Returns
    -------
    A scalar, and its derivatives by :math:`\log \theta`, shape (n_genes,).
    """
    equal = _counts_equal(values, genes, theta)
    counted, up_to = _table(theta.dtype, theta.device)
    above, terms = up_to @ equal, theta + counted
    result = torch.dot((terms / (counted + 1.0)).log_().view(-1), above.view(-1))
    derivative = (above / terms).sum(dim=0).mul_(theta)
    if large is None:
        large = (values > LARGE_COUNT).nonzero().squeeze(-1)
    if len(large):
        wide = theta.dtype if theta.device.type == "mps" else torch.float64  # which has no float64
        counts, at = values.index_select(0, large).to(wide), genes.index_select(0, large)
        scale = theta.index_select(0, at).to(wide)
        ends = torch.stack([scale + counts, scale + LARGE_COUNT, counts + 1.0])
        signs = ends.new_tensor([1.0, -1.0, -1.0])
        ways = (signs @ torch.lgamma(ends)).sum() + len(large) * math.lgamma(LARGE_COUNT + 1.0)
        result = result + ways.to(theta.dtype)
        high, low = torch.digamma(ends[:2])
        derivative.index_add_(0, at, high.sub_(low).mul_(scale).to(theta.dtype))
    return result, derivative


def _counts_equal(values: Tensor, genes: Tensor, theta: Tensor) -> Tensor:
    """How many counts of every gene are 1, 2, ...; shape (LARGE_COUNT, n_genes), in the precision of ``theta``.

    The last are those of the table's length, and all above.
    """
    n_genes = len(theta)
    cell = torch.add(genes, values.clamp(max=LARGE_COUNT).to(genes.dtype), alpha=n_genes)
    equal = torch.bincount(cell, minlength=(LARGE_COUNT + 1) * n_genes)[n_genes:]
    return equal.to(theta.dtype).view(LARGE_COUNT, n_genes)


@lru_cache(maxsize=8)
def _table(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """0, 1, 2, ... as a column, and the matrix that adds up all counts above them."""
    counted = torch.arange(LARGE_COUNT, dtype=dtype, device=device).unsqueeze(-1)
    return counted, torch.ones(LARGE_COUNT, LARGE_COUNT, dtype=dtype, device=device).triu()


def _log_ways_of_fractions(values: Tensor, genes: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`_log_ways`; for values that are not whole."""
    at = theta.index_select(0, genes)
    result = torch.lgamma(values + at) - torch.lgamma(at) - torch.lgamma(values + 1.0)
    slope = at * (torch.digamma(values + at) - torch.digamma(at))
    return result.sum(), torch.zeros_like(theta).index_add_(0, genes, slope)
