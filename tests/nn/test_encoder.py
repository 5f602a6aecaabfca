"""The encoder: shapes, bounds and what reaches which latent."""

import pytest
import torch

from cfmvc_scvi._constants import LOGVAR_BOUNDS
from cfmvc_scvi.nn import Encoder

N = 7


def inputs(n_covariates: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(N, 12) * 4, torch.randint(0, 2, (N, n_covariates))


@pytest.mark.parametrize("extra", [(), (3,), (3, 2)])
@pytest.mark.parametrize("n_continuous", [0, 2])
def test_shapes(extra, n_continuous):
    encoder = Encoder(12, 5, 3, [2, 4, *extra], n_continuous, n_hidden=16)
    x, codes = inputs(2 + len(extra))
    q = encoder(x, codes, torch.randn(N, n_continuous) if n_continuous else None)
    assert q.int_mean.shape == q.int_logvar.shape == (N, 5)
    assert q.tech_mean.shape == q.tech_logvar.shape == (N, 3)


@pytest.mark.parametrize(("factor", "bound"), [(1e4, LOGVAR_BOUNDS[1]), (-1e4, LOGVAR_BOUNDS[0])])
def test_log_variances_are_clamped(factor, bound):
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16)
    for head in (encoder.int_logvar, encoder.tech_logvar):
        torch.nn.init.constant_(head.bias, factor)
    q = encoder(*inputs())
    assert torch.equal(q.int_logvar, torch.full((N, 5), bound))
    assert torch.equal(q.tech_logvar, torch.full((N, 3), bound))


def test_intrinsic_mean_starts_linear_and_blind_to_cell_type():
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16)
    x, codes = inputs()
    other = codes.clone()
    other[:, 1] = 3
    torch.testing.assert_close(encoder(x, codes).int_mean, encoder.linear(x))
    assert torch.equal(encoder(x, codes).int_mean, encoder(x, other).int_mean)
    assert not torch.allclose(encoder(x, codes).tech_mean, encoder(x, other).tech_mean)


def test_batch_offset_is_taken_off():
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16)
    torch.nn.init.normal_(encoder.batch_offset.weight)
    x, codes = inputs()
    expected = encoder.linear(x) - encoder.batch_offset.weight[codes[:, 0]]
    torch.testing.assert_close(encoder(x, codes).int_mean, expected)


def test_cells_do_not_see_each_other():
    """No batch norm: a cell's posterior is its own, and one cell alone trains."""
    encoder = Encoder(12, 5, 3, [2, 4], n_hidden=16).train()
    x, codes = inputs()
    torch.testing.assert_close(encoder(x[:1], codes[:1]).int_logvar, encoder(x, codes).int_logvar[:1])
