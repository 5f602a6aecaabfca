"""Vectors of a batch: those of the members laid out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.cells.vectors import ConditionVectors
from cfmvc_scvi.registration.members import Members


@pytest.mark.parametrize("table", [None, np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)])
def test_rows_are_the_sums_over_members(table):
    index = np.array([[-1, -1], [2, -1], [0, 3], [1, 2]])
    weight = np.where(index < 0, 0, [[1.0, 0.5]]).astype(np.float32)
    members = Members(index, weight, table, 4 if table is None else 3)
    condition = torch.tensor([3, 0, 1, 1, 2])
    found = ConditionVectors(members, "cpu").rows(condition)
    assert torch.equal(found, torch.from_numpy(members.dense().sum(axis=1))[condition])
