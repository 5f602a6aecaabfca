"""The decoder: shares, the panel's rest, dispersion."""

import pytest
import torch

from cfmvc_scvi.nn import Decoder


def decoder(**kwargs) -> Decoder:
    torch.manual_seed(0)
    return Decoder(4, 2, 30, n_hidden=16, **kwargs)


def randomise(module: torch.nn.Module, scale: float) -> None:
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=scale)


@pytest.mark.parametrize("n_layers", [0, 1, 2])
@pytest.mark.parametrize("lead", [(5,), (3, 5)])
def test_shapes(n_layers, lead):
    assert decoder(n_layers=n_layers)(torch.randn(*lead, 4), torch.randn(*lead, 2)).shape == (*lead, 30)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_shares_sum_to_one(scale):
    net = decoder()
    randomise(net, scale)
    share = net(torch.randn(6, 4), torch.randn(6, 2)).double().exp()
    torch.testing.assert_close(share.sum(dim=-1), torch.ones(6).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 0.4])
def test_panel_leaves_a_rest(scale):
    net = decoder(panel=True)
    randomise(net, scale)
    z, technical = torch.randn(6, 4), torch.randn(6, 2)
    share = net(z, technical).double().exp()
    assert share.shape == (6, 30)
    assert (share > 0).all()
    assert (share.sum(dim=-1) < 1).all()
    odds = share.sum(dim=-1) / (1 - share.sum(dim=-1))  # the rest has logit 0: the odds are the sum of exp(logits)
    logits = net.logits(z, technical)
    torch.testing.assert_close(odds, logits.double().exp().sum(dim=-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("panel", [False, True])
def test_share_is_the_exponential_of_the_log_share(panel):
    net = decoder(panel=panel)
    randomise(net, 0.4)
    z, technical = torch.randn(6, 4), torch.randn(6, 2)
    torch.testing.assert_close(net.share(z, technical), net(z, technical).exp(), rtol=1e-5, atol=1e-8)


def test_output_is_a_linear_map_of_the_latents_and_a_network_that_starts_at_zero():
    net = decoder(n_layers=2)
    z, technical = torch.randn(6, 4), torch.randn(6, 2)
    both = torch.cat([z, technical], -1)
    linear = both @ net.linear_weight.T + net.output.bias
    torch.testing.assert_close(net.logits(z, technical), linear)
    randomise(net, 0.4)
    linear = both @ net.linear_weight.T + net.output.bias
    torch.testing.assert_close(net.logits(z, technical) - linear, net.hidden(both) @ net.output.weight[:, 6:].T)


@pytest.mark.parametrize("z", [1e3, -1e3, 1e6])
def test_extreme_latents_stay_finite(z):
    net = decoder()
    randomise(net, 1.0)
    log_share = net(torch.full((2, 4), z), torch.zeros(2, 2))
    assert torch.isfinite(log_share).all()
    assert (log_share <= 0).all()


def test_starts_linear_on_the_log_scale():
    net = decoder()
    z, technical, step = torch.randn(6, 4), torch.randn(6, 2), torch.randn(4)
    change = net(z + step, technical) - net(z, technical)
    contrast = change - change.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(contrast, contrast[:1].expand(6, -1), rtol=1e-4, atol=1e-5)
    assert contrast.abs().max() > 0.1


def test_output_is_float32_under_autocast():
    net = decoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(torch.randn(3, 4), torch.randn(3, 2))
    assert out.dtype == torch.float32
    assert net.double()(torch.randn(3, 4).double(), torch.randn(3, 2).double()).dtype == torch.float64
