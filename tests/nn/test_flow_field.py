"""The velocity field: base plus effect, no effect without coefficients, a linear start."""

import torch

from cfmvc_scvi.nn import FlowField
from cfmvc_scvi.nn.groups import Groups

N, D, K, C = 9, 3, 4, 5


def field(scale: float | None = 0.5) -> FlowField:
    torch.manual_seed(0)
    net = FlowField(D, C, n_basis=K, n_hidden=16)
    if scale is not None:
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=scale)
    return net


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.randn(N, D), torch.rand(N), torch.randn(N, C), torch.randn(N, K)


def test_velocity_is_base_plus_weighted_basis():
    net, (z, t, context, alpha) = field(), inputs()
    parts = net(z, t, context, alpha)
    basis = net.basis(z, t, context)
    assert basis.shape == (N, K, D)
    expected = sum(alpha[:, k, None] * basis[:, k] for k in range(K))
    torch.testing.assert_close(parts.effect, expected)
    torch.testing.assert_close(parts.total, parts.base + expected)
    assert parts.total.shape == (N, D)


def test_effect_is_zero_without_coefficients():
    net, (z, t, context, alpha) = field(), inputs()
    control = net(z, t, context, torch.zeros_like(alpha))
    assert torch.equal(control.effect, torch.zeros(N, D))
    assert torch.equal(control.total, control.base)
    assert torch.equal(control.base, net(z, t, context, alpha).base)
    assert control.base.abs().sum() > 0


def test_effect_is_linear_in_the_coefficients():
    net, (z, t, context, alpha) = field(), inputs()
    torch.testing.assert_close(net(z, t, context, 3 * alpha).effect, 3 * net(z, t, context, alpha).effect)


def test_starts_as_a_constant_field():
    """No base velocity, and the same direction at every point, time and context."""
    net, (z, t, context, alpha) = field(None), inputs()
    parts = net(z, t, context, alpha)
    assert torch.equal(parts.base, torch.zeros(N, D))
    torch.testing.assert_close(parts.effect, alpha @ net.direction)
    assert net.direction.abs().sum() > 0


def test_depends_on_point_time_and_context():
    net, (z, t, context, alpha) = field(), inputs()
    base = net(z, t, context, alpha).total
    assert not torch.allclose(net(z + 1, t, context, alpha).total, base)
    assert not torch.allclose(net(z, 1 - t, context, alpha).total, base)
    assert not torch.allclose(net(z, t, context + 1, alpha).total, base)


def test_times_zero_and_one_are_told_apart():
    """Frequencies of whole periods alone would make the field periodic in time."""
    net, (z, _, context, alpha) = field(), inputs()
    net.time.frequencies.requires_grad_(False)
    start = net.time(torch.zeros(1))[:, 1:]
    assert not torch.allclose(start, net.time(torch.ones(1))[:, 1:])
    assert net.time(torch.zeros(6)).shape == (6, net.time.n_out)
    assert torch.isfinite(net(z, torch.ones(N), context, alpha).total).all()


def test_every_parameter_gets_a_gradient():
    net = field()
    net(*inputs()).total.square().sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_runs_without_context():
    net = FlowField(D, 0, n_basis=K, n_hidden=16)
    z, t, _, alpha = inputs()
    assert net(z, t, torch.zeros(N, 0), alpha).total.shape == (N, D)


# ---- the same velocity with less work -------------------------------------------------------------------------------


def gradients(net: FlowField, total: torch.Tensor) -> list[torch.Tensor]:
    weight = torch.linspace(-1.0, 2.0, total.numel(), dtype=total.dtype).view_as(total)
    return list(torch.autograd.grad((total * weight).sum(), list(net.parameters())))


def test_grouped_cells_have_the_same_velocity_and_gradients():
    net = field().double()
    z, t, context, _ = (x.double() for x in inputs())
    alpha = torch.randn(3, K, dtype=torch.float64)
    alpha[1] = 0.0
    group = torch.tensor([2, 0, 1, 1, 2, 2, 0, 1, 1])
    plain = net(z, t, context, alpha[group])
    grouped = net.forward_grouped(z, t, context, alpha, Groups.of(group))
    torch.testing.assert_close(grouped.base, plain.base)
    torch.testing.assert_close(grouped.effect, plain.effect)
    for a, b in zip(gradients(net, grouped.total), gradients(net, plain.total), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(grouped.effect[group == 1], torch.zeros(4, D, dtype=torch.float64))


def test_field_of_shared_coefficients_is_the_same_velocity():
    net = field().double()
    z, _, context, _ = (x.double() for x in inputs())
    for alpha in (torch.randn(K, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)):
        velocity = net.field(context, alpha)
        for time in (0.0, 0.37, 1.0):
            t = torch.full((N,), time, dtype=torch.float64)
            expected = net(z, t, context, alpha.expand(N, K)).total
            torch.testing.assert_close(velocity(z, time), expected)
