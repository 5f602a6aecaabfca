"""The calibration as an object: whom it corrects, to what, and what it remembers and saves."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi.calibration.calibration import Calibration, Uncalibrated, make_calibration
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.state import CalibrationState
from cfmvc_scvi.flow import get_solver

SOLVER = get_solver("midpoint", 4)
BOTH = np.array([0, 1])


def fitted(world, estimator: str | None = "average", **changes) -> Calibration:
    arguments = {"cache": world.cache, "rows": world.rows, "populations": world.populations} | changes
    return Calibration.fit(**arguments, module=world.module, vocabulary=world.vocabulary, estimator=estimator)


@pytest.mark.parametrize("estimator", ["average", "latent", "process", None])
def test_control_is_never_corrected(world, estimator):
    calibration = fitted(world, estimator)
    found = calibration.correct(world.vocabulary.parse("control"), BOTH, SOLVER)
    assert not found.lognorm.any() and not found.log_ratio.any() and (found.scale == 1).all()


def test_nothing_is_corrected_without_an_estimator_but_effects_are_told(world):
    calibration = fitted(world, None)
    assert isinstance(calibration, Uncalibrated) and not isinstance(fitted(world), Uncalibrated)
    condition = world.vocabulary.parse("A")
    found = calibration.correct(condition, BOTH, SOLVER)
    assert not found.lognorm.any() and (found.scale == 1).all()
    expected = fitted(world, "latent").mean_effects(condition, [0, 1], SOLVER)
    np.testing.assert_array_equal(calibration.mean_effects(condition, [0, 1], SOLVER), expected)


def test_types_that_are_not_asked_for_stay_neutral(world):
    found = fitted(world).correct(world.vocabulary.parse("A"), np.array([1, 1]), SOLVER)
    assert not found.lognorm[0].any() and not found.log_ratio[0].any() and found.lognorm[1].any()
    without = fitted(world).correct(world.vocabulary.parse("A"), np.array([1]), SOLVER, rates=False)
    np.testing.assert_array_equal(without.lognorm, found.lognorm)
    assert found.log_ratio.any()


def test_the_average_is_half_process_and_a_quarter_each_of_flow_and_shift(world):
    condition, names = world.vocabulary.parse("A"), ("latent", "shift", "process", "average")
    latent, shift, process, average = (fitted(world, name).mean_effects(condition, [0, 1], SOLVER) for name in names)
    free = (latent > -fitted(world).state.profiles) & (process > -fitted(world).state.profiles)
    assert free.mean() > 0.9 and not np.allclose(latent, process, atol=0.01)
    free &= shift > -fitted(world).state.profiles
    np.testing.assert_allclose(average[free], (latent + shift + 2 * process)[free] / 4, atol=1e-6)


def test_the_process_knows_what_was_measured_and_random_weights_do_not(world):
    observed = world.populations.effect[world.populations.condition == 1]
    assert observed.shape == (2, 12) and np.abs(observed).mean() > 0.5
    error = {}
    for name in ("latent", "process"):
        effects = fitted(world, name).mean_effects(world.vocabulary.parse("A"), [0, 1], SOLVER)
        error[name] = np.abs(effects - observed).mean()
    assert error["process"] < 0.2 < 0.5 < error["latent"]


def test_no_gene_falls_below_zero(world):
    calibration = fitted(world, "latent")
    effects = calibration.mean_effects(world.vocabulary.parse("A+B"), [0, 1], SOLVER)
    assert (effects >= -calibration.state.profiles).all()


def test_saved_states_correct_alike(world):
    calibration = fitted(world)
    again = make_calibration(CalibrationState.from_saved(calibration.state.to_saved()), world.module, world.vocabulary)
    assert type(again) is Calibration
    one, other = (c.correct(world.vocabulary.parse("B"), BOTH, SOLVER) for c in (calibration, again))
    assert one.lognorm.any()
    np.testing.assert_array_equal(one.lognorm, other.lognorm)
    np.testing.assert_array_equal(one.log_ratio, other.log_ratio)


def test_what_was_worked_out_is_remembered(world, monkeypatch):
    calibration, condition = fitted(world), world.vocabulary.parse("A")
    first = calibration.correct(condition, BOTH, SOLVER)
    monkeypatch.setattr(calibration, "_correct", None)  # cannot be called any more
    np.testing.assert_array_equal(calibration.correct(condition, BOTH, SOLVER).lognorm, first.lognorm)
    assert calibration.reference(0, SOLVER) is calibration.reference(0, SOLVER)
    assert calibration.reference(0, SOLVER) is not calibration.reference(0, get_solver("euler", 4))


def test_errors_need_what_was_observed(world):
    with pytest.raises(RuntimeError, match="training populations are needed"):
        fitted(world).effect_error(world.vocabulary.parse("A"), [0])


def test_without_populations_the_latent_path_decides(world):
    rows = world.rows[world.cache.condition == 0]
    none = Populations.of(world.cache, rows, 2)
    assert len(none) == 0
    condition = world.vocabulary.parse("A")
    calibration = fitted(world, rows=rows, populations=none)
    assert calibration.state.process is None
    expected = fitted(world, "latent", rows=rows, populations=none).mean_effects(condition, [0, 1], SOLVER)
    np.testing.assert_array_equal(calibration.mean_effects(condition, [0, 1], SOLVER), expected)
