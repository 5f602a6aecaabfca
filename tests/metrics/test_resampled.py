"""Energy distances over resampled cells."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi.metrics import energy_distance
from cfmvc_scvi.metrics._resampled import ResampledEnergy


def drawn(seed: int, n: int = 60, m: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)), 0.5 + rng.normal(size=(m, 5))


def test_first_value_is_the_energy_distance():
    x, y = drawn(0)
    assert ResampledEnergy(y, len(x), 3, 0).distances(x)[0] == pytest.approx(energy_distance(x, y))


def test_spread_over_resamples_is_that_over_samples():
    """The bootstrap's standard deviation against that of 300 samples of new cells."""
    found = [ResampledEnergy(y, len(x), 1, 0).distances(x)[0] for x, y in map(drawn, range(300))]
    spreads, centres = [], []
    for x, y in map(drawn, range(20)):
        values = ResampledEnergy(y, len(x), 200, 1).distances(x)
        spreads.append(values[1:].std())
        centres.append(values[1:].mean() - values[0])
    assert np.mean(spreads) == pytest.approx(np.std(found), rel=0.25)
    assert np.mean(centres) < np.std(found)  # resamples lie further apart than samples, by less than they vary


def test_samples_are_resampled_alike():
    """A sample that is nearer by a constant shift of every cell is nearer in all resamples."""
    x, y = drawn(2)
    energy = ResampledEnergy(y, len(x), 50, 0)
    near, far = energy.distances(x + 0.4), energy.distances(x - 0.4)
    assert (near < far).all()
    np.testing.assert_array_equal(ResampledEnergy(y, len(x), 50, 0).distances(x), energy.distances(x))


def test_single_cells_are_refused():
    with pytest.raises(ValueError, match="two cells in each sample, not 5 and 1"):
        ResampledEnergy(np.zeros((1, 2)), 5, 10, 0)
