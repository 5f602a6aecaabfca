"""Vectors that say something are told from those that say nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import data

NAMES = [f"P{i}" for i in range(40)]


def screen(seed, strength=1.0, n=40, d=3):
    """Vectors, others of the same kind, and effects that are linear in the first, with noise."""
    rng = np.random.default_rng(seed)
    names = [f"P{i}" for i in range(n)]
    vectors, others = (pd.DataFrame(rng.normal(size=(n, d)), index=names) for _ in range(2))
    effects = strength * vectors @ rng.normal(size=(d, 60)) + 0.5 + rng.normal(size=(n, 60))
    return vectors, others, pd.DataFrame(effects.to_numpy(), index=names)


def test_what_is_explained():
    vectors, others, effects = screen(0)
    found = data.vector_evidence(vectors, effects)
    assert found.index.tolist() == effects.index.tolist()
    assert 0.6 < found.attrs["explained"] < 0.76  # of the variance, 3 of 4 parts are the vectors'
    assert found.attrs["p_value"] == pytest.approx(1 / 101) and len(found.attrs["shuffled"]) == 100
    nothing = data.vector_evidence(others, effects)
    assert nothing.attrs["explained"] < 0.05 and nothing.attrs["p_value"] > 0.05
    np.testing.assert_allclose(found["squared_effect"], (effects**2).sum(axis=1))
    mean = (effects.sum() - effects) / 39
    np.testing.assert_allclose(found["error_of_mean"], ((effects - mean) ** 2).sum(axis=1), rtol=1e-4)
    total = 1 - found["error"].sum() / found["error_of_mean"].sum()
    assert found.attrs["explained"] == pytest.approx(total)
    assert found.attrs["harm_rate"] == (found["error"] > found["squared_effect"]).mean()
    pd.testing.assert_frame_equal(data.vector_evidence(vectors, effects), found)  # the same seed


def test_p_values_are_uniform_without_information():
    """Of 60 screens whose vectors say nothing, about every tenth has p up to 0.1, and none of a mean share above 0."""
    p, shares = [], []
    for seed in range(60):
        _, others, effects = screen(seed, n=12)
        found = data.vector_evidence(others, effects, n_shuffles=19)
        p.append(found.attrs["p_value"])
        shares.append(found.attrs["explained"])
    assert 1 <= sum(value <= 0.1 for value in p) <= 13 and np.mean(shares) < 0.01


def test_several_sources_and_other_kernels():
    vectors, others, effects = screen(1)
    found = data.vector_evidence({"good": vectors, "noise": others}, effects, n_shuffles=9)
    assert found.attrs["weights"]["good"] >= 0.75 and found.attrs["explained"] > 0.5
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 6, 40)
    circle = pd.DataFrame({"x": angle}, index=NAMES)  # a curve that no line follows
    effects = pd.DataFrame(np.cos(angle)[:, None] * rng.normal(size=60) + 0.1 * rng.normal(size=(40, 60)), index=NAMES)
    shares = [
        data.vector_evidence(circle, effects, kernel=k, n_shuffles=0).attrs["explained"] for k in ("linear", "rbf")
    ]
    assert shares[0] < 0.2 and shares[1] > 0.7


def test_names_without_a_vector():
    vectors, _, effects = screen(2)
    found = data.vector_evidence(vectors.drop(index=["P3", "P5"]), effects, n_shuffles=0)
    assert found.attrs["without_vector"] == ["P3", "P5"] and len(found) == 38 and found.attrs["p_value"] == 1.0
    with pytest.raises(ValueError, match="No vectors were given"):
        data.vector_evidence({}, effects)
    with pytest.raises(ValueError, match="`n_shuffles` is -1"):
        data.vector_evidence(vectors, effects, n_shuffles=-1)
