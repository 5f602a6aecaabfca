"""The benchmark over all tasks: its baselines in closed form, and its summaries on a table made by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

QUALITY = Path(__file__).parents[2] / "benchmarks/quality"
pytestmark = pytest.mark.skipif(not QUALITY.is_dir(), reason="benchmarks/ is not part of this distribution")


@pytest.fixture(scope="module")
def suite():
    sys.path.insert(0, str(QUALITY))
    try:
        import suite
    finally:
        sys.path.remove(str(QUALITY))
    return suite


def change_of(predicted, own):
    return {name: x.mean(axis=0) - own.mean(axis=0) for name, x in predicted.items()}


def test_change_is_the_mean_over_strata(suite):
    y = np.array([[0.0], [2.0], [5.0], [7.0], [1.0], [1.0], [3.0], [3.0]])
    treated, strata = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=bool), np.repeat(["a", "b"], 4)
    assert suite.change(y, treated, ~treated) == pytest.approx(4.5 - 1)
    assert suite.change(y, treated, ~treated, strata) == pytest.approx((5 + 2) / 2)


def test_baselines_from_contexts(suite):
    own = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 5.0]])
    changes, controls = np.array([[2.0, 0, 0], [0, 0, -9.0]]), np.array([[1.0, 2.0, 4.0], [4.0, 2.0, 1.0]])
    found = change_of(suite.from_contexts(own, changes, controls), own)
    np.testing.assert_allclose(found["shift"], [1, 0, -4.5])
    np.testing.assert_allclose(found["shift, clipped at 0"], [1, 0, 0.25 - 4])
    np.testing.assert_allclose(found["shift of the nearest context"], [2, 0, 0])
    np.testing.assert_allclose(found["mean perturbed of other contexts"], [3.5 - 1, 0, -2 - 4])


def test_baselines_from_members(suite):
    own, rng = np.zeros((2, 5)), np.random.default_rng(0)
    single = {name: rng.normal(size=5) for name in "ABC"}
    effects = single | {"A+C": single["A"] + single["C"]}
    found = change_of(suite.from_members(own, effects, "A+B"), own)
    np.testing.assert_allclose(found["additive"], single["A"] + single["B"])
    np.testing.assert_allclose(found["least squares on members"], single["A"] + single["B"], atol=1e-8)
    larger = max(single["A"], single["B"], key=np.linalg.norm)
    np.testing.assert_allclose(found["larger of the singles"], larger)
    np.testing.assert_allclose(found["mean of the perturbations"], np.mean([*effects.values()], axis=0))


def test_baselines_from_vectors(suite):
    own = np.zeros((2, 3))
    vectors = pd.DataFrame([[1.0, 0], [0, 1], [0, 2], [0, 3]], index=list("ABCX"))
    effects = {name: np.full(3, value) for name, value in zip("ABC", (1.0, 2.0, 4.0), strict=True)}
    found = change_of(suite.from_vectors(own, effects, vectors, "X"), own)
    np.testing.assert_allclose(found["nearest vector"], 3)
    np.testing.assert_allclose(found["mean of the perturbations"], 7 / 3)
    vectors.loc["X"] = 0.0
    np.testing.assert_allclose(suite.from_vectors(own, effects, vectors, "X")["nearest vector"], 7 / 3)


@pytest.fixture
def rows(suite):
    """Two tasks of three conditions: the model is behind the shift in the error of the second."""
    errors = {
        ("one", suite.OURS): (1.0, 1.0, 1.0),
        ("one", "shift"): (2.0, 2.0, 2.0),
        ("one", suite.NO_CHANGE): (3.0, 3.0, 0.5),
        ("two", suite.OURS): (2.0, 2.1, 2.2),
        ("two", "shift"): (1.0, 1.0, 1.0),
        ("two", suite.NO_CHANGE): (4.0, 2.0, 4.0),
    }
    table = [
        {"task": task, "fold": "f", "condition": f"c{i}", "seed": seed, "method": method}
        | {name: error if suite.better(name) < 0 else -error for name in suite.JUDGED}
        for (task, method), values in errors.items()
        for i, error in enumerate(values)
        for seed in (0, 1)
    ]
    return pd.DataFrame(table)


def test_summaries(suite, rows):
    behind = suite.behind(rows)
    assert set(behind["task"]) == {"two"} and set(behind["score"]) == set(suite.JUDGED)
    assert (behind["baseline"] == "shift").all() and (behind["conditions"] == 3).all()
    np.testing.assert_allclose(behind["lead"], 1.1)
    np.testing.assert_allclose(behind["standard error"], np.std([1.0, 1.1, 1.2], ddof=1) / np.sqrt(3))
    harm = suite.harm(rows)
    assert harm.loc[("one", suite.OURS), "worse than no change"] == pytest.approx(1 / 3)
    assert harm.loc[("two", suite.OURS), "worse than no change"] == pytest.approx(1 / 3)
    assert harm.loc[("one", suite.OURS), "worse than the best simple"] == 0
    assert harm.loc[("two", suite.OURS), "worse than the best simple"] == 1
    ranks = suite.ranks(rows)
    assert ranks.loc[suite.OURS, "mean rank"] == ranks.loc["shift", "mean rank"] == 1.5
    assert ranks.loc[suite.NO_CHANGE, "place"] == 1


def test_a_single_condition_has_no_standard_error(suite, rows):
    behind = suite.behind(rows[rows["condition"] == "c0"])
    assert set(behind["task"]) == {"two"} and (behind["standard error"] == 0).all()
