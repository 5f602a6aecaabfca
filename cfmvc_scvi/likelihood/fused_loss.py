"""Reconstruction loss of stage 1: last layer, softmax, library size and negative binomial in one function."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid, one_hot, softplus

from cfmvc_scvi._constants import LARGE_COUNT
from cfmvc_scvi._types import CountBatch, at_least_float32


def reconstruction_loss(
    features: Float[Tensor, "n n_features"],
    weight: Float[Tensor, "n_genes n_features"],
    bias: Float[Tensor, " n_genes"],
    log_theta: Float[Tensor, "*n_batch n_genes"],
    batch: CountBatch,
    *,
    panel: bool = False,
) -> Float[Tensor, ""]:
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

    Parameters
    ----------
    features
        Input h of the last layer, shape (n, n_features).
    weight, bias
        W and b of the last layer, shape (n_genes, n_features) and (n_genes,).
    log_theta
        Log of the inverse dispersion, shape (n_genes,), or (n_batch, n_genes) for one per gene and batch.
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
    """See :func:`reconstruction_loss`."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, batch: CountBatch, panel: bool
    ) -> Tensor:
        logits = at_least_float32(torch.addmm(bias.to(weight.dtype), features, weight.T))
        need_gradient = any(ctx.needs_input_grad[:4])
        loss, by_logits, by_log_theta = _loss_of_logits(logits, log_theta, batch, panel, need_gradient)
        if need_gradient:
            ctx.save_for_backward(features, weight, by_logits, by_log_theta)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weight, by_logits, by_log_theta = ctx.saved_tensors
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            by_logits, by_log_theta = by_logits * upstream, by_log_theta * upstream
        by_bias = _over_cells(by_logits)
        by_logits = by_logits.to(weight.dtype)
        return by_logits @ weight, by_logits.T @ features, by_bias, by_log_theta, None, None


def _over_cells(x: Tensor, of_batch: Tensor | None = None) -> Tensor:
    """Sum over the cells, (n_genes,), of (n, n_genes): a product, which is quicker than ``sum(dim=0)``.

    With the batch of every cell as columns (n_batch, n) of 0 and 1: over the cells of each, (n_batch, n_genes).
    """
    return (x.new_ones(len(x)) if of_batch is None else of_batch) @ x


def _loss_of_logits(
    logits: Tensor, log_theta: Tensor, batch: CountBatch, panel: bool, need_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss, and its gradients by the logits (n, n_genes) and by ``log_theta``.

    Two arrays of cells and genes are enough: each step writes over what is no longer needed, the logits first.
    """
    theta, library = log_theta.exp(), batch.library.to(logits.dtype)
    values, genes, places = batch.counts.values.to(logits.dtype), batch.counts.columns, batch.counts.places
    of_batch, cell_log_theta, cell_theta = None, log_theta, theta
    if log_theta.dim() == 2:  # genes of different batches are different genes below
        code = batch.context.batch
        of_batch = one_hot(code, len(theta)).T.to(logits.dtype)
        genes = genes + code.index_select(0, batch.counts.rows) * theta.shape[1]
        cell_log_theta, cell_theta = log_theta[code], theta[code]

    # rho and the log of the sum of exp(logit), as the largest rho of a cell is exp(largest logit) / sum
    rho = torch.softmax(logits, dim=-1)
    log_total = logits.amax(dim=-1) - rho.amax(dim=-1).log_()
    if panel:  # exp(0) joins the sum: the rho of the genes shrink by what they had of the new sum
        log_measured, log_total = log_total, softplus(log_total)
        rho.mul_((log_measured - log_total).exp_().unsqueeze(-1))

    # s = log(mu / theta), looked up where counts are not zero; mu / theta, of all genes, from rho
    s = logits.add_((library.log() - log_total).unsqueeze(-1)).sub_(cell_log_theta).take(places)
    odds = torch.mul(rho, library.unsqueeze(-1)).mul_(cell_theta.reciprocal())
    log_odds_sum = _over_cells(torch.log1p(odds, out=logits), of_batch)
    log_ways = _log_ways if batch.whole else _log_ways_of_fractions
    ways, by_ways = log_ways(values, genes, theta.view(-1))
    n = len(logits)
    loss = (torch.dot(theta.view(-1), log_odds_sum.view(-1)) - ways - torch.dot(values, logsigmoid(s))) / n
    if not need_gradient:
        return loss, None, None

    # -d / n of the docstring, as 1 - sigma(s) = sigma(-s):  theta sigma(s) everywhere, - x sigma(-s) at the counts;
    # sigma(s) = odds / (1 + odds)
    by_s = odds.div_(torch.add(odds, 1.0, out=logits)).mul_(cell_theta / n)
    by_s.view(-1).scatter_add_(0, places, s.neg_().sigmoid_().mul_(values).div_(-n))
    # theta is in s, as -log theta, and in the two terms beside it
    by_log_theta = (theta * log_odds_sum).sub_(by_ways.view_as(theta)).div_(n).sub_(_over_cells(by_s, of_batch))
    by_logits = torch.addcmul(by_s, rho, by_s.sum(dim=-1, keepdim=True), value=-1.0, out=logits)
    return loss, by_logits, by_log_theta


def _log_ways(values: Tensor, genes: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
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
