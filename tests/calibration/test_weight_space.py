"""The process in the space of weights: the same kernel, the same weights, the same errors as laid out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.calibration import process, process_query
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import Misfit, effect_error
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.calibration.weight_space import WeightSpace, solve_weight_space
from cfmvc_scvi.registration.members import Members

N_GENES, N_CONTEXTS = 5, 3


def screen(n: int, n_features: int, *, most: int = 1) -> tuple[np.ndarray, MeanEffects]:
    """Profiles and effects of perturbations with dense vectors, some of them combinations where ``most`` is above 1."""
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(n // 2, n_features)) / n_features**0.5).astype(np.float32)
    index = rng.integers(0, len(table), size=(n, most))
    index[np.arange(n) % 4 > 0, 1:] = -1
    weight = np.where(index < 0, 0.0, rng.uniform(0.5, 1.0, size=index.shape)).astype(np.float32)
    variance = rng.uniform(0.01, 0.1, size=(n, N_GENES))
    effect = rng.normal(size=(n, N_GENES)) * np.linspace(0.1, 2, N_GENES)
    members = Members(index, weight, table, n_features)
    return rng.gamma(1.0, 1.0, size=(N_CONTEXTS, N_GENES)), MeanEffects(
        effect, variance, members, rng.integers(0, N_CONTEXTS, n)
    )


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("n_features", [3, 8])
def test_features_have_the_kernel_as_their_inner_product(most, n_features):
    profiles, data = screen(12, n_features, most=most)  # 6 vectors, of fewer and of more features
    gp = EffectGP(profiles).fit(data)
    rows = np.arange(12)[None]
    terms = gp.terms(data, gp.geometry(data, rows), np.arange(N_GENES), rows)
    matrix = process.covariance(process.as_theta(gp.hyper), *terms)[0][:, 0]
    noise = gp.hyper["noise"] * terms.variance[:, 0] + process.JITTER
    space = WeightSpace.of(data.members, data.context)
    for gene in range(N_GENES):
        features = space.features(gp.hyper, gp.state["distance"], gp.state["amplitude"][gene], gp.state["x"][:, gene])
        torch.testing.assert_close(features @ features.mT, matrix[gene] - noise[gene].diag(), rtol=1e-5, atol=1e-6)
        right = torch.from_numpy(np.random.default_rng(1).normal(size=(12, 2)))
        found = solve_weight_space(features, noise[gene], right)
        torch.testing.assert_close(found, torch.linalg.solve(matrix[gene], right), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("most", [1, 2])
def test_predictions_and_errors_are_those_of_the_dense_form(monkeypatch, most):
    profiles, data = screen(160, 4, most=most)
    queries = Conditions(data.members.take(np.array([0, 5])).dense(), np.array([0, 2]))
    misfit = Misfit(np.array([[0.1, 0.05], [0.2, 0.0], [0.1, 0.0]]))
    found = []
    for limit in (600, 20):
        monkeypatch.setattr(process, "DENSE", limit)
        monkeypatch.setattr(process_query, "DENSE", limit)
        assert WeightSpace.serves(data.members, data.context, np.arange(160))
        gp = EffectGP(profiles).fit(data)
        error = effect_error(gp, data, queries, misfit)
        predicted = [gp.predict(members, code) for members, code in zip(queries.members, queries.context, strict=True)]
        found.append((np.stack(predicted), error.mean, error.process, error.noise))
    for dense, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, dense, rtol=1e-4, atol=1e-5 * np.abs(dense).max())


def combinations(n_members: int, n_contexts: int) -> tuple[np.ndarray, MeanEffects]:
    """Profiles and effects of all pairs of unit vectors, singles and some triples, in every context."""
    rng = np.random.default_rng(0)
    first, second = np.triu_indices(n_members, 1)
    pairs = np.stack([first, second, np.full(len(first), -1)], axis=1)
    singles = np.stack([np.arange(n_members), *[np.full(n_members, -1)] * 2], axis=1)
    index = np.tile(np.concatenate([pairs, singles, [[0, 1, 2], [4, 3, 2]]]), (n_contexts, 1))
    context = np.repeat(np.arange(n_contexts), len(index) // n_contexts)
    weight = np.where(index < 0, 0.0, rng.uniform(0.5, 1.0, size=index.shape)).astype(np.float32)
    variance = rng.uniform(0.01, 0.1, size=(len(index), N_GENES))
    effect = rng.normal(size=(len(index), N_GENES)) * np.linspace(0.1, 2, N_GENES)
    members = Members(index, weight, None, n_members + 3)
    profiles = rng.gamma(1.0, 1.0, size=(n_contexts, N_GENES))
    return profiles, MeanEffects(effect, variance, members, context)


@pytest.mark.parametrize(("n_members", "n_contexts"), [(16, 1), (12, 4)])
def test_combinations_of_unit_vectors_are_solved_alike(monkeypatch, n_members, n_contexts):
    profiles, data = combinations(n_members, n_contexts)
    rows = np.arange(len(data.effect))
    assert WeightSpace.serves(data.members, data.context, rows) and (data.component == 0).all()
    queries = Conditions(data.members.take(np.array([0, 5, len(rows) - 1])).dense(), np.array([0, 0, n_contexts - 1]))
    misfit, found = Misfit(np.array([[0.1, 0.05], [0.2, 0.0], [0.1, 0.0]])), []
    gp = EffectGP(profiles).fit(data)
    gp.hyper["pair"] = 0.7  # so that pairs count whatever was fitted
    for limit in (600, 20):
        monkeypatch.setattr(process, "DENSE", limit)
        monkeypatch.setattr(process_query, "DENSE", limit)
        gp.state["weights"] = gp._solve(data)
        error = effect_error(gp, data, queries, misfit)
        predicted = [gp.predict(members, code) for members, code in zip(queries.members, queries.context, strict=True)]
        found.append((np.stack(predicted), error.mean, error.process, error.noise))
    for dense, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, dense, rtol=1e-5, atol=1e-5 * np.abs(dense).max())


def test_a_member_given_twice_is_left_to_the_dense_form():
    index = np.array([[0, 1], [0, 0]] * 30)
    members = Members(index, np.ones(index.shape, dtype=np.float32), None, 2)
    assert not WeightSpace.serves(members, np.zeros(60, dtype=int), np.arange(60))
    assert WeightSpace.serves(members, np.zeros(60, dtype=int), np.arange(0, 60, 2))


def test_serves_where_features_are_few():
    _, data = screen(160, 4)
    assert not WeightSpace.serves(data.members, data.context, np.arange(20))
    units = Members(np.zeros((160, 1), dtype=int), np.ones((160, 1), dtype=np.float32), None, 4)
    assert not WeightSpace.serves(units, data.context, np.arange(160))
