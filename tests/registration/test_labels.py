"""The control group, and labels made of a presence matrix."""

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi.registration.labels import find_control_group, presence_controls, presence_delimiter, presence_labels


@pytest.mark.parametrize("name", ["control", "Ctrl", "DMSO", "non-targeting", "Unstimulated", "NT"])
def test_usual_control_names_are_found(name):
    assert find_control_group(["A", name, "B"], None) == [name]


def test_given_control_groups():
    levels = ["A", "ctrl", "DMSO"]
    assert find_control_group(levels, "A") == ["A"]
    assert find_control_group(levels, ["DMSO", "ctrl"]) == ["DMSO", "ctrl"]


def test_several_usual_names_are_ambiguous():
    with pytest.raises(ValueError, match=r"several levels look like one: \['ctrl', 'DMSO'\].*`control_group=`"):
        find_control_group(["A", "ctrl", "DMSO"], None)


def test_no_usual_name():
    with pytest.raises(ValueError, match=r"none of the levels has a usual control name.*\['A', 'B'\]"):
        find_control_group(["A", "B"], None)


def test_control_group_that_does_not_exist():
    with pytest.raises(ValueError, match=r"\['contrl'\] is not a level.*Close matches: \['control'\]"):
        find_control_group(["A", "control"], "contrl")
    with pytest.raises(ValueError, match=r"\['x'\] is not a level"):
        find_control_group(["A", "control"], ["control", "x"])
    with pytest.raises(ValueError, match="is not a level"):
        find_control_group(["A", "control"], [])


def test_many_levels_are_cut_short():
    with pytest.raises(ValueError) as error:
        find_control_group([f"gene{i}" for i in range(1000)], None)
    assert "..." in str(error.value)
    assert len(str(error.value)) < 1000


# ---- presence matrices --------------------------------------------------------------------------------------------


def presence(values=((0, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1)), names=("B", "NT", "A"), **kwargs) -> pd.DataFrame:
    return pd.DataFrame(np.array(values), columns=list(names), **kwargs)


@pytest.mark.parametrize("dtype", [bool, np.int8, float])
def test_labels_join_the_names_of_what_a_cell_has(dtype):
    labels = presence_labels(presence().astype(dtype), "guides", "+")
    assert labels.tolist() == ["control", "B", "A+B", "A+B+NT"]


def test_labels_of_many_perturbations_are_those_of_each_row():
    rng = np.random.default_rng(0)
    table = presence(rng.random((200, 77)) < 0.03, names=[f"g{i}" for i in range(77)])
    expected = ["|".join(sorted(table.columns[row])) or "control" for row in table.to_numpy()]
    assert presence_labels(table, "guides", "|").tolist() == expected


def test_delimiter_of_a_presence_matrix():
    assert presence_delimiter(presence(), "guides", None) == "+"
    assert presence_delimiter(presence(), "guides", "|") == "|"
    with pytest.raises(ValueError, match=r"Columns \['a\+b'\].*hold '\+'.*`combination_delimiter=`"):
        presence_delimiter(presence(names=("a+b", "c", "d")), "guides", None)


def test_controls_of_a_presence_matrix():
    assert presence_controls(presence(), "guides", None) == ["control", "NT"]
    assert presence_controls(presence(), "guides", "A") == ["control", "A"]
    assert presence_controls(presence(), "guides", ["control", "NT"]) == ["control", "NT"]
    with pytest.raises(ValueError, match=r"\['NTT'\] is not a column.*Close matches: \['NT'\].*'A'"):
        presence_controls(presence(), "guides", ["NTT"])


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (np.eye(3), TypeError, "is a ndarray, whose columns have no names"),
        (presence(values=[[0, 2, 1]]), ValueError, r"values other than 0 and 1.*threshold"),
        (presence(values=[[0, np.nan, 1]]), ValueError, "values other than 0 and 1"),
        (presence(names=("A", "B", "A")), ValueError, r"more than one column named \['A'\]"),
    ],
)
def test_presence_matrices_that_are_refused(table, error, message):
    with pytest.raises(error, match=message):
        presence_labels(table, "guides", "+")
