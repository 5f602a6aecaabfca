"""What all parts of the model share: rows of indices, the state as a whole, what a call needs."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi._base import STATE, as_rows


@pytest.mark.parametrize(
    ("indices", "expected"),
    [([2, 0], [2, 0]), ([-1, 1], [3, 1]), ([True, False, False, True], [0, 3]), ([], []), (np.array([3]), [3])],
)
def test_indices_and_masks(indices, expected):
    assert as_rows(indices, 4).tolist() == expected


@pytest.mark.parametrize(("indices", "message"), [([4], "4; there are 4 cells"), ([-5], "-5"), ([True], "length 1")])
def test_indices_out_of_range(indices, message):
    with pytest.raises(IndexError, match=message):
        as_rows(indices, 4)


def test_a_new_model_has_the_state_before_training(simulated, build):
    model = build(simulated)
    assert {name: getattr(model, name) for name in STATE} == STATE
    assert set(model._get_state()) == {*STATE, "is_trained_"}


def test_state_that_is_none_is_refused(simulated, build):
    model = build(simulated)
    model._set_state({"is_vae_trained_": True})
    assert model.is_vae_trained_ and not model.is_flow_trained_
    with pytest.raises(ValueError, match=r"\['is_tired_'\] are no state of a model"):
        model._set_state({"is_tired_": True})


def test_what_is_needed_is_named_with_the_call_that_gives_it(simulated, build):
    model = build(simulated)
    with pytest.raises(RuntimeError, match=r"Train the model before you dance.*`model.train_vae\(\)`"):
        model._require_vae("dance")
    with pytest.raises(RuntimeError, match=r"cannot dance: call `model.train\(\)`"):
        model._require_flow("dance")
    model._set_state({"is_vae_trained_": True})
    with pytest.raises(RuntimeError, match=r"call `model.train_flow\(\)`"):
        model._require_flow("dance")


def test_the_vocabulary_is_made_anew_when_doses_are_learned(simulate, build):
    model = build(simulate(doses=[1.0, 3.0]), {"combination_delimiter": "+", "dosage_key": "dosage"})
    first = model.vocabulary
    assert model.vocabulary is first
    model.dose_response_ = {name: {"half": 1.0, "slope": 2.0, "reference": 3.0} for name in first.names}
    assert model.vocabulary is not first and model.vocabulary.response("P1", 3.0) == pytest.approx(1.0)
    assert model.vocabulary.response("P1", 1.0) != first.response("P1", 1.0)


def test_encoding_does_not_depend_on_how_cells_are_cut(simulated, build):
    model = build(simulated)
    cells = model._cells(None)
    one, other = model._encode(cells, 32), model._encode(cells, 1000)
    assert one.mean.shape == (300, 6) and (one.mean == other.mean).all() and (one.scale > 0).all()
    rows = np.array([299, 4, 17])
    assert (model._encode(cells.take(rows)).mean == one.mean[rows]).all()
