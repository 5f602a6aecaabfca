"""A calibration that learns of further populations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cfmvc_scvi.calibration.calibration import Calibration, ObservedEffects
from cfmvc_scvi.calibration.extend import extended, joined
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process import MeanEffects
from cfmvc_scvi.calibration.process_error import Misfit
from cfmvc_scvi.registration.members import Members
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary


@pytest.fixture
def halves(world):
    """State that was learned of cell type 0 alone, and the populations of cell type 1."""
    cache, labels = world.cache, world.cache.cells.context.labels.numpy()
    first, second = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    known = Populations.of(cache, first, 1)
    members = world.vocabulary.members(cache.conditions)
    state = Calibration.fit(cache, first, known, world.module, world.vocabulary).state
    effects = known.observed(members.take(known.condition))
    state = replace(state, observed=ObservedEffects(effects, np.array([40]), Misfit.none()))
    further = Populations.of(cache, second, 2)
    return state, second, further, members.take(further.condition)


def test_it_is_that_of_all_populations(world, halves):
    state, second, further, members = halves
    after = extended(state, world.cache, second, further, members)
    whole = Calibration.fit(world.cache, world.rows, world.populations, world.module, world.vocabulary).state
    np.testing.assert_allclose(after.profiles, whole.profiles, atol=1e-5)
    np.testing.assert_allclose(after.variance, whole.variance, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after.highest, whole.highest)
    query = world.vocabulary.encode_members([world.cache.conditions[1]])[0]
    for label in range(2):
        np.testing.assert_allclose(after.process.predict(query, label), whole.process.predict(query, label), atol=1e-3)
    assert len(after.reference) == 2 and after.observed.n_control.tolist() == [40, 40]
    np.testing.assert_array_equal(after.latent_shift, state.latent_shift)  # no new perturbation


def test_new_perturbations_get_rows(world, halves):
    state, second, further, _ = halves
    larger = PerturbationVocabulary(["control"], ["A", "B", "C"], "+")
    conditions = [world.cache.conditions[0], larger.parse("C"), larger.parse("B")]
    members = larger.members(conditions).take(further.condition)
    after = extended(state, world.cache, second, further, members)
    assert after.latent_shift.shape[0] == after.spread_effect.shape[0] == 3
    np.testing.assert_array_equal(after.latent_shift[:2], state.latent_shift)
    assert np.abs(after.latent_shift[2]).max() > 0
    effect = after.process.predict(larger.encode_members([larger.parse("C")])[0], 1)
    assert np.corrcoef(effect, further.effect[0])[0, 1] > 0.9


def test_without_observed_effects_it_is_refused(world, halves):
    state, second, further, members = halves
    with pytest.raises(ValueError, match="does not have them"):
        extended(replace(state, observed=None), world.cache, second, further, members)


def test_infinite_freedom_stands_beside_finite():
    members = Members(np.array([[0]]), np.ones((1, 1), dtype=np.float32), None, 1)
    one = MeanEffects(np.zeros((1, 2)), np.ones((1, 2)), members, np.array([0]))
    other = replace(one, freedom=np.full((1, 2), 3.0))
    assert joined(one, one).freedom is None
    np.testing.assert_array_equal(joined(one, other).freedom, [[np.inf, np.inf], [3.0, 3.0]])
