"""The energy distance for training."""

import pytest
import torch

from cfmvc_scvi.flow import energy_distance


def sample(n: int, shift: float = 0.0, seed: int = 0, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def naive(x: torch.Tensor, y: torch.Tensor) -> float:
    def mean(a, b, skip):
        values = [float((p - q).norm()) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return sum(values) / len(values)

    return 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 9), (40, 33)])
def test_agrees_with_a_loop(n, m):
    x, y = sample(n), sample(m, 0.7, seed=1)
    assert float(energy_distance(x, y)) == pytest.approx(naive(x, y), rel=1e-9)


def test_is_symmetric_and_invariant_to_motion():
    x, y = sample(20), sample(30, 0.5, seed=1)
    rotation = torch.linalg.qr(sample(3, seed=2)).Q
    moved = energy_distance(x @ rotation + 4.0, y @ rotation + 4.0)
    torch.testing.assert_close(energy_distance(x, y), energy_distance(y, x))
    torch.testing.assert_close(energy_distance(x, y), moved)


@pytest.mark.parametrize("n", [4, 30])  # cdist takes another path above 25 points
def test_gradient_is_right(n):
    x, y = sample(n).requires_grad_(), sample(n + 1, 0.4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(energy_distance, (x, y), atol=1e-6)


def test_gradient_descent_moves_one_sample_onto_the_other():
    x, y = sample(60, 2.0).requires_grad_(), sample(60, seed=1)
    before = energy_distance(x, y).item()
    optimiser = torch.optim.Adam([x], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        energy_distance(x, y).backward()
        optimiser.step()
    assert energy_distance(x, y).item() < 0.1 * before


def test_coinciding_points_have_a_finite_gradient():
    x = torch.zeros(4, 2, requires_grad=True)
    energy_distance(x, torch.zeros(3, 2)).backward()
    assert torch.isfinite(x.grad).all()


def test_mean_is_zero_under_the_null():
    values = torch.stack([energy_distance(sample(12, seed=2 * i), sample(9, seed=2 * i + 1)) for i in range(600)])
    standard_error = float(values.std() / len(values) ** 0.5)
    assert abs(float(values.mean())) < 4 * standard_error
    assert (values < 0).any()  # a V-statistic would be positive throughout
    assert float(energy_distance(sample(12), sample(9, 1.0, seed=1))) > 5 * float(values.std())


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (0, 3)])
def test_single_points_are_refused(n, m):
    with pytest.raises(ValueError, match=f"not {n} and {m}"):
        energy_distance(sample(n), sample(m))
