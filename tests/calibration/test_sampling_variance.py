"""Variances of few cells and samples: closed-form truths, recovered priors, and limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import polygamma

from cfmvc_scvi.calibration.sampling_variance import (
    PRIOR_FREEDOM,
    inverse_trigamma,
    moved_variance,
    shrink_variance,
    squeeze,
    variance_trend,
)


@pytest.mark.parametrize("x", [1e-3, 0.1, 1.0, 7.0, 1e3])
def test_inverse_trigamma_inverts(x):
    assert inverse_trigamma(float(polygamma(1, x))) == pytest.approx(x, rel=1e-6)


def test_one_cell_has_the_prior_and_many_their_own():
    prior = np.array([2.0, 0.5])
    np.testing.assert_array_equal(shrink_variance(np.zeros(2), 0, prior), prior)
    own = np.array([1.0, 3.0])
    np.testing.assert_allclose(shrink_variance(PRIOR_FREEDOM * own, PRIOR_FREEDOM, prior), own)
    np.testing.assert_allclose(shrink_variance(100 * own, 100, prior), own)
    half = shrink_variance(PRIOR_FREEDOM / 2 * own, PRIOR_FREEDOM / 2, prior)
    np.testing.assert_allclose(half, (own + prior) / 2)


def test_squeeze_recovers_the_prior():
    """Variances drawn from the hierarchical model of Smyth (2004)."""
    rng = np.random.default_rng(0)
    d, d0, prior = 4, 8.0, 0.3
    sigma2 = d0 * prior / rng.chisquare(d0, size=20_000)
    s2 = sigma2 * rng.chisquare(d, size=20_000) / d
    squeezed, total = squeeze(s2, d)
    assert total == pytest.approx(d + d0, rel=0.1)
    np.testing.assert_allclose(squeezed, (d0 * prior + d * s2) / (d0 + d), rtol=0.15)
    assert ((squeezed - sigma2) ** 2).mean() < 0.5 * ((s2 - sigma2) ** 2).mean()


def test_squeeze_of_equal_variances_pools_them():
    s2 = 0.7 * np.random.default_rng(1).chisquare(5, size=5000) / 5
    squeezed, total = squeeze(s2, 5.0)
    assert total > 100
    np.testing.assert_allclose(squeezed, 0.7, rtol=0.1)
    assert squeeze(np.zeros(3), 2.0)[1] == np.inf


def test_a_gene_that_is_switched_on_gets_the_variance_of_its_level():
    mean0 = np.linspace(0.0, 2.0, 200)
    trend = variance_trend(mean0, 0.1 + mean0)
    mean = mean0.copy()
    mean[0] = 1.5
    prior = moved_variance(mean, 1000, mean0, 0.1 + mean0, trend)
    assert prior[0] == pytest.approx(1.6, rel=0.1)
    np.testing.assert_allclose(prior[1:100], 0.1 + mean0[1:100])
    assert moved_variance(mean, 1, mean0, 0.1 + mean0, trend)[0] < 0.3  # one cell is hardly believed
