"""One spelling of labels and doses, whatever the type they come in."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfmvc_scvi.registration.keys import resolve_keys
from cfmvc_scvi.registration.spelling import as_list, is_missing, number_text, split_doses, texts_of
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary


@given(st.floats(min_value=0, max_value=1e300, allow_subnormal=False))
def test_a_dose_comes_back_exactly(dose):
    text = number_text(dose)
    assert float(text) == dose
    vocabulary = PerturbationVocabulary(["control"], ["A", "B"], "+")
    expected = {name: d for name, d in (("A", dose), ("B", 2.0)) if d}
    condition = vocabulary.parse("A+B", f"{text}+2")
    assert dict(zip(condition.members, condition.doses, strict=True)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2e+06", ["2e+06"]), ("2e+06+1", ["2e+06", "1"]), ("1+3.5E+2", ["1", "3.5E+2"]), ("1+2", ["1", "2"])],
)
def test_exponents_are_no_delimiters(text, expected):
    assert split_doses(text, "+") == expected


@pytest.mark.parametrize(
    "column", [[1, 2], ["1", "2 "], [" 1", "2"], pd.Categorical([1, 2]), pd.array([1, 2], "Int64")]
)
def test_labels_of_any_type_have_one_text(column):
    assert texts_of(pd.Series(column)).tolist() == ["1", "2"]


def test_lists_of_every_kind():
    for value in (["a"], ("a",), np.array(["a"]), pd.Index(["a"]), pd.Series(["a"]), "a", np.array("a"), np.str_("a")):
        assert as_list(value) == ["a"]
    assert is_missing(None) and is_missing(np.nan) and is_missing(pd.NA) and is_missing(" ") and not is_missing(0)


@pytest.mark.parametrize("control_group", ["ctrl", " ctrl ", [" ctrl "], None])
def test_blanks_around_a_control_name_are_no_part_of_it(simulated, control_group):
    p = simulated.obs["perturbation"].astype(str)
    simulated.obs["condition"] = [" ctrl " if x == "control" else f"{x} + ctrl " for x in p]
    arguments = dict.fromkeys(("layer", "batch_key", "labels_key", "dosage_key", "perturbation_embedding_key"))
    arguments |= dict.fromkeys(("spatial_key", "size_factor_key", "sample_key"))
    arguments |= {"categorical_covariate_keys": None, "continuous_covariate_keys": None}
    keys = resolve_keys(
        simulated,
        perturbation_key="condition",
        control_group=control_group,
        combination_delimiter="+",
        **arguments,
    )
    assert keys.control_group == ["ctrl"]


@pytest.mark.parametrize("given", ["donor", ("donor",), ["donor"], pd.Index(["donor"])])
def test_one_covariate_is_a_list_of_one(simulated, build, given):
    simulated.obs["donor"] = np.where(np.arange(simulated.n_obs) % 2, "x", "y")
    model = build(simulated, {"categorical_covariate_keys": given})
    assert model.setup_keys.categorical_covariate_keys == ["donor"]


def test_blanks_do_not_make_a_perturbation_of_the_control(simulated, build):
    p = simulated.obs["perturbation"].astype(str)
    simulated.obs["condition"] = [" ctrl " if x == "control" else f"{x} + ctrl " for x in p]
    model = build(simulated, {"perturbation_key": "condition", "combination_delimiter": "+", "control_group": " ctrl "})
    assert sorted(model.vocabulary.names) == ["P1", "P2", "P3"]
    assert model._conditions_of(model.adata).is_control.sum() == (p == "control").sum()
