"""Ridge regression on perturbation vectors."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.calibration.ridge import VectorRidge
from cfmvc_scvi.registration.members import Members


def test_unit_and_dense_vectors_have_the_solution_of_the_normal_equations():
    rng = np.random.default_rng(0)
    index = np.array([[0, -1], [1, -1], [0, 1], [2, 0]])
    unit = Members(index, (index >= 0).astype(np.float32), None, 3)
    weights, y = np.array([1.0, 2.0, 0.5, 3.0]), rng.normal(size=(4, 5))
    p = unit.dense().sum(axis=1)
    expected = np.linalg.solve(p.T @ np.diag(weights) @ p + 0.3 * np.eye(3), p.T @ np.diag(weights) @ y)
    for members in (unit, Members.of_dense(unit.dense())):
        np.testing.assert_allclose(VectorRidge(members, weights, 0.3).coefficients(y), expected, rtol=1e-6)
