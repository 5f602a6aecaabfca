"""The constant latent shift: what it is estimated from, and when it is part of an answer."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.calibration.latent_shift import latent_shift
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.prediction.request import default_solver


def _fitted(model):
    cache, rows = model._cache_latents(), model._fitted_rows
    populations = Populations.of(cache, rows, len(model.cell_types))
    members = model.vocabulary.members(cache.conditions).take(populations.condition)
    return cache, rows, populations, members


def test_a_shift_that_is_the_same_everywhere_is_found(trained):
    """Latents set to a value of the cell type plus one of each perturbation: additive for the pair."""
    cache, rows, populations, members = _fitted(trained)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(members.n_features, cache.posterior.mean.shape[1]))
    of_type = rng.normal(size=(len(trained.cell_types), truth.shape[1]))
    p = trained.vocabulary.encode(cache.conditions)
    labels = cache.cells.context.labels.numpy()
    cache.posterior.mean.numpy()[:] = of_type[labels] + p[cache.condition] @ truth
    np.testing.assert_allclose(latent_shift(cache, rows, populations, members), truth, atol=0.05)


def test_sums_stand_for_combinations_that_were_not_seen_together(trained):
    calibration, solver = trained.calibration_, default_solver()
    seen = {key for key, _ in trained.trained_conditions_}
    names = sorted({name for members, _ in seen for name in members if ((name,), (1.0,)) in seen})
    pair = next((a, b) for a in names for b in names if a < b and ((a, b), (1.0, 1.0)) not in seen)
    condition = trained.vocabulary.parse("+".join(pair))
    assert not calibration._times_seen(condition) and all(map(calibration._times_seen, condition.parts()))
    trained.calibrate("latent")
    try:
        calibration = trained.calibration_
        effects = [calibration.mean_effects(c, [0], solver)[0] for c in (condition, *condition.parts())]
    finally:
        trained.calibrate()
    floor = -calibration.state.profiles[0]
    free = (effects[1] > floor + 1e-6) & (effects[2] > floor + 1e-6)  # where no effect was cut off at zero
    np.testing.assert_allclose(effects[0][free], np.maximum(effects[1] + effects[2], floor)[free], atol=1e-5)
