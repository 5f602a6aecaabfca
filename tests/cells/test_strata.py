"""Strata: codes of origin, how differently two groups are spread, and which controls are matched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.cells.strata import imbalance, matched_strata, rows_by_group, strata


def test_strata_are_batch_and_covariates_without_the_cell_type():
    categorical = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
    code = strata(FlowContext(categorical[:, 0], categorical[:, 1], categorical[:, 2:]))
    assert code[0] == code[1] and len(set(code)) == 3


def test_imbalance_is_the_total_variation_distance():
    assert imbalance(np.array([0, 1, 1]), np.array([0, 1, 1, 0, 1, 1])) == 0.0
    assert imbalance(np.array([0, 0]), np.array([1, 1])) == 1.0
    assert imbalance(np.array([0, 0, 0, 1]), np.array([0, 1])) == pytest.approx(0.25)


def test_matched_where_unbalanced_and_where_there_are_controls():
    control = np.repeat([0, 1, 2], [40, 40, 3])
    assert matched_strata(np.repeat([0, 1], [20, 25]), control) == {}
    code = np.repeat([0, 1, 2], [60, 5, 10])
    found = matched_strata(code, control)
    assert set(found) == {0, 1}  # three controls are too few
    np.testing.assert_array_equal(found[0], code == 0)
    assert matched_strata(code, np.array([], dtype=int)) == {}


def test_rows_by_group_are_those_of_the_masks():
    rng = np.random.default_rng(0)
    condition, labels = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    rows = rng.permutation(200)[:120]
    groups = rows_by_group(condition, labels, rows)
    assert list(groups) == sorted(set(zip(condition[rows].tolist(), labels[rows].tolist(), strict=True)))
    for (code, label), found in groups.items():
        np.testing.assert_array_equal(found, rows[(condition[rows] == code) & (labels[rows] == label)])
    assert rows_by_group(condition, labels, rows[:0]) == {}
