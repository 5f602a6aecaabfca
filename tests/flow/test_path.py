"""The straight path between paired points."""

import torch

from cfmvc_scvi.flow import LinearPath


def pairs(n: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x0, torch.randn(n, 3, generator=generator, dtype=torch.float64)


def test_points_lie_on_the_line():
    x0, x1 = pairs()
    t = torch.linspace(0, 1, len(x0), dtype=torch.float64)
    sample = LinearPath().sample(x0, x1, t)
    for i, ti in enumerate(t):
        torch.testing.assert_close(sample.x_t[i], (1 - ti) * x0[i] + ti * x1[i])
    assert torch.equal(sample.t, t)


def test_ends_are_the_points_themselves():
    x0, x1 = pairs()
    assert torch.equal(LinearPath().sample(x0, x1, torch.zeros(len(x0), dtype=x0.dtype)).x_t, x0)
    assert torch.equal(LinearPath().sample(x0, x1, torch.ones(len(x0), dtype=x0.dtype)).x_t, x1)


def test_velocity_is_the_time_derivative():
    x0, x1 = pairs()
    t = torch.rand(len(x0), dtype=torch.float64)
    early, late = LinearPath().sample(x0, x1, t - 1e-3), LinearPath().sample(x0, x1, t + 1e-3)
    torch.testing.assert_close(early.velocity, (late.x_t - early.x_t) / 2e-3)
