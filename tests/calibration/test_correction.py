"""Corrections: the shift, the spread and the rate that give a gene the mean it should have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.calibration.correction import (
    GeneCorrection,
    count_scale,
    shallowness,
    solve_log_ratio,
    solve_shift,
    spread_factor,
)
from cfmvc_scvi.likelihood import NegativeBinomial


def test_neutral_adds_nothing_and_spreads_around_the_profiles():
    profiles = np.arange(6.0).reshape(2, 3)
    neutral = GeneCorrection.neutral(profiles)
    assert not neutral.lognorm.any() and not neutral.log_ratio.any() and (neutral.scale == 1).all()
    neutral.center[:] = -1.0
    neutral.lognorm[:] = 5.0
    np.testing.assert_array_equal(profiles, np.arange(6.0).reshape(2, 3))  # arrays of its own
    assert not neutral.log_ratio.any()


def test_spread_factor_is_the_root_of_the_ratio_of_variances_within_bounds():
    variance = np.array([4.0, 4.0, 4.0, 4.0, 4.0])
    factor = spread_factor(variance, np.array([0.0, 12.0, -3.0, 1e6, -1e6]))
    np.testing.assert_allclose(factor, [1.0, 2.0, 0.5, 3.0, 0.5], rtol=1e-3)
    assert factor[0] == 1.0


@pytest.fixture
def moved():
    return np.random.default_rng(0).normal(1.5, 1.0, (40, 6))


def test_shift_reaches_the_level_with_the_bounds_kept(moved):
    highest, level = np.full(6, 4.0), np.array([0.0, 0.3, 1.0, 2.5, 3.9, 9.0])
    after = np.clip(moved + solve_shift(moved, level, highest), 0.0, highest)
    np.testing.assert_allclose(after.mean(axis=0), np.minimum(level, 4.0), atol=1e-6)


def test_shift_undoes_a_shift_and_is_zero_at_the_level(moved):
    highest = np.full(6, 100.0)
    moved = moved + 20.0  # far from both bounds
    level = moved.mean(axis=0)
    np.testing.assert_allclose(solve_shift(moved, level, highest), 0.0, atol=1e-6)
    np.testing.assert_allclose(solve_shift(moved - 3.0, level, highest), 3.0, atol=1e-6)


@pytest.mark.parametrize("ratio", [-1.0, 0.0, 0.7, 2.0])
def test_log_ratio_finds_the_factor_that_was_applied(ratio):
    likelihood = NegativeBinomial(5)
    likelihood.log_theta.data = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0])
    rng = np.random.default_rng(1)
    library = rng.integers(2_000, 9_000, 30).astype(float)
    log_share = np.log(rng.uniform(0.001, 0.01, (30, 5)))
    level = likelihood.expected_lognorm(np.exp(log_share + ratio) * library[:, None], library).mean(axis=0)
    found = solve_log_ratio(log_share, likelihood, library, level, n_iterations=40)
    np.testing.assert_allclose(found, ratio, atol=0.01)


@pytest.mark.parametrize(
    ("depth", "expected"), [(20.0, 1.0), (200.0, 1.0), (200.0 * 2**0.5, 0.5), (400.0, 0.0), (5e3, 0.0)]
)
def test_correction_of_counts_ends_at_400_counts(depth, expected):
    assert shallowness(np.full(9, depth)) == pytest.approx(expected)


def test_counts_change_as_the_rates_do():
    rng = np.random.default_rng(0)
    before = rng.gamma(2.0, 0.05, size=(400, 20))
    after = before * np.linspace(0.5, 3.0, 20)
    x = rng.poisson(before).astype(np.float64)
    expected = x * 1.1
    moved = expected * count_scale(x, expected, before, after)
    wanted = x.mean(axis=0) * np.linspace(0.5, 3.0, 20)
    np.testing.assert_allclose(moved.mean(axis=0), wanted, rtol=0.05)
    np.testing.assert_allclose(count_scale(x, x, before, before), 1.0)


def test_the_factor_is_bounded():
    x = np.zeros((50, 3))
    x[0] = 1.0
    factor = count_scale(x, x, np.full((50, 3), 0.02), np.full((50, 3), 0.02) * [1e-6, 1.0, 1e6])
    np.testing.assert_allclose(factor[[0, 2]], [1 / 3, 4.0], rtol=1e-3)
    assert factor[1] == pytest.approx(1.0)
