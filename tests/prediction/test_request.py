"""Requests: how what a user writes becomes conditions, and what is refused; no model is needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi._types import CellSplit
from cfmvc_scvi.flow import Adaptive
from cfmvc_scvi.prediction.request import PredictionCall, RequestReader
from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary, UnknownPerturbationError

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


@pytest.fixture(scope="module")
def coded(simulate, build, fit):
    """Perturbations as numbers 0 (control) to 3, at doses of 1, 10 and 2000000."""
    adata = simulate(n_pairs=0)
    adata.obs["code"] = adata.obs["perturbation"].astype(str).map({"control": 0, "P1": 1, "P2": 2, "P3": 3}).astype(int)
    adata.obs["dose"] = np.where(adata.obs["code"] == 0, 0.0, np.array([1.0, 10.0, 2e6])[np.arange(300) % 3])
    setup = {"perturbation_key": "code", "control_group": 0, "dosage_key": "dose"}
    return fit(build(adata, setup))


@pytest.mark.parametrize(
    "label", [1, 1.0, "1", " 1 ", np.int64(1), np.array(1), np.array("1"), [1], (1,), pd.Index([1])]
)
def test_a_label_of_any_type(coded, label):
    expected = coded.predict_perturbation(perturbation="1", dosage=10)
    found = coded.predict_perturbation(perturbation=label, dosage=10)
    np.testing.assert_array_equal(found.X, expected.X)
    assert found.obs["code"].tolist() == [1] * found.n_obs


@pytest.mark.parametrize("doses", [[1, 10], (1, 10), np.array([1, 10]), pd.Series([1.0, 10.0])])
def test_a_list_of_doses(coded, doses):
    found = coded.predict_perturbation(perturbation="1", dosage=doses, show_progress=False)
    assert found.obs["dose"].unique().tolist() == [1, 10]
    with pytest.raises(ValueError, match="2 doses for 3 perturbations"):
        coded.predict_perturbation(perturbation=["1", "2", "3"], dosage=doses)


@pytest.mark.parametrize("missing", [None, np.nan, "", pd.NA])
def test_a_missing_label_is_named(coded, missing):
    table = pd.DataFrame({"perturbation": ["1", missing], "dosage": 1})
    for asked in (table, ["1", missing]):
        with pytest.raises(ValueError, match="missing in 1 of 2 conditions, the first in row 1"):
            coded.predict_perturbation(perturbation=asked, dosage=1)


def test_what_comes_back_can_be_asked_for_again(coded):
    predicted = coded.predict_perturbation(show_progress=False)
    real = coded.adata.obs[["code", "dose"]].drop_duplicates()
    asked = predicted.obs[["code", "dose"]].drop_duplicates()
    assert len(asked.merge(real)) == len(asked) == 9
    for table in (asked, asked.astype(str)):
        again = coded.predict_perturbation(perturbation=table, show_progress=False)
        np.testing.assert_array_equal(again.X, predicted.X)


def test_labels_come_back_as_the_data_have_them(simulate, build, fit):
    adata = simulate(n_pairs=0)
    p = adata.obs["perturbation"].astype(str)
    adata.obs["perturbation"] = ["ctrl" if x == "control" else f"{x}+ctrl" for x in p]
    model = fit(build(adata))
    found = model.predict_perturbation(show_progress=False).obs["perturbation"].unique()
    assert sorted(found) == ["P1+ctrl", "P2+ctrl", "P3+ctrl"]


@pytest.mark.parametrize("dose", ["2000000", "0.1234567"])
def test_doses_written_as_text_come_back_exactly(simulate, build, fit, dose):
    adata = simulate(n_pairs=1)
    p = adata.obs["perturbation"].astype(str)
    pairs = p.str.contains("+", regex=False) & (np.arange(300) % 2 == 0)
    adata.obs["dose"] = [
        "0" if x == "control" else f"{dose}+1" if pair else dose for x, pair in zip(p, pairs, strict=True)
    ]
    model = fit(build(adata, {"combination_delimiter": "+", "dosage_key": "dose"}))
    predicted = model.predict_perturbation(show_progress=False)
    assert set(predicted.obs["dose"]) == set(adata.obs["dose"]) - {"0"}
    asked = predicted.obs[["perturbation", "dose"]].astype(str).drop_duplicates()
    np.testing.assert_array_equal(model.predict_perturbation(perturbation=asked, show_progress=False).X, predicted.X)


def test_a_perturbation_without_training_cells_is_not_answered(simulate, build, fit):
    adata = simulate(n_pairs=0)
    model = build(adata)
    is_p3 = (adata.obs["perturbation"] == "P3").to_numpy()
    model._set_split(CellSplit(np.flatnonzero(~is_p3), np.flatnonzero(is_p3), np.array([], dtype=int)))
    with pytest.warns(UserWarning, match=r"No training cell had \['P3'\]"):
        fit(model)
    assert "P3" not in model.get_perturbation_embedding().index
    assert "P3" not in model.get_effect_coefficients().index.get_level_values(0)
    assert "P3" not in set(model.predict_perturbation(show_progress=False).obs["perturbation"])
    for ask in (model.get_perturbation_effect, model.generate_cells, model.get_trajectory, model.get_velocity):
        arguments = {"n_cells": 3} if ask.__name__ == "generate_cells" else {}
        with pytest.raises(UnknownPerturbationError, match=r"No training cell had \['P3'\]"):
            ask(perturbation="P3", **arguments)
