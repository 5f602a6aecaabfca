"""Closed forms of leaving out, against doing it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from cfmvc_scvi.data.vectors.leave_out import (
    STRENGTHS,
    compressed,
    cross_fitted,
    gram,
    left_out_errors,
    left_out_operators,
    matched,
    mixtures,
)

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)), RNG.normal(size=(12, 30))


def test_residuals_are_those_of_models_fitted_without_each():
    """Ridge with an intercept that is not penalised, on all but one perturbation."""
    kernel = gram(X)
    scale = np.trace((X - X.mean(0)) @ (X - X.mean(0)).T) / len(X)
    for strength, operator in zip(STRENGTHS, left_out_operators(kernel), strict=True):
        for i in range(len(X)):
            rest = np.arange(len(X)) != i
            if np.isinf(strength):
                predicted = Y[rest].mean(axis=0)
            else:
                predicted = Ridge(alpha=strength * scale).fit(X[rest], Y[rest]).predict(X[[i]])[0]
            np.testing.assert_allclose((operator @ Y)[i], Y[i] - predicted, rtol=1e-6, atol=1e-8)


def test_rbf_kernel():
    """The same with a kernel of distances: kernel ridge on centred effects, where the intercept is a bordered row."""
    kernel = gram(X, "rbf")
    assert np.trace(kernel) / len(X) == pytest.approx(1.0) and np.abs(kernel.sum(axis=0)).max() < 1e-9
    squared = ((X[:, None] - X[None]) ** 2).sum(-1)
    plain = np.exp(-squared / (2 * np.median(squared[~np.eye(12, dtype=bool)])))
    centred = plain - plain.mean(0) - plain.mean(1)[:, None] + plain.mean()
    np.testing.assert_allclose(kernel, centred * 12 / np.trace(centred), atol=1e-12)
    strength, operator = STRENGTHS[4], list(left_out_operators(kernel))[4]
    rest = np.arange(12) != 3
    border = np.block([[kernel[np.ix_(rest, rest)] + strength * np.eye(11), np.ones((11, 1))], [np.ones((1, 11)), 0]])
    solution = np.linalg.solve(border, np.vstack([Y[rest], np.zeros((1, 30))]))
    np.testing.assert_allclose((operator @ Y)[3], Y[3] - kernel[3, rest] @ solution[:-1] - solution[-1], atol=1e-8)
    assert np.isfinite(gram(np.ones((5, 2)))).all()
    with pytest.raises(ValueError, match="Unknown `kernel` 'cosine'"):
        gram(X, "cosine")


def test_errors_of_mixtures():
    kernels, weights = [gram(X), gram(X[:, :1])], np.array([[1.0, 0.0], [0.25, 0.75]])
    orders = [Y, Y[::-1]]
    errors = left_out_errors(kernels, weights, orders)
    assert errors.shape == (2 * len(STRENGTHS), 2, 12)
    operator = list(left_out_operators(0.25 * kernels[0] + 0.75 * kernels[1]))[2]
    np.testing.assert_allclose(errors[len(STRENGTHS) + 2, 1], ((operator @ Y[::-1]) ** 2).sum(axis=1), rtol=1e-5)


def test_mixtures_and_compression():
    assert mixtures(1).tolist() == [[1.0]] and len(mixtures(2)) == 5
    for n in (2, 3, 4, 6):
        weights = mixtures(n)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0)
        assert weights.min() >= 0 and (np.abs(weights - 1 / n).max(axis=1) < 1e-12).sum() == 1
    np.testing.assert_allclose(compressed(Y) @ compressed(Y).T, Y @ Y.T, atol=1e-9)
    assert compressed(Y).shape == (12, 12) and compressed(Y[:, :5]).shape == (12, 5)


def test_cross_fitting_chooses_without_the_one():
    errors = np.array([[1.0, 1.0, 1.0, 9.0], [2.0, 2.0, 2.0, 0.0]])  # the second is best for all together
    np.testing.assert_array_equal(cross_fitted(errors), [2.0, 2.0, 2.0, 9.0])  # and not for the last by the others


def test_names():
    table = pd.DataFrame(X, index=list("ABCDEFGHIJKL"))
    effects = pd.DataFrame(Y[:6], index=list("LKJIHx"))
    assert matched(table, effects) == list("LKJIH")
    with pytest.raises(ValueError, match="4 perturbations have a vector and an effect; leaving out takes at least 5"):
        matched(table, effects.iloc[1:])
    with pytest.raises(ValueError, match=r"`vectors` has repeated names: \['A'\]"):
        matched(pd.concat([table, table.iloc[:1]]), effects)
    with pytest.raises(ValueError, match=r"`effects` has values that are not finite, in \['K'\]"):
        matched(table, effects.drop(index="K").reindex(effects.index))
    with pytest.raises(TypeError, match="`vectors` is a dict"):
        matched({}, effects)
