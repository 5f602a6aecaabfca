"""Corrections of decoded changes in shallow cells."""

import numpy as np
import pytest

from cfmvc_scvi.calibration.correction import count_scale, shallowness


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
