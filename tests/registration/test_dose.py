"""Dose-response curves: their shape, and what is recovered from effects."""

import numpy as np
import pytest

from cfmvc_scvi.registration.dose import DoseEffects, HillCurve, effects_of_doses, fit_dose_response

N_GENES = 80


def observed(half: float, slope: float, doses=(0.1, 1.0, 10.0, 100.0), noise=0.05, contexts=2, seed=0) -> DoseEffects:
    """Effects that follow a Hill curve in every context, each with a profile of its own."""
    rng = np.random.default_rng(seed)
    curve = HillCurve(max(doses), half, slope)
    dose, context = (v.ravel() for v in np.meshgrid(doses, np.arange(contexts), indexing="ij"))
    profile = rng.normal(size=(contexts, N_GENES))
    effect = np.array([curve(d) for d in dose])[:, None] * profile[context] + noise * rng.normal(
        size=(len(dose), N_GENES)
    )
    return DoseEffects(dose, context, effect, np.full_like(effect, noise**2))


@pytest.mark.parametrize(("half", "slope"), [(1.0, 1.0), (10.0, 2.0), (1e5, 1.0), (0.01, 0.5)])
def test_curve_is_zero_at_zero_one_at_the_reference_and_rises(half, slope):
    curve = HillCurve(10.0, half, slope)
    assert curve(0.0) == 0.0
    assert curve(10.0) == 1.0
    values = [curve(dose) for dose in np.r_[0.0, np.geomspace(1e-3, 1e3, 40)]]
    assert (np.diff(values) > 0).all()
    assert HillCurve(**curve.to_dict()) == curve


def test_curve_far_below_half_is_a_straight_line():
    curve = HillCurve(10.0, 1e6, 1.0)
    np.testing.assert_allclose([curve(d) for d in (1.0, 2.5, 20.0)], [0.1, 0.25, 2.0], rtol=1e-4)


@pytest.mark.parametrize(("half", "slope"), [(0.5, 1.0), (5.0, 2.0), (50.0, 1.0)])
def test_recovers_the_response_between_and_at_the_doses(half, slope):
    found = fit_dose_response({"A": observed(half, slope)}, {"A": 100.0})["A"]
    truth = HillCurve(100.0, half, slope)
    for dose in (0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0):
        assert found(dose) == pytest.approx(truth(dose), abs=0.06)


def test_noise_pulls_towards_the_other_perturbations():
    """A perturbation whose effects say nothing gets the curve of the rest; one with clear effects keeps its own."""
    effects = {name: observed(5.0, 2.0, seed=i) for i, name in enumerate("ABC")}
    effects["silent"] = observed(50.0, 0.5, noise=30.0, seed=9)
    found = fit_dose_response(effects, dict.fromkeys(effects, 100.0))
    assert found["silent"](10.0) == pytest.approx(found["A"](10.0), abs=0.15)


def test_perturbations_with_one_dose_take_the_curve_of_the_others():
    effects = {"A": observed(5.0, 2.0), "one": observed(1.0, 1.0, doses=(7.0,))}
    found = fit_dose_response(effects, {"A": 100.0, "one": 7.0, "only in pairs": 3.0})
    for name, reference in (("one", 7.0), ("only in pairs", 3.0)):
        assert found[name].half / reference == pytest.approx(found["A"].half / 100.0)
        assert found[name](reference) == 1.0


def test_without_any_second_dose_the_curve_bends_at_the_reference():
    found = fit_dose_response({"one": observed(1.0, 1.0, doses=(7.0,))}, {"one": 7.0})["one"]
    assert (found.half, found.slope) == (7.0, 1.0)


def test_contexts_in_another_order_and_genes_in_another_unit_do_not_matter():
    data = observed(5.0, 1.0)
    order = np.random.default_rng(1).permutation(len(data.dose))
    moved = DoseEffects(data.dose[order], data.context[order], 3 * data.effect[order], 9 * data.variance[order])
    one, other = (fit_dose_response({"A": d}, {"A": 100.0})["A"] for d in (data, moved))
    assert one.half == pytest.approx(other.half, rel=1e-3)
    assert one.slope == pytest.approx(other.slope, rel=1e-3)


def test_only_perturbations_given_alone_tell_of_their_doses():
    conditions = [(("A",), (1.0,)), (("A", "B"), (1.0, 2.0)), (("B",), (2.0,)), (("A",), (3.0,))]
    found = effects_of_doses(conditions, np.array([0, 0, 1, 0]), np.arange(8.0).reshape(4, 2), np.ones((4, 2)))
    assert set(found) == {"A", "B"}
    np.testing.assert_array_equal(found["A"].dose, [1.0, 3.0])
    np.testing.assert_array_equal(found["A"].effect, [[0, 1], [6, 7]])
    assert found["A"].is_informative and not found["B"].is_informative
