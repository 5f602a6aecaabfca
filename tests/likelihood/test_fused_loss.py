"""The reconstruction loss of stage 1: values and gradients against scvi-tools, a dense computation and differences."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from scvi.distributions import NegativeBinomial

from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CountBatch, FlowContext
from cfmvc_scvi.likelihood import fused_loss
from cfmvc_scvi.likelihood.fused_loss import reconstruction_loss
from cfmvc_scvi.likelihood.negative_binomial import nb_log_prob


def batch_of(counts: np.ndarray, dtype=np.float64) -> CountBatch:
    library = np.maximum(counts.sum(axis=1), 1.0)
    return CountBatch(
        counts=SparseRows.from_scipy(sparse.csr_matrix(counts.astype(dtype))),
        library=torch.from_numpy(library.astype(dtype)),
        context=FlowContext(*torch.zeros(2, len(counts), dtype=torch.long)),
        whole=bool((counts == np.floor(counts)).all()),
    )


def loss_of(logits: torch.Tensor, log_theta: torch.Tensor, batch: CountBatch, panel: bool = False) -> torch.Tensor:
    """The loss of these logits: behind a last layer that changes nothing."""
    n_genes = logits.shape[1]
    return reconstruction_loss(
        logits, torch.eye(n_genes, dtype=logits.dtype), logits.new_zeros(n_genes), log_theta, batch, panel=panel
    )


def draw(n: int = 40, n_genes: int = 50, seed: int = 0) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Counts with zeros, cells without any and large counts; logits; log dispersions of many sizes."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.3, 4.0, size=(n, n_genes))).astype(float)
    counts[3] = 0.0
    counts[0, 0], counts[5, 7], counts[4, 8] = 1e6, 300.0, 17.0
    logits = torch.tensor(rng.normal(scale=2.0, size=(n, n_genes)), requires_grad=True)
    log_theta = torch.tensor(rng.uniform(-12.0, 12.0, size=n_genes), requires_grad=True)
    return counts, logits, log_theta


def log_mean(logits: torch.Tensor, batch: CountBatch, panel: bool) -> torch.Tensor:
    full = torch.cat([logits, logits.new_zeros(len(logits), 1)], dim=1) if panel else logits
    return torch.log_softmax(full, dim=1)[:, : logits.shape[1]] + batch.library.log().unsqueeze(1)


def with_gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("panel", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_agrees_with_the_dense_computation(panel, scale):
    """Value and all four gradients, also for values that are no counts."""
    counts, features, log_theta = draw()
    counts = counts * scale
    batch = batch_of(counts)
    rng = np.random.default_rng(3)
    weight = torch.tensor(rng.normal(scale=0.2, size=(50, 50)), requires_grad=True)
    bias = torch.tensor(rng.normal(size=50), requires_grad=True)
    inputs = (features, weight, bias, log_theta)
    ours = with_gradients(reconstruction_loss(*inputs, batch, panel=panel), *inputs)
    logits = torch.nn.functional.linear(features, weight, bias)
    dense = nb_log_prob(torch.tensor(counts), log_mean(logits, batch, panel), log_theta.exp())
    expected = with_gradients(-dense.sum(dim=1).mean(), *inputs)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-8)


def test_agrees_with_scvi():
    """scvi-tools adds 1e-8 inside its logarithms, which very small dispersions and means would show."""
    counts, logits, _ = draw()
    batch = batch_of(counts)
    log_theta = torch.linspace(-3.0, 6.0, counts.shape[1], dtype=torch.float64).requires_grad_()
    ours = with_gradients(loss_of(logits, log_theta, batch), logits, log_theta)
    law = NegativeBinomial(mu=log_mean(logits, batch, False).exp(), theta=log_theta.exp())
    scvi = with_gradients(-law.log_prob(torch.tensor(counts)).sum(dim=1).mean(), logits, log_theta)
    for a, b in zip(ours, scvi, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("panel", [False, True])
def test_gradients_are_numerically_right(panel):
    counts, logits, log_theta = draw(6, 9)
    counts[0, 0] = 40.0  # differences of a count of 1e6 are too coarse
    batch, log_theta = batch_of(counts), (log_theta.detach() / 4.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, t: loss_of(x, t, batch, panel=panel), (logits, log_theta))


@pytest.mark.parametrize("log_theta", [-12.0, 0.0, 12.0])
@pytest.mark.parametrize("shift", [-200.0, -20.0, 0.0])
def test_float32_keeps_its_digits_at_the_extremes(log_theta, shift):
    """Means down to e^-200 and counts of 1e6 at the smallest and largest dispersion, against float64.

    The loss to the precision of its largest term, log 1e6!; the gradients to that of the largest of them.
    """
    counts = np.array([[0.0, 1.0, 3.0, 1e6, 20.0], [0.0, 0.0, 0.0, 2.0, 0.0], [0.0, 1e4, 0.0, 0.0, 17.0]])
    logits = torch.tensor([[0.0, shift, 1.0, 3.0, -1.0]], dtype=torch.float64).repeat(3, 1).requires_grad_()
    theta = torch.full((5,), log_theta, dtype=torch.float64, requires_grad=True)
    fine = with_gradients(loss_of(logits, theta, batch_of(counts)), logits, theta)
    logits32, theta32 = (x.detach().float().requires_grad_() for x in (logits, theta))
    coarse = with_gradients(loss_of(logits32, theta32, batch_of(counts, np.float32)), logits32, theta32)
    assert all(torch.isfinite(x).all() for x in coarse)
    assert abs(coarse[0].item() - fine[0].item()) < 1e-7 * math.lgamma(1e6)
    for a, b in zip(coarse[1:], fine[1:], strict=True):
        assert ((a.double() - b).abs().max() / (1.0 + b.abs().max())).item() < 2e-6


@pytest.mark.parametrize("x", [1.0, 16.0, 17.0, 100.0, 1e6])
@pytest.mark.parametrize("theta", [1e-5, 0.3, 20.0, 1.6e5])
def test_log_ways_are_differences_of_log_gammas(x, theta):
    value, derivative = fused_loss._log_ways(
        torch.tensor([x], dtype=torch.float64), torch.tensor([1]), torch.tensor([2.0, theta], dtype=torch.float64)
    )
    expected = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1.0)
    t = torch.tensor(theta, dtype=torch.float64)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-8)
    slope = (t * (torch.digamma(x + t) - torch.digamma(t))).item()
    assert derivative.tolist() == pytest.approx([0.0, slope], rel=1e-8)


def test_log_ways_of_many_counts_add_up():
    """Stored zeros count nothing; a gene's derivative is that of its own counts."""
    values = torch.tensor([3.0, 0.0, 1.0, 40.0, 3.0, 16.0], dtype=torch.float64)
    genes, theta = torch.tensor([0, 1, 2, 2, 0, 1]), torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
    value, derivative = fused_loss._log_ways(values, genes, theta)
    apart = [fused_loss._log_ways(values[i : i + 1], genes[i : i + 1], theta) for i in range(len(values))]
    assert value.item() == pytest.approx(sum(v.item() for v, _ in apart), rel=1e-12)
    torch.testing.assert_close(derivative, sum(d for _, d in apart))
    fractions = fused_loss._log_ways_of_fractions(values, genes, theta)
    assert value.item() == pytest.approx(fractions[0].item(), rel=1e-9)
    torch.testing.assert_close(derivative, fractions[1])


def test_a_cell_without_counts_has_the_closed_form():
    """One gene, library 1: theta log(1 + 1 / theta), whatever the logit."""
    batch = batch_of(np.zeros((1, 1)))
    loss = loss_of(torch.full((1, 1), 5.0).double(), torch.full((1,), 2.0).double().log(), batch)
    assert loss.item() == pytest.approx(2.0 * math.log(1.5), rel=1e-12)


def test_a_constant_on_all_logits_changes_nothing_and_their_gradients_sum_to_zero():
    counts, logits, log_theta = draw()
    batch = batch_of(counts)
    loss, gradient, _ = with_gradients(loss_of(logits, log_theta, batch), logits, log_theta)
    moved = loss_of(logits + torch.arange(len(logits)).unsqueeze(1), log_theta, batch)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-12)
    assert gradient.sum(dim=1).abs().max() < 1e-9 * gradient.abs().max()


def test_order_of_the_cells_changes_nothing():
    counts, logits, log_theta = draw()
    order = np.random.default_rng(1).permutation(len(counts))
    loss = loss_of(logits, log_theta, batch_of(counts))
    assert loss_of(logits[order], log_theta, batch_of(counts[order])).item() == pytest.approx(loss.item())


def test_without_gradients_the_value_is_the_same_and_the_inputs_are_left_alone():
    counts, logits, log_theta = draw()
    batch = batch_of(counts)
    kept = logits.detach().clone()
    loss = loss_of(logits, log_theta, batch)
    with torch.no_grad():
        assert loss_of(logits, log_theta, batch).item() == pytest.approx(loss.item(), rel=1e-14)
    loss.backward()
    assert torch.equal(logits.detach(), kept)


def test_the_gradient_scales_with_what_comes_from_above():
    counts, logits, log_theta = draw()
    once = torch.autograd.grad(loss_of(logits, log_theta, batch_of(counts)), (logits, log_theta))
    thrice = torch.autograd.grad(3.0 * loss_of(logits, log_theta, batch_of(counts)), (logits, log_theta))
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3.0 * a, b)


def test_under_autocast_the_products_are_coarse_and_the_likelihood_is_not():
    counts, logits, log_theta = draw()
    inputs = [logits, torch.eye(50), torch.zeros(50), log_theta]
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    batch = batch_of(counts, np.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = reconstruction_loss(*inputs, batch)
    gradients = torch.autograd.grad(loss, inputs)
    rounded = inputs[0].detach().bfloat16().float()
    expected = loss_of(rounded, inputs[3], batch)
    assert loss.dtype == torch.float32 and {g.dtype for g in gradients} == {torch.float32}
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (by_log_theta,) = torch.autograd.grad(expected, inputs[3])
    torch.testing.assert_close(gradients[3], by_log_theta)


@pytest.mark.parametrize("whole", [True, False])
def test_a_dispersion_per_gene_and_batch_is_that_of_each_batch_alone(whole):
    counts, logits, log_theta = draw()
    counts = counts if whole else counts * 1.5
    log_theta = torch.stack([log_theta.detach(), log_theta.detach().flip(0)]).requires_grad_()
    code = torch.arange(len(counts)) % 3 % 2  # 0, 1, 0, 0, 1, 0, ...
    batch = batch_of(counts)
    batch = replace(batch, context=FlowContext(batch=code, labels=torch.zeros_like(code)))
    together = with_gradients(loss_of(logits, log_theta, batch), logits, log_theta)

    def alone(k: int) -> torch.Tensor:
        rows = (code == k).nonzero().squeeze(-1)
        return len(rows) / len(code) * loss_of(logits[rows], log_theta[k], batch_of(counts[rows.numpy()]))

    apart = with_gradients(alone(0) + alone(1), logits, log_theta)
    for found, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(found, expected)
