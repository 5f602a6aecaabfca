"""How a decoded change is put on an observed cell."""

import numpy as np
import pytest
import torch

from cfmvc_scvi.calibration.change import (
    LevelChange,
    cell_generators,
    decoded_change,
    expected_counts,
    lognorm_expression,
)


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(0.5, 4.0, size=(200, 30))).astype(np.float32)
    return x, x.sum(axis=1)


def put(cells, change=0.0, scale=1.0, center=0.0, highest=20.0):
    x, library = cells
    change = LevelChange(*(torch.full(x.shape, value) for value in (change, scale, center)))
    return expected_counts(x, library, change, np.full(x.shape[1], highest, dtype=np.float32))


def test_no_change_returns_the_counts_to_the_bit(cells):
    np.testing.assert_array_equal(put(cells), cells[0])
    np.testing.assert_array_equal(put(cells, highest=0.0), cells[0])


def test_rise_moves_log_expression_by_the_change(cells):
    y = lognorm_expression(*cells)
    moved = lognorm_expression(put(cells, change=0.7), cells[1])
    np.testing.assert_allclose(moved, y + 0.7, rtol=1e-4)


def test_spread_factor_acts_around_the_center(cells):
    y = lognorm_expression(*cells)
    moved = lognorm_expression(put(cells, scale=0.5, center=2.0), cells[1])
    np.testing.assert_allclose(moved, np.maximum(2.0 + 0.5 * (y - 2.0), 0.0), rtol=1e-4, atol=1e-5)


def test_fall_stops_at_zero(cells):
    moved = put(cells, change=-30.0)
    assert moved.min() == 0.0 and moved.max() < 1e-3


def test_no_cell_rises_above_the_highest_level_of_training(cells):
    y = lognorm_expression(*cells)
    moved = lognorm_expression(put(cells, change=3.0, scale=2.0, highest=6.0), cells[1])
    assert (moved > 6.0 - 1e-3).any()
    assert (moved <= np.maximum(y, 6.0) + 1e-4).all()


def test_decoded_change_is_that_of_log1p_cp10k():
    rng = np.random.default_rng(1)
    before, after = torch.from_numpy(rng.uniform(-25.0, 0.0, size=(2, 50, 40)).astype(np.float32))
    a, b = (value.double() for value in (after, before))
    expected = torch.log1p(1e4 * a.exp()) - torch.log1p(1e4 * b.exp())
    np.testing.assert_allclose(decoded_change(before.exp(), after.exp()), expected, rtol=1e-5, atol=2e-6)
    assert torch.equal(decoded_change(before.exp(), before.exp()), torch.zeros(50, 40))


def test_generators_belong_to_names_not_to_positions():
    first = [g.random() for g in cell_generators(["a", "b", "a"], 0, "counts")]
    second = [g.random() for g in cell_generators(["b", "a"], 0, "counts")]
    assert first[1] == second[0] and first[0] == second[1]
    assert len(set(first)) == 3
    assert cell_generators(["a"], 1, "counts")[0].random() != first[0]
    assert cell_generators(["a"], 0, "posterior")[0].random() != first[0]
