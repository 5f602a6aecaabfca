"""Conditions that the process is asked for: vectors, and what they share with populations."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.calibration.process import MeanEffects
from cfmvc_scvi.calibration.process_query import Conditions, related
from cfmvc_scvi.registration.members import Members


def populations() -> MeanEffects:
    """Features 0, 1 and 2 alone, and 0 and 1 together."""
    index = np.array([[0, -1], [1, -1], [2, -1], [0, 1]])
    members = Members(index, (index >= 0).astype(np.float32), None, 4)
    return MeanEffects(np.zeros((4, 3)), np.ones((4, 3)), members, np.array([0, 0, 1, 1]))


def test_conditions_after_populations():
    asked = Conditions(np.eye(4)[[[0, 1], [3, 3]]] * [[[1], [1]], [[2], [0]]], np.array([1, 0]))
    kind, context, length, combined = asked.after(populations())
    assert kind[3] == kind[4] and len(set(kind)) == 5
    assert context.tolist() == [0, 0, 1, 1, 1, 0]
    np.testing.assert_allclose(length, [1, 1, 1, 2**0.5, 2**0.5, 2])
    assert combined.tolist() == [False, False, False, True, True, False]


def test_related_populations_share_features_directly_or_by_way_of_others():
    data = populations()
    one = Conditions(np.eye(4)[None, :1], np.zeros(1, dtype=int))
    assert related(data, one).members.index.tolist() == [[0, -1], [1, -1], [0, 1]]
    none = Conditions(np.eye(4)[None, 3:], np.zeros(1, dtype=int))
    assert len(related(data, none).effect) == 0
