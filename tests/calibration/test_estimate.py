"""Estimators of the mean effect: those that are there, and one that a user adds."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi.calibration.estimate import ESTIMATORS, EffectEstimator, EffectQuery, get_estimator, register_estimator
from cfmvc_scvi.calibration.process import MeanEffects
from cfmvc_scvi.prediction.request import default_solver
from cfmvc_scvi.registration.members import Members

LATENT, SHIFT, PROCESS = np.array([[1.0, -2.0, 0.0], [2.0, -1.0, 1.0], [3.0, 2.0, 0.5]])


class MeanEstimator(EffectEstimator):
    """Whatever is done to whatever cells: the mean of all observed effects."""

    name = "mean"

    def __init__(self, mean: np.ndarray) -> None:
        self.mean = mean

    @classmethod
    def fit(cls, effects, profiles):
        return cls(effects.effect.mean(axis=0))

    def estimate(self, query):
        return self.mean

    def to_saved(self):
        return {"mean": self.mean}


@pytest.fixture
def mean_estimator():
    register_estimator(MeanEstimator)
    yield MeanEstimator
    del ESTIMATORS["mean"]


def query(process: np.ndarray | None, shift: np.ndarray | None = SHIFT) -> EffectQuery:
    return EffectQuery(np.eye(2), 0, LATENT, shift, process)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("latent", LATENT), ("process", PROCESS), ("shift", SHIFT), ("average", [2.25, 0.25, 0.5])],
)
def test_what_each_says(name, expected):
    none = MeanEffects(
        np.zeros((0, 3)), np.zeros((0, 3)), Members.of_dense(np.zeros((0, 1, 2))), np.zeros(0, dtype=int)
    )
    estimator = get_estimator(name).fit(none, np.zeros((1, 3)))
    np.testing.assert_array_equal(estimator.estimate(query(PROCESS)), expected)
    again = get_estimator(name).from_saved(estimator.to_saved())
    np.testing.assert_array_equal(again.estimate(query(PROCESS)), expected)


@pytest.mark.parametrize("name", ["latent", "process", "shift", "average"])
def test_without_populations_the_latent_path_is_all_there_is(name):
    np.testing.assert_array_equal(get_estimator(name)().estimate(query(None, None)), LATENT)


def test_the_flow_takes_the_part_of_a_shift_that_is_not_known():
    np.testing.assert_array_equal(get_estimator("average")().estimate(query(PROCESS, None)), [2.0, 0.0, 0.25])


def test_from_many_cell_types_the_flow_counts_more_than_the_shift():
    parts = []
    for n in (1, 4, 8):
        query = EffectQuery(np.eye(2), 0, LATENT, SHIFT, PROCESS, n_contexts=n)
        found = get_estimator("average")().estimate(query)
        parts.append((2 * found - PROCESS - LATENT) / (SHIFT - LATENT))
    np.testing.assert_allclose(parts, np.repeat([[0.5], [0.5], [0.5 / 16]], 3, axis=1))


def test_of_sums_the_process_counts_three_quarters():
    summed = EffectQuery(np.eye(2), 0, LATENT, SHIFT, PROCESS, summed=True)
    np.testing.assert_array_equal(get_estimator("average")().estimate(summed), [2.625, 1.125, 0.5])


def test_unknown_names_list_those_that_are_known():
    with pytest.raises(ValueError, match=r"'mode'.*\['average', 'latent', 'process', 'shift'\]"):
        get_estimator("mode")


def test_registering_decorates(mean_estimator):
    assert register_estimator(mean_estimator) is mean_estimator and get_estimator("mean") is mean_estimator


def test_an_estimator_that_is_added_calibrates_and_is_saved(trained, mean_estimator, tmp_path):
    """The mean effect is then the same for all perturbations and cell types, and predictions move by it."""
    observed = trained.calibration_.state.profiles
    trained.calibrate("mean")
    try:
        calibration = trained.calibration_
        mean, solver = calibration.state.estimator.mean, default_solver()
        for name in ("P1", "P1+P2+P3"):
            effects = calibration.mean_effects(trained.vocabulary.parse(name), [0, 1], solver)
            np.testing.assert_allclose(effects, np.maximum(mean, -calibration.state.profiles), atol=1e-6)
        lognorm = {
            name: trained.predict_perturbation(perturbation=name, return_type="lognorm").X.mean(axis=0)
            for name in ("control", "P1", "P2")
        }
        change = lognorm["P1"] - lognorm["control"]
        assert np.abs(mean).mean() > 0.02 and np.corrcoef(change, mean)[0, 1] > 0.9
        np.testing.assert_allclose(change, lognorm["P2"] - lognorm["control"], atol=0.05)
        trained.save(tmp_path / "model")
        loaded = CFMVC.load(tmp_path / "model", adata=trained.adata)
        np.testing.assert_array_equal(loaded.calibration_.state.estimator.mean, mean)
        expected = trained.predict_perturbation(perturbation="P1").X
        np.testing.assert_array_equal(loaded.predict_perturbation(perturbation="P1").X, expected)
    finally:
        trained.calibrate()
    np.testing.assert_array_equal(trained.calibration_.state.profiles, observed)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ((3, False, True), {"process": 0.5, "latent": 0.25, "shift": 0.25}),
        ((0, False, True), {"process": 0.5, "latent": 0.5}),
        ((2, True, True), {"process": 0.75, "latent": 0.125, "shift": 0.125}),
        ((8, False, False), {"latent": 1 - 0.5 / 16, "shift": 0.5 / 16}),
        ((0, False, False), {"latent": 1.0}),
    ],
)
def test_weights_of_the_average(asked, expected):
    assert get_estimator("average")().weights(*asked) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["latent", "process", "shift"])
def test_an_estimator_alone_carries_all(name):
    assert get_estimator(name)().weights(2, False, True) == {name: 1.0}


def test_answers_name_their_estimators(trained):
    predicted = trained.predict_perturbation(perturbation=["P1", "control"], indices=[0, 1])
    carried = predicted.uns["cfmvc"]["carried_by"]
    assert predicted.uns["cfmvc"]["perturbations"] == ["P1", "control"]
    assert carried["process"].tolist() == [0.5, 0.0]
    np.testing.assert_allclose(sum(carried.values()), [1.0, 0.0])
    assert trained.get_perturbation_effect("P1").attrs["carried_by"] == {n: w[0] for n, w in carried.items()}
