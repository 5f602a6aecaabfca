"""Draws and KL divergences of the latents: values against torch, the analytic gradient against differences."""

from __future__ import annotations

import torch
from torch.distributions import Normal, kl_divergence

from cfmvc_scvi._types import Part
from cfmvc_scvi.module.elbo import draw_with_kl


def latents(n_standard: int, n_given: int, n: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = (n_standard + n_given,) * 2 + (n_given,) * 2
    return [torch.randn(n, width, generator=generator, dtype=torch.float64, requires_grad=True) for width in widths]


def test_kl_agrees_with_torch():
    mean, logvar, prior_mean, prior_logvar = latents(5, 3)
    _, first, last = draw_with_kl(mean, logvar, prior_mean, prior_logvar)
    q = Normal(mean, (0.5 * logvar).exp())
    p = Normal(prior_mean, (0.5 * prior_logvar).exp())
    torch.testing.assert_close(
        first, kl_divergence(Normal(q.loc[:, :5], q.scale[:, :5]), Normal(0.0, 1.0)).sum(-1).mean()
    )
    torch.testing.assert_close(last, kl_divergence(Normal(q.loc[:, 5:], q.scale[:, 5:]), p).sum(-1).mean())


def with_one_noise(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return draw_with_kl(*inputs)


def test_gradient():
    """Of the draw and both KL terms, by posterior and prior; also where one of the two latents is not there."""
    for shape in ((4, 3), (4, 0), (0, 3)):
        assert torch.autograd.gradcheck(with_one_noise, latents(*shape, n=6))


def test_a_draw_is_of_the_posterior():
    mean, logvar = torch.full((40_000, 2), 2.0), torch.full((40_000, 2), -1.0)
    drawn, *_ = with_one_noise(mean, logvar, mean[:, :1], logvar[:, :1])
    torch.testing.assert_close(drawn.mean(dim=0), torch.full((2,), 2.0), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(dim=0), torch.full((2,), -1.0).exp(), rtol=0.03, atol=0)
    assert torch.corrcoef(drawn.T)[0, 1].abs() < 0.02


def test_kl_of_a_distribution_from_itself_is_zero():
    mean, logvar, prior_mean, prior_logvar = (x.detach() for x in latents(2, 3))
    mean[:, :2] = logvar[:, :2] = 0.0
    mean[:, 2:], logvar[:, 2:] = prior_mean, prior_logvar
    assert [float(x) for x in draw_with_kl(mean, logvar, prior_mean, prior_logvar)[1:]] == [0.0, 0.0]


def test_half_precision_is_worked_out_in_single():
    mean, logvar, prior_mean, prior_logvar = (x.detach().bfloat16() for x in latents(2, 3))
    half = (mean, logvar, prior_mean, prior_logvar)
    single = with_one_noise(*(x.float() for x in half))
    assert all(torch.equal(a, b) for a, b in zip(with_one_noise(*half), single, strict=True))
    assert {x.dtype for x in single} == {torch.float32}


def test_processes_that_share_a_batch_draw_its_noise_together():
    inputs = latents(4, 2, n=7)
    torch.manual_seed(0)
    whole = draw_with_kl(*inputs)[0]
    drawn = []
    for part in (Part(0, 2, 7), Part(1, 2, 7)):
        torch.manual_seed(0)
        drawn.append(draw_with_kl(*(x[part.rows] for x in inputs), part)[0])
    torch.testing.assert_close(torch.cat(drawn), whole)
