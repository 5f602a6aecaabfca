"""Populations of the training cells: their moments, their effects, and the controls they are compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.cells.strata import MIN_CONTROLS
from cfmvc_scvi.registration.members import Members

#: Two perturbations, each with a vector of its own.
ALONE = Members(np.arange(2)[:, None], np.ones((2, 1), dtype=np.float32), None, 2)


def _cache(model):
    model.split_ = [np.arange(model.adata.n_obs), np.array([], dtype=int), np.array([], dtype=int)]
    return model._cache_latents()


def test_effects_are_measured_against_the_controls_of_the_same_batch(simulate, build):
    """One perturbation in one batch only, where the controls are far from those of the other batch."""
    adata = simulate(n_cells=2000, n_batches=2, confounding=1.0, batch_effect=1.5, n_pairs=0, seed=4)
    model = build(adata, {"size_factor_key": "library_size"})
    cache = _cache(model)
    populations = Populations.of(cache, np.arange(adata.n_obs), len(model.cell_types))
    y = np.log1p(adata.X.toarray() / adata.obs["library_size"].to_numpy()[:, None] * 1e4)
    obs = adata.obs
    assert len(populations) > 3
    for i in range(len(populations)):
        name = cache.conditions[populations.condition[i]].label
        label = model.cell_types[populations.label[i]]
        mine = ((obs["perturbation"] == name) & (obs["cell_type"] == label)).to_numpy()
        [batch] = obs["batch"][mine].unique()
        own = ((obs["perturbation"] == "control") & (obs["cell_type"] == label) & (obs["batch"] == batch)).to_numpy()
        assert own.sum() >= MIN_CONTROLS
        np.testing.assert_allclose(populations.effect[i], y[mine].mean(axis=0) - y[own].mean(axis=0), atol=1e-4)
        expected = y[mine].var(axis=0) / (mine.sum() - 1) + y[own].var(axis=0) / (own.sum() - 1) + 1e-4
        np.testing.assert_allclose(populations.variance[i], expected, rtol=1e-2, atol=1e-4)


def groups(latent_cache, sizes: dict[tuple[int, int], int], batch=None):
    """So many cells of every (type, condition), all of one condition alike: gene 0 has its code + 1 of 10 counts."""
    keys = [key for key, n in sizes.items() for _ in range(n)]
    labels, condition = (np.array(column) for column in zip(*keys, strict=True))
    counts = np.stack([condition + 1, 9 - condition], axis=1)
    return latent_cache(counts, labels, condition, batch)


def test_effects_of_cells_that_are_all_alike(latent_cache):
    cache = groups(latent_cache, {(0, 0): 20, (0, 1): 9, (0, 2): 8, (1, 0): 8, (1, 1): 30})
    found = Populations.of(cache, np.arange(75), 2)
    assert found.label.tolist() == [0, 1, 0] and found.condition.tolist() == [1, 1, 2]
    assert found.n_cells.tolist() == [9, 30, 8]
    expected = np.log1p([2000.0, 8000.0]) - np.log1p([1000.0, 9000.0])
    np.testing.assert_allclose(found.effect[0], expected, rtol=1e-5)
    np.testing.assert_allclose(found.variance[0], 1e-4, rtol=1e-3)  # no cell differs from another


def test_a_type_without_controls_takes_all_of_them(latent_cache):
    cache = groups(latent_cache, {(0, 0): 20, (1, 1): 9})
    found = Populations.of(cache, np.arange(29), 2)
    np.testing.assert_array_equal(found.control[1], np.arange(20))
    np.testing.assert_array_equal(found.mean0[1], found.mean0[0])
    assert len(found) == 0 and found.effect.shape == (0, 2)


def test_rows_that_are_left_out_do_not_count(latent_cache):
    cache = groups(latent_cache, {(0, 0): 20, (0, 1): 12})
    assert len(Populations.of(cache, np.arange(32), 1)) == 1
    assert Populations.of(cache, np.arange(28), 1).n_cells.tolist() == [8]
    assert len(Populations.of(cache, np.arange(20), 1)) == 0


def test_spread_effect_is_shrunk_and_zero_where_nothing_changes(latent_cache):
    cache = groups(latent_cache, {(0, 0): 20, (0, 1): 20, (0, 2): 20})
    found = Populations.of(cache, np.arange(60), 1)
    assert np.abs(found.spread_effect(ALONE)).max() < 1e-6
    wider = replace(found, spread1=found.spread0[found.label] + np.array([[1.0, 0.0], [0.0, 2.0]]))
    effect = wider.spread_effect(ALONE)
    assert 0.5 < effect[0, 0] < 1.0 and 1.0 < effect[1, 1] < 2.0
    np.testing.assert_allclose([effect[0, 1], effect[1, 0]], 0.0, atol=1e-6)
