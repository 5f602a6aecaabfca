"""The encoder: shapes, bounds and what reaches which latent."""

import pytest
import torch

from cfmvc_scvi._constants import LOGVAR_BOUNDS
from cfmvc_scvi.nn import Encoder

N = 7


def inputs(n_covariates: int = 2) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    return torch.rand(N, 12) * 4, list(torch.randint(0, 2, (N, n_covariates)).T)


@pytest.mark.parametrize("extra", [(), (3,), (3, 2)])
@pytest.mark.parametrize("n_continuous", [0, 2])
def test_shapes(extra, n_continuous):
    encoder = Encoder(12, 5, 3, [2, 4, *extra], n_continuous, n_hidden=16)
    x, codes = inputs(2 + len(extra))
    q = encoder(x, codes, torch.randn(N, n_continuous) if n_continuous else None)
    assert [x.shape for x in q.intrinsic] == [(N, 5)] * 2
    assert [x.shape for x in q.technical] == [(N, 3)] * 2
    assert torch.equal(torch.cat([q.intrinsic[0], q.technical[0]], dim=1), q.mean)


@pytest.mark.parametrize(("factor", "bound"), [(1e4, LOGVAR_BOUNDS[1]), (-1e4, LOGVAR_BOUNDS[0])])
def test_log_variances_are_clamped(factor, bound):
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16)
    encoder.heads.bias.data[5 + 3 :] = factor
    q = encoder(*inputs())
    assert torch.equal(q.logvar, torch.full((N, 5 + 3), bound))
    assert q.mean.abs().max() < abs(bound)


def test_intrinsic_mean_starts_linear_and_blind_to_cell_type():
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16)
    x, codes = inputs()
    other = [codes[0], torch.full_like(codes[1], 3)]
    torch.testing.assert_close(encoder(x, codes).intrinsic[0], x @ encoder.linear_weight + encoder.linear_bias)
    assert torch.equal(encoder(x, codes).intrinsic[0], encoder(x, other).intrinsic[0])
    assert not torch.allclose(encoder(x, codes).technical[0], encoder(x, other).technical[0])


def test_batch_offset_is_taken_off():
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16)
    torch.nn.init.normal_(encoder.batch_offset.weight)
    x, codes = inputs()
    expected = x @ encoder.linear_weight + encoder.linear_bias - encoder.batch_offset.weight[codes[0]]
    torch.testing.assert_close(encoder(x, codes).intrinsic[0], expected)


def test_cells_do_not_see_each_other():
    """No batch norm: a cell's posterior is its own, and one cell alone trains."""
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16).train()
    x, codes = inputs()
    torch.testing.assert_close(encoder(x[:1], [code[:1] for code in codes]).logvar, encoder(x, codes).logvar[:1])
