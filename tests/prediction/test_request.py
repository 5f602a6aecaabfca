"""Requests: how what a user writes becomes conditions, and what is refused; no model is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi.flow import Adaptive
from cfmvc_scvi.prediction.request import PredictionCall, RequestReader
from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary

KEYS = SetupKeys(None, "plate", "cell_type", "drug", ["DMSO"], "+", None, None, None, None, None, None)
VOCABULARY = PerturbationVocabulary(["DMSO"], ["A", "B"], "+", reference_dose={"A": 10.0})
READER = RequestReader(VOCABULARY, KEYS, ["p1", "p2"], ["T", "NK"])
DOSED = replace(READER, keys=replace(KEYS, dosage_key="dose"))


@pytest.mark.parametrize("asked", ["A", ["A"], np.array(["A"]), pd.Series(["A"]), pd.DataFrame({"drug": ["A"]})])
def test_one_condition_in_every_container(asked):
    [request] = READER.read(asked)
    assert request.condition.members == ("A",) and (request.dosage, request.labels, request.batch) == (None,) * 3


def test_spellings_are_one_condition_with_the_label_that_was_given():
    one, other, control = READER.read(["A+B", "B+DMSO+A", "DMSO"])
    assert one.condition.key == other.condition.key and other.condition.label == "B+DMSO+A"
    assert control.condition.is_control


def test_columns_by_the_models_names_and_by_ours():
    ours = pd.DataFrame({"perturbation": ["A", "B"], "labels": ["T", None], "batch": [None, "p2"]})
    own = ours.set_axis(["drug", "cell_type", "plate"], axis=1)
    assert READER.read(ours) == READER.read(own)
    assert [(r.labels, r.batch) for r in READER.read(ours)] == [("T", None), (None, "p2")]


def test_arguments_fill_what_a_table_leaves_open():
    table = pd.DataFrame({"perturbation": ["A", "B"], "batch": ["p1", None]})
    assert [request.batch for request in READER.read(table, batch="p2")] == ["p1", "p2"]


def test_doses_are_numbers_where_they_are_ones():
    requests = DOSED.read(pd.DataFrame({"perturbation": ["A", "A+B", "DMSO"], "dosage": [5, "1+2", None]}))
    assert [request.dosage for request in requests] == [5.0, "1+2", None]
    assert requests[1].condition.doses == (1.0, 2.0)


def test_a_dose_beyond_the_highest_is_said_once():
    with pytest.warns(UserWarning, match=r"A at 11 \(highest 10\)") as caught:
        DOSED.read(["A", "A"], dosage=11)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("reader", "arguments", "error", "message"),
    [
        (READER, ([],), ValueError, "`perturbation` is empty"),
        (READER, (pd.DataFrame({"gene": ["A"]}),), KeyError, r"needs a column 'perturbation'.*\['gene'\]"),
        (READER, ("C",), ValueError, "Unknown perturbation 'C'"),
        (READER, ("A", 1.0), ValueError, "set up without `dosage_key`"),
        (DOSED, (["A", "DMSO"],), ValueError, r"pass `dosage` for \['A'\]"),
        (READER, ("A", None, "p3"), ValueError, r"Unknown `batch` 'p3': choose one of \['p1', 'p2'\]"),
        (READER, (pd.DataFrame({"perturbation": ["A"], "labels": ["B"]}),), ValueError, r"Unknown `labels` 'B'"),
    ],
)
def test_what_is_refused(reader, arguments, error, message):
    with pytest.raises(error, match=message):
        reader.read(*arguments)


def test_cell_types_need_a_model_that_knows_them():
    reader = replace(READER, keys=replace(KEYS, labels_key=None))
    with pytest.raises(ValueError, match="knows no cell types"):
        reader.read(pd.DataFrame({"perturbation": ["A"], "labels": ["T"]}))


def test_columns_that_are_no_part_of_a_condition_are_named():
    with pytest.warns(UserWarning, match=r"Columns \['note'\]"):
        READER.read(pd.DataFrame({"perturbation": ["A"], "note": ["x"]}))


# ---- how to compute -------------------------------------------------------------------------------------------------


def test_defaults_of_a_call():
    call = PredictionCall.of("mean")
    assert (call.n_samples, call.batch_size, call.seed, call.draws) == (1, 512, 0, 1)
    assert call.solver.key == PredictionCall().solver.key == ("Midpoint", 10)
    assert PredictionCall.of("mean", solver="euler", n_steps=3).solver.key == ("Euler", 3)
    assert isinstance(PredictionCall.of("mean", solver="adaptive").solver, Adaptive)


def test_only_counts_have_a_row_per_draw():
    assert PredictionCall.of("counts", n_samples=4).draws == 4
    assert PredictionCall.of("lognorm", n_samples=4).draws == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"return_type": "median"}, "`return_type` 'median'"),
        ({"return_type": "mean", "n_samples": 0}, "`n_samples` is 0"),
        ({"return_type": "mean", "solver": "heun"}, "heun"),
    ],
)
def test_calls_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PredictionCall.of(**arguments)
