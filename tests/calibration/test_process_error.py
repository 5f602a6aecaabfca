"""Error of the process's effects: against the closed form, and against effects drawn from the process itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cfmvc_scvi.calibration.covariance import JITTER, as_theta, covariance
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import Misfit, effect_error, find_misfit, left_out_weights, sharing
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.registration.members import Members


@pytest.fixture(scope="module")
def populations() -> MeanEffects:
    """Two perturbations in four contexts, one pair of them missing; 12 genes."""
    rng = np.random.default_rng(0)
    pairs = [(k, c) for k in range(2) for c in range(4) if (k, c) != (1, 3)]
    p = np.eye(2)[[k for k, _ in pairs]]
    context = np.array([c for _, c in pairs])
    shared = rng.normal(size=(2, 12))
    effect = shared[[k for k, _ in pairs]] + 0.3 * rng.normal(size=(7, 12))
    return MeanEffects(effect, rng.uniform(0.01, 0.1, size=(7, 12)), Members.of_dense(p[:, None]), context)


WIDE = Misfit(np.array([[0.1, 0.05], [0.2, 0.0], [0.0, 0.0]]))


def asked(p, context) -> Conditions:
    """Single perturbations with these vectors."""
    return Conditions(np.asarray(p, dtype=float)[:, None], np.asarray(context))


def own(populations) -> Conditions:
    """The populations themselves."""
    return Conditions(populations.members.dense(), populations.context)


def kernel_of(gp, data) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kernel of all populations together, noise as fitted, residuals."""
    rows = np.arange(len(data.effect))[None]
    terms = gp.terms(data, gp.geometry(data, rows), slice(None), rows)
    matrix, residual = covariance(as_theta(gp.hyper), *terms)
    fitted = gp.hyper["noise"] * terms.variance[:, 0] + JITTER
    return matrix[:, 0] - torch.diag_embed(fitted), fitted, residual[:, 0]


@pytest.fixture(scope="module")
def gp(populations) -> EffectGP:
    return EffectGP(np.random.default_rng(1).normal(size=(4, 12))).fit(populations)


def test_mean_is_that_of_the_process(gp, populations):
    p, context = np.array([[0.0, 1.0], [1.0, 0.5]]), np.array([3, 1])
    error = effect_error(gp, populations, asked(p, context))
    expected = [gp.predict(vector[None], code) for vector, code in zip(p, context, strict=True)]
    np.testing.assert_allclose(error.mean, expected, atol=1e-4)


def test_control_has_no_error(gp, populations):
    error = effect_error(gp, populations, asked(np.zeros((1, 2)), [2]), WIDE)
    assert np.abs(error.mean).max() == np.abs(error.process).max() == np.abs(error.noise).max() == 0.0


@pytest.mark.parametrize("misfit", [Misfit.none(), WIDE], ids=["none", "wide"])
@pytest.mark.parametrize("noise", [0.3, 1.0, 2.5])
def test_error_is_that_of_effects_drawn_from_the_process(gp, populations, noise, misfit):
    """Draws of truth and observations from the process: the stated covariance is that of the real errors."""
    gp = replace(gp, hyper=gp.hyper | {"noise": noise, "mean_slope": 0.0})
    rng = np.random.default_rng(2)
    queries = asked([[0.0, 1.0], [1.0, 0.0]], [3, 0])
    members = np.concatenate([populations.members.dense(), queries.members])
    every = MeanEffects(
        np.zeros((9, 12)), np.ones((9, 12)), Members.of_dense(members), np.r_[populations.context, 3, 0]
    )
    kernel, *_ = kernel_of(gp, every)
    gene = 4
    parts = sharing(*(v[None] for v in (every.members.kinds(), every.context, np.zeros(9, bool), np.ones(9))))
    drawn_from = kernel + torch.einsum("ig,inm->gnm", torch.from_numpy(misfit.sizes(populations)), parts[:, 0])
    truth = rng.multivariate_normal(np.zeros(9), drawn_from[gene].numpy(), size=20_000, check_valid="ignore")
    sampling = np.sqrt(max(noise, 1.0) * populations.variance[:, gene])
    observed = truth[:, :7] + sampling * rng.normal(size=(20_000, 7))
    error = effect_error(gp, populations, queries, misfit)
    inner = kernel[gene, :7, :7].numpy() + np.diag(noise * populations.variance[:, gene] + 1e-6)
    estimate = observed @ np.linalg.solve(inner, kernel[gene, :7, 7:].numpy())
    found = np.cov((truth[:, 7:] - estimate).T)
    np.testing.assert_allclose(error.process[gene] + error.noise[gene], found, rtol=0.06, atol=0.002)


def test_left_out_is_a_fit_without_the_group(gp, populations):
    """The closed form gives what the process without the group, with the same hyperparameters, predicts."""
    group = np.array([0, 0, 1, 1, 2, 2, 3])
    kernel, fitted, residual = kernel_of(gp, populations)
    alike = torch.from_numpy(group[:, None] == group)
    weights = left_out_weights(torch.linalg.inv(kernel + torch.diag_embed(fitted)), alike)
    found = (weights @ residual[..., None]).squeeze(-1).T.numpy()
    process = ((weights @ kernel) * weights).sum(dim=-1).T.numpy()
    for g in range(4):
        kept, out = group != g, group == g
        part = populations.take(np.flatnonzero(kept))
        error = effect_error(gp, part, Conditions(populations.members.dense()[out], populations.context[out]))
        np.testing.assert_allclose(found[out], populations.effect[out] - error.mean, atol=1e-6)
        np.testing.assert_allclose(process[out], error.process.diagonal(axis1=1, axis2=2).T, rtol=1e-4, atol=1e-6)


def test_misfit_is_found():
    """Effects with an interaction in the pairs that the linear process cannot hold, or without."""
    rng = np.random.default_rng(3)
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=float)
    p, context = np.repeat(vectors, 4, axis=0), np.tile(np.arange(4), 6)
    variance = np.full((24, 300), 0.01)
    additive = p @ rng.normal(size=(3, 300))
    profiles = rng.normal(size=(4, 300))
    members = np.array([[row * (np.arange(3) == k) for k in range(3)] for row in p])
    found = []
    for size in (0.0, 0.7):
        interaction = np.repeat(size * rng.normal(size=(6, 300)) * (vectors.sum(axis=1) == 2)[:, None], 4, axis=0)
        effect = additive + interaction + 0.1 * rng.normal(size=(24, 300))
        data = MeanEffects(effect, variance, Members.of_dense(members), context)
        gp = EffectGP(profiles).fit(data)
        gp.hyper["pair"] = 1e-4  # the process knows of no interactions
        found.append(find_misfit(gp, data).kappa)
    assert found[0].max() < 0.01
    assert found[1][2].sum() > 0.05 and found[1][2].sum() > 3 * found[1][0].sum()


def test_misfit_widens(gp, populations):
    plain, wide = (effect_error(gp, populations, own(populations), misfit) for misfit in (None, WIDE))
    np.testing.assert_array_equal(plain.mean, wide.mean)
    diagonals = [error.process.diagonal(axis1=1, axis2=2) for error in (plain, wide)]
    assert (diagonals[1] > diagonals[0]).all()


def test_more_cells_less_error(gp, populations):
    few = effect_error(gp, populations, Conditions(populations.members.dense()[:1], populations.context[:1]))
    more = replace(populations, variance=populations.variance / 10)
    many = effect_error(gp, more, Conditions(populations.members.dense()[:1], populations.context[:1]))
    assert (many.noise < few.noise).all()
    assert ((many.process + many.noise) < (few.process + few.noise)).all()


def test_blocks_of_genes_change_nothing(gp, populations, monkeypatch):
    whole = effect_error(gp, populations, own(populations))
    monkeypatch.setattr("cfmvc_scvi.calibration.process_error.BLOCK", 200)
    parts = effect_error(gp, populations, own(populations))
    np.testing.assert_allclose(parts.mean, whole.mean)
    np.testing.assert_allclose(parts.process, whole.process)


def test_some_genes_have_the_errors_they_have_among_all(gp, populations):
    queries = asked([[0.0, 1.0], [1.0, 0.5]], [3, 1])
    every, genes = effect_error(gp, populations, queries, WIDE), np.array([1, 4, 7])
    some = effect_error(gp, populations, queries, WIDE, genes)
    np.testing.assert_allclose(some.mean, every.mean[:, genes])
    np.testing.assert_allclose(some.process, every.process[genes])
    np.testing.assert_allclose(some.noise, every.noise[genes])
