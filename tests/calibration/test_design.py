"""Greedy choice of experiments: against processes to which the observation was added, and against every choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cfmvc_scvi.calibration.design import choose_experiments, observed
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import effect_error
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.registration.members import Members

N_GENES, N_CONTEXTS = 8, 3


@pytest.fixture(scope="module")
def world():
    """Five of twelve perturbations with vectors measured in three contexts, and the process fitted on them."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 4)) / 2
    weights = rng.normal(size=(4, N_GENES))
    pairs = [(k, c) for k in range(5) for c in range(N_CONTEXTS)]
    p, context = vectors[[k for k, _ in pairs]], np.array([c for _, c in pairs])
    variance = rng.uniform(0.01, 0.1, size=(len(pairs), N_GENES))
    effect = p @ weights + rng.normal(size=variance.shape) * np.sqrt(variance)
    data = MeanEffects(effect, variance, Members.of_dense(p[:, None]), context)
    gp = EffectGP(rng.normal(size=(N_CONTEXTS, N_GENES))).fit(data)
    queries = Conditions(np.repeat(vectors[5:], N_CONTEXTS, axis=0)[:, None], np.tile(np.arange(N_CONTEXTS), 7))
    return replace(gp, hyper=gp.hyper | {"noise": 1.3}), data, queries


def covariance(world, more: list[int], noise: np.ndarray) -> np.ndarray:
    """Covariance of the errors with these conditions observed too, whatever their effect was."""
    gp, data, queries = world
    members = np.concatenate([data.members.dense(), queries.members[more].astype(np.float32)])
    added = MeanEffects(
        np.concatenate([data.effect, np.ones((len(more), N_GENES))]),
        np.concatenate([data.variance, noise[:, more].T / gp.hyper["noise"]]),
        Members.of_dense(members),
        np.r_[data.context, queries.context[more]],
    )
    error = effect_error(gp, added, queries)
    return error.process + error.noise


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(1).uniform(0.01, 0.2, size=(N_GENES, 21))


def test_variance_is_that_of_the_process_with_the_observations(world, noise):
    before = covariance(world, [], noise)
    once = observed(before, noise, 4)
    np.testing.assert_allclose(once, covariance(world, [4], noise), atol=5e-6)
    np.testing.assert_allclose(observed(once, noise, 11), covariance(world, [4, 11], noise), atol=5e-6)
    assert np.abs(once - before).max() > 1e-3


def test_every_choice_is_the_best_of_all(world, noise):
    candidates, targets = np.arange(3, 21), np.array([0, 1, 2, 9])
    before = covariance(world, [], noise)
    design = choose_experiments(before, noise, candidates, targets, 3)
    assert len(set(design.chosen)) == 3 and set(design.chosen) <= set(candidates)
    chosen: list[int] = []
    for at, variance in zip(design.chosen, design.variance[1:], strict=True):
        left = {
            j: np.einsum("gjj->gj", covariance(world, [*chosen, j], noise))[:, targets].mean()
            for j in set(candidates.tolist()) - set(chosen)
        }
        assert min(left, key=left.get) == at
        assert variance == pytest.approx(left[at], rel=1e-3)
        chosen.append(int(at))


def test_no_more_experiments_than_candidates(world, noise):
    design = choose_experiments(covariance(world, [], noise), noise, np.array([2, 5]), np.arange(21), 9)
    assert sorted(design.chosen) == [2, 5] and len(design.variance) == 3
    assert (np.diff(design.variance) < 0).all()


def test_a_useless_experiment_changes_nothing(world, noise):
    before = covariance(world, [], noise)
    design = choose_experiments(before, np.full_like(noise, 1e12), np.arange(4), np.arange(21), 1)
    assert design.variance[1] == pytest.approx(design.variance[0])
