"""Corrections: the shift, the spread and the rate that give a gene the mean it should have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.calibration.correction import GeneCorrection, solve_log_ratio, solve_shift, spread_factor
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
