"""Effects over samples: closed forms, calibration on drawn samples, and what sample_key changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import EffectError, effect_error
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.calibration.samples import Between, SampledPopulation, between_samples, sampled_effect
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.registration.members import Members

N = 3000


def drawn(rng, n_samples, between, within, n_genes=N):
    """Values of samples around zero."""
    shape = (n_samples, n_genes)
    return rng.normal(size=shape) * np.sqrt(between + within), np.full(shape, within)


def nothing(n_genes=N):
    return np.zeros((0, n_genes)), np.zeros((0, n_genes))


@pytest.mark.parametrize("tau2", [0.0, 0.05, 1.0])
def test_variance_between_samples_is_found(tau2):
    rng = np.random.default_rng(0)
    found = between_samples([drawn(rng, 4, tau2, 0.1), drawn(rng, 3, tau2, 0.1), drawn(rng, 1, 9.0, 0.1)])
    assert found.variance.mean() == pytest.approx(tau2, rel=0.15, abs=0.01)
    assert between_samples([drawn(rng, 1, 0.1, 0.1)]) is None


@pytest.mark.parametrize("tau2", [0.0, 0.3])
def test_t_statistics_follow_student(tau2):
    """Genes whose variance between samples differs: p-values of nothing are uniform."""
    rng = np.random.default_rng(1)
    spread = tau2 * 6 / rng.chisquare(6, size=N)
    perturbed, control = drawn(rng, 3, spread, 0.05), drawn(rng, 4, spread, 0.02)
    single = between_samples([perturbed, control])
    population = SampledPopulation(nothing(), perturbed)
    found = sampled_effect(population, control, Between.none(N), single)
    p = 2 * stats.t.sf(np.abs(found.effect) / np.sqrt(found.variance), found.freedom)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_equal_pairs_give_the_moderated_paired_t():
    rng = np.random.default_rng(2)
    values, within = drawn(rng, 5, 0.4, 0.01)
    paired = between_samples([(values, within)])
    found = sampled_effect(SampledPopulation((values, within), nothing()), nothing(), paired, Between.none(N))
    np.testing.assert_allclose(found.effect, values.mean(axis=0), atol=1e-12)
    above = paired.ratio > 1
    np.testing.assert_allclose(found.variance[above], (paired.ratio * 0.01 / 5)[above], rtol=1e-6)
    np.testing.assert_allclose(found.freedom[above], paired.freedom, rtol=1e-6)


def test_samples_that_do_not_differ_are_weighted_by_their_cells():
    values = np.array([[1.0], [4.0]])
    within = np.array([[0.1], [0.3]])
    population = SampledPopulation((values, within), nothing(1))
    found = sampled_effect(population, nothing(1), Between.none(1), Between.none(1))
    assert found.effect[0] == pytest.approx(1.75) and found.variance[0] == pytest.approx(0.075)
    assert np.isinf(found.freedom[0])


def test_both_kinds_of_samples_are_combined():
    one, wide = np.ones((1, 1)), np.full((1, 1), 0.3)
    population = SampledPopulation((2 * one, 0.2 * one), (5 * one, wide))
    found = sampled_effect(population, (one, 0.3 * one), Between.none(1), Between.none(1))
    assert found.effect[0] == pytest.approx((2 / 0.2 + 4 / 0.6) / (1 / 0.2 + 1 / 0.6))
    assert found.variance[0] == pytest.approx(1 / (1 / 0.2 + 1 / 0.6))


def populations(model) -> Populations:
    adata = model.adata
    found = model._conditions_of(adata)
    cache = LatentCache(model._reader.read(adata), None, found.code, found.conditions)
    return Populations.of(cache, np.arange(adata.n_obs), len(model.cell_types))


def test_populations_pair_within_samples(simulate, build):
    adata = simulate(n_batches=4, batch_effect=1.0, n_pairs=0, n_cell_types=1, n_cells=800)
    adata.obs["donor"] = adata.obs["batch"].astype(str)
    setup = {"batch_key": None, "size_factor_key": "library_size"}
    cells = populations(build(adata.copy(), setup))
    adata = adata[np.argsort(adata.obs["perturbation"].astype(str) != "P1", kind="stable")].copy()  # P1 comes first
    found = populations(build(adata, setup | {"sample_key": "donor"}))
    y = np.log1p(adata.X.toarray() / adata.obs["library_size"].to_numpy()[:, None] * 1e4)
    obs = adata.obs
    in_donor = [
        y[((obs["perturbation"] == "P1") & (obs["donor"] == donor)).to_numpy()].mean(axis=0)
        - y[((obs["perturbation"] == "control") & (obs["donor"] == donor)).to_numpy()].mean(axis=0)
        for donor in sorted(set(obs["donor"]))
    ]
    np.testing.assert_allclose(found.effect[0], np.mean(in_donor, axis=0), atol=0.12)
    assert np.isfinite(found.freedom).all() and cells.freedom is None
    assert len(found) == len(cells) == 3


def test_one_sample_is_its_cells(simulate, build):
    """Without replicates nothing is known between samples: effects and variances are those of cells."""
    adata = simulate(n_pairs=0, n_cell_types=1, n_batches=1)
    adata.obs["donor"] = "d1"
    cells = populations(build(adata.copy()))
    with pytest.warns(UserWarning, match="No condition has two samples"):
        found = populations(build(adata, {"sample_key": "donor"}))
    assert found.freedom is None
    np.testing.assert_allclose(found.effect, cells.effect, atol=1e-6)
    np.testing.assert_allclose(found.variance, cells.variance, atol=3e-4)


def test_every_population_enters(simulate, build):
    """One cell is a population, with the variance of its controls."""
    adata = simulate(n_pairs=0, n_cell_types=1, n_batches=1)
    names = adata.obs["perturbation"].astype(str)
    keep = (names != "P1") | (names == "P1").cumsum().eq(1)
    found = populations(build(adata[keep.to_numpy()].copy()))
    assert found.n_cells.min() == 1 and len(found) == 3
    i = int(np.argmin(found.n_cells))
    assert (found.variance[i] >= found.spread0[0]).all()
    assert np.isfinite(found.variance).all() and (found.variance[i] > found.variance.mean(axis=0)).all()


def test_the_spread_of_one_cell_is_not_believed(simulate, build):
    adata = simulate(n_pairs=0, n_cell_types=1, n_batches=1)
    names = adata.obs["perturbation"].astype(str)
    keep = (names != "P1") | (names == "P1").cumsum().eq(1)
    found = populations(build(adata[keep.to_numpy()].copy()))
    i = int(np.argmin(found.n_cells))
    change = found.spread_effect(Members.of_dense(np.eye(3)[:, None]))
    assert (change[i] == 0).all() and (np.delete(change, i, axis=0) != 0).any(axis=1).all()


def test_shares_are_equal_in_large_populations_and_small_in_tiny_ones():
    rng = np.random.default_rng(4)
    n = np.array([100, 100, 100, 1])
    variance = np.full((4, 50), 0.5) / n[:, None]
    effect = 0.5 * rng.normal(size=(4, 50)) + np.sqrt(variance) * rng.normal(size=(4, 50))
    data = MeanEffects(effect, variance, Members.of_dense(np.ones((4, 1, 1))), np.zeros(4, dtype=int))
    shares = data.shares()
    assert shares.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(shares[:3], shares[0])
    assert shares[3] < 0.3 * shares[0]
    large = data.take(np.arange(3)).shares()
    np.testing.assert_allclose(large, 1 / 3)


def test_the_noise_of_samples_makes_intervals_of_student():
    """One population alone: the posterior has the population's degrees of freedom where noise is all there is."""
    effect, variance = np.array([[2.0, 2.0]]), np.array([[0.7, 0.7]])
    data = MeanEffects(
        effect, variance, Members.of_dense(np.ones((1, 1, 1))), np.zeros(1, dtype=int), np.array([[4.0, np.inf]])
    )
    gp = EffectGP(np.ones((1, 2))).fit(data)
    error = effect_error(gp, data, Conditions(np.ones((1, 1, 1)), np.zeros(1, dtype=int)))
    total, freedom = error.averaged(np.ones(1))
    noise, process = error.noise[:, 0, 0], error.process[:, 0, 0]
    np.testing.assert_allclose(total, noise + process)
    assert freedom[0] == pytest.approx(4.0 * (total[0] / noise[0]) ** 2) and np.isinf(freedom[1])


def test_what_cells_vary_by_has_no_end_of_freedom():
    error = EffectError(np.zeros((2, 3)), np.ones((3, 2, 2)), np.ones((3, 2, 2)))
    assert np.isinf(error.averaged(np.full(2, 0.5))[1]).all()
