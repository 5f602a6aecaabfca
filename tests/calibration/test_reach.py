"""Reach of vectors: what is kept of an answer, by leaving measured perturbations out."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi.calibration import reach
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.reach import LEAST, VectorReach
from cfmvc_scvi.registration.members import Members

N_GENES = 40


def populations(vectors: np.ndarray, effect: np.ndarray, n_contexts: int = 1, noise: float = 0.02) -> MeanEffects:
    """Effects (n_vectors, n_genes) seen in every context, with noise; the vectors of a table, as a vocabulary has."""
    n = len(vectors)
    index = np.tile(np.arange(n, dtype=np.int32), n_contexts)[:, None]
    members = Members(index, np.ones(index.shape, dtype=np.float32), vectors.astype(np.float32), vectors.shape[1])
    drawn = np.tile(effect, (n_contexts, 1)) + noise * np.random.default_rng(5).standard_normal((len(index), N_GENES))
    variance = np.full(drawn.shape, noise**2, dtype=np.float32)
    return MeanEffects(drawn.astype(np.float32), variance, members, np.repeat(np.arange(n_contexts), n))


def fitted(effects: MeanEffects) -> VectorReach:
    n_contexts = effects.context.max() + 1
    profiles = np.random.default_rng(6).gamma(2.0, 1.0, (n_contexts, N_GENES))
    return VectorReach.fit(EffectGP(profiles).fit(effects), effects)


def linear_world(n: int = 20, n_features: int = 3) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Vectors of which the first n - 1 are measured, and effects that are linear in them."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, n_features))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, vectors @ rng.standard_normal((n_features, N_GENES)), rng


def test_nearly_all_is_kept_where_vectors_tell_effects():
    vectors, effect, _ = linear_world()
    assert fitted(populations(vectors[:-1], effect[:-1])).of(vectors[-1]) > 0.95


def test_less_is_kept_where_vectors_are_shuffled():
    vectors, effect, rng = linear_world()
    kept = [fitted(populations(vectors[rng.permutation(20)][:-1], effect[:-1])).of(vectors[-1]) for _ in range(5)]
    assert np.mean(kept) < 0.5


def test_an_answer_that_hangs_on_one_perturbation_is_not_kept():
    vectors, effect, _ = linear_world()
    far = np.zeros((20, 4))
    far[:-1, :3], far[-1, 3] = vectors[:-1], 1.0  # the last one has a feature of its own
    found = fitted(populations(far, effect))
    assert found.of(far[-1]) == LEAST  # another one with the same vector
    assert found.of(np.array([0.0, 0.0, 0.0, 2.0])) == LEAST
    assert found.of(vectors[0] @ np.eye(3, 4)) > 0.9


def test_nothing_is_known_of_a_vector_without_relatives():
    vectors, effect, _ = linear_world()
    found = fitted(populations(np.pad(vectors, ((0, 0), (0, 1))), effect))
    assert found.of(np.array([0.0, 0.0, 0.0, 1.0])) == LEAST


@pytest.mark.parametrize("n_contexts", [1, 3])
def test_it_is_the_jackknife(n_contexts):
    """Brute force: the same kernel regression with all rows of one perturbation dropped."""
    vectors, effect, rng = linear_world(8)
    effects = populations(vectors, effect + 0.3 * rng.standard_normal(effect.shape), n_contexts)
    found = fitted(effects)
    query = rng.standard_normal(3)
    sums = np.asarray(effects.members.sums())
    size = error = 0.0
    for context in range(n_contexts):

        def predicted(rows: np.ndarray, context: int = context) -> np.ndarray:
            near = np.exp(
                -found.distance[effects.context[rows]][:, effects.context[rows]] / (2 * found.hyper["length"])
            )
            covariance = (sums[rows] @ sums[rows].T) * (found.hyper["common"] + found.hyper["context"] * near)
            covariance += np.diag(found.noise[rows] + 1e-6)
            to = np.exp(-found.distance[context, effects.context[rows]] / (2 * found.hyper["length"]))
            cross = (sums[rows] @ query) * (found.hyper["common"] + found.hyper["context"] * to)
            return cross @ np.linalg.solve(covariance, effects.effect[rows].astype(float))

        every = np.arange(len(effects.effect))
        whole = predicted(every)
        size += (whole**2).sum()
        error += sum(((predicted(every[every % 8 != k]) - whole) ** 2).sum() for k in range(8))
    assert 0 < error < size
    assert found.of(query) == pytest.approx(max(1 - error / size, LEAST), rel=1e-5)


def test_saved_and_read_back():
    vectors, effect, _ = linear_world()
    found = fitted(populations(vectors[:-1], effect[:-1], 2))
    assert VectorReach.from_saved(found.to_saved()).of(vectors[-1]) == found.of(vectors[-1]) < 1


def test_of_many_populations_whole_perturbations_are_drawn(monkeypatch):
    monkeypatch.setattr(reach, "_MOST", 30)
    vectors, effect, _ = linear_world()
    found = fitted(populations(vectors, effect, 3))
    assert len(found.kind) == 30 and (np.bincount(found.kind)[np.unique(found.kind)] == 3).all()
    assert found.of(vectors[0]) > 0.9
