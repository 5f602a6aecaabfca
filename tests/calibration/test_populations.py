"""Populations of the training cells: their moments, their effects, and the controls they are compared with."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.cells.strata import MIN_CONTROLS


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
