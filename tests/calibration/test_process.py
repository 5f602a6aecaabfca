"""The Gaussian process of mean effects: what it recovers, shrinks and leaves alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cfmvc_scvi.calibration.covariance import covariance, negative_log_likelihood
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.registration.members import Members

N_CONTEXTS, N_GENES = 5, 60


def alone(p: np.ndarray) -> Members:
    """Conditions of one member each, with vectors (n, n_features)."""
    return Members.of_dense(p[:, None])


def one_block(gp: EffectGP, data: MeanEffects, genes: np.ndarray):
    """Terms of the covariance of all populations together."""
    rows = np.arange(len(data.effect))[None]
    return gp.terms(data, gp.geometry(data, rows), genes, rows)


def profiles(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 1.0, size=(N_CONTEXTS, N_GENES))


def common_effect(noise: float = 0.05, contexts=(0, 1, 2, 3), n_perturbations: int = 3, seed: int = 1):
    """Effects that are the same in every context, seen in some contexts, and the truth (n_perturbations, n_genes)."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n_perturbations, N_GENES))
    rows = [(k, c) for k in range(n_perturbations) for c in contexts]
    which, context = (np.array(v) for v in zip(*rows, strict=True))
    effect = truth[which] + noise * rng.normal(size=(len(rows), N_GENES))
    variance = np.full_like(effect, noise**2)
    return MeanEffects(effect, variance, alone(np.eye(n_perturbations)[which]), context), truth


@pytest.fixture(scope="module")
def fitted() -> tuple[EffectGP, MeanEffects, np.ndarray]:
    data, truth = common_effect()
    return EffectGP(profiles()).fit(data), data, truth


def test_recovers_a_common_effect_in_a_context_it_has_not_seen(fitted):
    gp, _, truth = fitted
    for k, p in enumerate(np.eye(3)):
        error = gp.predict(p[None], 4) - truth[k]
        assert np.sqrt((error**2).mean()) < 0.15
        assert np.corrcoef(gp.predict(p[None], 4), truth[k])[0, 1] > 0.98


def test_recovers_an_effect_that_follows_expression():
    """Proportional to the centred control level: only that term can carry it to a new context."""
    x = profiles() - profiles().mean(axis=0)
    context = np.arange(4)
    data = MeanEffects(-0.5 * x[context], np.full((4, N_GENES), 1e-4), alone(np.ones((4, 1))), context)
    gp = EffectGP(profiles()).fit(data)
    predicted = gp.predict(np.ones((1, 1)), 4)
    assert np.sqrt(((predicted + 0.5 * x[4]) ** 2).mean()) < 0.1 * np.sqrt(((0.5 * x[4]) ** 2).mean())


def test_control_has_no_effect(fitted):
    gp = fitted[0]
    for context in range(N_CONTEXTS):
        np.testing.assert_array_equal(gp.predict(np.zeros((2, 3)), context), np.zeros(N_GENES))


def test_combinations_add_up_but_for_the_slope(fitted):
    gp = fitted[0]
    a, b, c = np.eye(3)
    slope = gp.hyper["mean_slope"] * gp.state["x"][2]
    together = gp.predict(np.stack([a, b]), 2) - np.sqrt(2) * slope
    apart = gp.predict(a[None], 2) + gp.predict(b[None], 2) - 2 * slope
    np.testing.assert_allclose(together, apart, atol=1e-10)
    np.testing.assert_allclose(gp.predict(2.5 * c[None], 2), 2.5 * gp.predict(c[None], 2), atol=1e-10)
    assert np.abs(slope).max() > 0  # otherwise there is nothing to except


def test_populations_of_few_cells_are_shrunk():
    """The same observed effect counts for less the larger its sampling variance; nothing grows."""
    data, _ = common_effect(contexts=(0, 1, 2), n_perturbations=2)
    which = data.members.dense()[:, 0, 1] == 1
    norms = []
    for factor in (1.0, 100.0, 1e4, 1e6):
        variance = np.where(which[:, None], factor * data.variance, data.variance)
        gp = EffectGP(profiles()).fit(data)
        gp.state["weights"] = gp._solve(replace(data, variance=variance))
        slope = gp.hyper["mean_slope"] * gp.state["x"][4]
        norms.append(np.linalg.norm(gp.predict(np.array([[0.0, 1.0]]), 4) - slope))
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.05 * norms[0]


def test_shrinkage_of_one_population_is_the_known_one():
    """One population of one gene: kernel / (kernel + noise) of its effect."""
    data = MeanEffects(np.array([[2.0]]), np.array([[0.7]]), alone(np.ones((1, 1))), np.zeros(1, dtype=int))
    gp = EffectGP(np.ones((1, 1))).fit(data)
    hyper = gp.hyper
    kernel = (hyper["common"] + hyper["context"]) * (4.0 + 1e-4)
    expected = 2.0 * kernel / (kernel + hyper["noise"] * 0.7 + 1e-6)
    assert gp.predict(np.ones((1, 1)), 0)[0] == pytest.approx(expected, rel=1e-9)


def test_order_of_contexts_and_populations_is_of_no_consequence(fitted):
    gp, data, _ = fitted
    order = np.array([3, 0, 4, 1, 2])  # new position -> old context
    rows = np.random.default_rng(3).permutation(len(data.effect))
    contexts = np.argsort(order)[data.context[rows]]
    moved = MeanEffects(data.effect[rows], data.variance[rows], data.members.take(rows), contexts)
    other = EffectGP(profiles()[order]).fit(moved)
    for new, old in enumerate(order):
        p = np.array([[0.5, 0.0, 1.0]])
        np.testing.assert_allclose(other.predict(p, new), gp.predict(p, old), atol=2e-3)


def test_genes_in_another_order_give_the_same_effects(fitted):
    gp, data, _ = fitted
    genes = np.random.default_rng(4).permutation(N_GENES)
    moved = replace(data, effect=data.effect[:, genes], variance=data.variance[:, genes])
    other = EffectGP(profiles()[:, genes]).fit(moved)
    np.testing.assert_allclose(other.predict(np.eye(3)[:1], 4), gp.predict(np.eye(3)[:1], 4)[genes], atol=2e-3)


def test_round_trip_through_plain_containers(fitted):
    gp = fitted[0]
    again = EffectGP.from_dict(gp.to_dict())
    np.testing.assert_array_equal(again.predict(np.eye(3)[1:2], 4), gp.predict(np.eye(3)[1:2], 4))
    json.dumps(gp.to_dict()["hyper"])  # plain floats
    assert all(isinstance(value, np.ndarray) for value in gp.to_dict()["state"].values())


def test_fit_reaches_at_least_the_likelihood_of_the_start(fitted):
    gp, data, _ = fitted
    names = ("length", "common", "context", "slope", "noise", "pair")
    start = torch.tensor([*np.log([1.0, 0.3, 0.2, 0.05, 0.6, 0.1]), -0.3], dtype=torch.float64)
    end = torch.tensor([*np.log([gp.hyper[name] for name in names]), gp.hyper["mean_slope"]], dtype=torch.float64)
    terms = one_block(gp, data, np.arange(N_GENES))
    assert negative_log_likelihood(end, *terms) < negative_log_likelihood(start, *terms) - 0.1


def test_likelihood_is_the_gaussian_one_with_the_right_gradient(fitted):
    gp, data, _ = fitted
    terms = one_block(gp, data, np.arange(7))
    theta = torch.tensor([0.1, -1.0, -1.5, -2.0, -0.5, -2.0, -0.2], dtype=torch.float64, requires_grad=True)
    matrix, residual = covariance(theta, *terms)
    law = torch.distributions.MultivariateNormal(torch.zeros_like(residual), matrix)
    constant = 0.5 * residual.shape[2] * np.log(2 * np.pi)
    torch.testing.assert_close(negative_log_likelihood(theta, *terms), -law.log_prob(residual).mean() - constant)
    assert torch.autograd.gradcheck(lambda v: negative_log_likelihood(v, *terms), (theta,))


def test_interpolates_what_was_measured_without_noise():
    data, _ = common_effect(noise=1e-3)
    gp = EffectGP(profiles()).fit(data)
    assert len(data.effect) > 3 and np.abs(data.effect).mean() > 0.1
    for row in range(len(data.effect)):
        np.testing.assert_allclose(
            gp.predict(data.members.dense()[row], data.context[row]), data.effect[row], atol=0.02
        )


def test_beats_no_change_on_draws_of_its_own_prior():
    """Effects drawn from the process, one context of one perturbation left out; mean over draws."""
    rng = np.random.default_rng(5)
    theta = torch.tensor([*np.log([1.0, 0.5, 0.5, 0.05, 1.0, 0.1]), -0.2], dtype=torch.float64)
    which, context = (v.ravel() for v in np.meshgrid(np.arange(3), np.arange(N_CONTEXTS), indexing="ij"))
    ours, nothing = [], []
    for seed in range(6):
        empty = MeanEffects(np.zeros((15, N_GENES)), np.full((15, N_GENES), 0.02), alone(np.eye(3)[which]), context)
        prior = EffectGP(profiles(seed)).fit(replace(empty, effect=rng.normal(size=(15, N_GENES))))
        prior.state["amplitude"] = rng.gamma(1.0, 1.0, N_GENES)
        matrix, offset = covariance(theta, *one_block(prior, empty, np.arange(N_GENES)))
        factor = torch.linalg.cholesky(matrix[:, 0]).numpy()
        drawn = (np.einsum("gij,gj->gi", factor, rng.normal(size=(N_GENES, 15))) - offset[:, 0].numpy()).T
        keep = np.arange(15) != 7
        seen = replace(empty, effect=drawn).take(np.flatnonzero(keep))
        predicted = EffectGP(profiles(seed)).fit(seen).predict(empty.members.dense()[7], context[7])
        ours.append(((predicted - drawn[7]) ** 2).mean())
        nothing.append((drawn[7] ** 2).mean())
    assert np.mean(ours) < 0.7 * np.mean(nothing), (ours, nothing)


# ---- interactions -------------------------------------------------------------------------------------------------


def pairs_with_interactions(size: float, seed: int = 8, n: int = 5, noise: float = 0.05):
    """Singles and all pairs but the last two; the interaction of two is bilinear in vectors of three numbers."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 3)) / np.sqrt(3)
    main, inter = rng.normal(size=(3, N_GENES)), size * rng.normal(size=(3, 3, N_GENES))
    inter = (inter + inter.transpose(1, 0, 2)) / 2
    conditions = [(k,) for k in range(n)] + [(k, j) for k in range(n) for j in range(k + 1, n)]
    members = np.zeros((len(conditions), 2, 3))
    truth = np.zeros((len(conditions), N_GENES))
    for row, condition in enumerate(conditions):
        members[row, : len(condition)] = vectors[list(condition)]
        truth[row] = sum(vectors[k] @ main for k in condition)
        if len(condition) == 2:
            truth[row] += np.einsum("a,abg,b->g", vectors[condition[0]], inter, vectors[condition[1]])
    effect = truth + noise * rng.normal(size=truth.shape)
    data = MeanEffects(
        effect, np.full_like(effect, noise**2), Members.of_dense(members), np.zeros(len(conditions), dtype=int)
    )
    return data, truth


def test_interactions_are_learned_where_there_are_any():
    data, truth = pairs_with_interactions(size=1.0)
    gp = EffectGP(np.ones((1, N_GENES))).fit(data.take(np.arange(len(data.effect) - 2)))
    members = data.members.dense()
    singles = [truth[:5][[np.allclose(m[0], s[0]) for s in members[:5]]][0] for m in members]
    for row in (-1, -2):
        second = truth[:5][[np.allclose(members[row, 1], s[0]) for s in members[:5]]][0]
        additive = ((singles[row] + second - truth[row]) ** 2).mean()
        assert ((gp.predict(members[row], 0) - truth[row]) ** 2).mean() < 0.5 * additive


def test_no_interaction_is_found_where_there_is_none():
    data, truth = pairs_with_interactions(size=0.0)
    gp = EffectGP(np.ones((1, N_GENES))).fit(data)
    assert gp.hyper["pair"] < 0.05 * (gp.hyper["common"] + gp.hyper["context"])
    assert np.sqrt(((gp.predict(data.members.dense()[-1], 0) - truth[-1]) ** 2).mean()) < 0.05
