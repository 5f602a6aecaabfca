"""Labels, doses and embeddings: reading, grouping, encoding, and what is refused."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi.registration.labels import split_label
from cfmvc_scvi.registration.vocabulary import (
    PerturbationVocabulary,
    UnknownPerturbationError,
    cell_conditions,
    read_embedding,
)


def vocabulary(delimiter: str | None = "+", **kwargs) -> PerturbationVocabulary:
    return PerturbationVocabulary(["ctrl", "non-targeting"], ["A", "B", "C"], delimiter, **kwargs)


# ---- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["A+B", "B+A", " B + A ", "ctrl+A+B", "A+ctrl+B+non-targeting", "A+B+A"])
def test_spellings_of_one_combination(label):
    condition = vocabulary().parse(label)
    assert condition.members == ("A", "B")
    assert condition.doses == (1.0, 1.0)
    assert condition.key == vocabulary().parse("A+B").key
    assert condition.label == label.strip()


@pytest.mark.parametrize("label", ["ctrl", "non-targeting", "ctrl+ctrl", "ctrl+non-targeting"])
def test_control(label):
    condition = vocabulary().parse(label)
    assert condition.is_control
    assert condition.key == ((), ())


@pytest.mark.parametrize("label", ["A+B", "ctrl+A", "a_b", "+", "A+", "TNF-α / β", "x,y|z"])
def test_labels_are_never_split_without_a_delimiter(label):
    assert vocabulary(None).parse(label).members == (label,)
    assert split_label(label, None) == [label]


def test_control_that_holds_the_delimiter_is_not_split():
    assert split_label("non+targeting", "+", ["non+targeting"]) == ["non+targeting"]
    assert PerturbationVocabulary(["non-targeting"], ["A"], "-").parse("non-targeting").is_control


@pytest.mark.parametrize("label", ["A+", "+A", "A++B", "+", "A+ "])
def test_empty_members_are_refused(label):
    with pytest.raises(ValueError, match="empty member .*'\\+'"):
        vocabulary().parse(label)


def test_unicode_and_long_delimiters():
    names = ["IFN-β", "白介素-2", "naïve drug"]
    words = PerturbationVocabulary(["контроль"], names, " & ")
    assert words.parse("白介素-2 & IFN-β").members == tuple(sorted(names[:2]))
    assert words.parse("контроль").is_control
    assert words.encode([words.parse("白介素-2")])[0].tolist() == [0, 1, 0]


def test_labels_that_are_not_text():
    numbers = PerturbationVocabulary(["0"], ["1", "2"])
    assert numbers.parse(0).is_control
    assert numbers.parse(2).members == ("2",)


# ---- doses --------------------------------------------------------------------------------------------------------


def test_doses_follow_their_members():
    condition = vocabulary().parse("B+A", "2+0.5")
    assert (condition.members, condition.doses) == (("A", "B"), (0.5, 2.0))
    assert vocabulary().parse("A+B", "0.5+2").key == condition.key


def test_one_dose_serves_all_members():
    assert vocabulary().parse("A+B", 3).doses == (3.0, 3.0)
    assert vocabulary().parse("A+B", "3").doses == (3.0, 3.0)


def test_dose_of_the_control_member_is_dropped_with_it():
    condition = vocabulary().parse("ctrl+A", "9+2")
    assert (condition.members, condition.doses) == (("A",), (2.0,))


def test_repeated_members_add_their_doses():
    assert vocabulary().parse("A+A", "1+2").doses == (3.0,)


@pytest.mark.parametrize(("label", "dose"), [("A", 0), ("A", 0.0), ("A+B", "0+0"), ("A", "0")])
def test_dose_zero_is_control(label, dose):
    assert vocabulary().parse(label, dose).is_control
    assert not vocabulary().encode([vocabulary().parse(label, dose)]).any()


def test_member_at_dose_zero_drops_out():
    assert vocabulary().parse("A+B", "0+2").key == vocabulary().parse("B", 2).key


@pytest.mark.parametrize("dose", [np.nan, "nan", 0.0, -1.0, "", "none"])
def test_dose_of_control_is_ignored(dose):
    """Tables leave it empty, or write anything."""
    assert vocabulary().parse("ctrl", dose).is_control


def test_wrong_number_of_doses_is_refused():
    with pytest.raises(ValueError, match="'A\\+B\\+C' has 3 members but dosage '1\\+2' has 2"):
        vocabulary().parse("A+B+C", "1+2")


@pytest.mark.parametrize("dose", [-1.0, np.nan, np.inf, "nan", "1+-2"])
def test_impossible_doses_are_refused(dose):
    with pytest.raises(ValueError, match="finite and not negative"):
        vocabulary().parse("A+B", dose)


# ---- vectors ------------------------------------------------------------------------------------------------------


def test_one_hot_vectors_add_up():
    words = vocabulary()
    p = words.encode([words.parse(label) for label in ("ctrl", "A", "C", "C+A")])
    np.testing.assert_array_equal(p, [[0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]])
    assert p.dtype == np.float32
    assert words.encode([]).shape == (0, 3)


def test_members_are_summed_in_the_order_of_the_vocabulary():
    words = PerturbationVocabulary(["ctrl"], ["Z", "M", "A"], "+")
    members = words.encode_members([words.parse(label) for label in ("A+M+Z", "Z", "ctrl")])
    np.testing.assert_array_equal(members[0], np.eye(3))
    np.testing.assert_array_equal(members[1:], [[[1, 0, 0], [0] * 3, [0] * 3], np.zeros((3, 3))])
    assert words.stream_key(words.parse("A+Z")) == ((0, 1.0), (2, 1.0))


def test_trained_dose_response_replaces_the_straight_line():
    curve = {"reference": 10.0, "half": 1.0, "slope": 2.0}
    words = vocabulary(reference_dose={"A": 10.0, "B": 10.0}, dose_response={"A": curve})
    vectors = words.encode([words.parse("A", dose) for dose in (0, 1, 10)] + [words.parse("A+B", "1+5")])
    np.testing.assert_allclose(vectors[:, 0], [0, 0.5 / (100 / 101), 1, 0.5 / (100 / 101)], rtol=1e-6)
    np.testing.assert_allclose(vectors[3, 1], 0.5)


def test_doses_are_relative_to_the_reference():
    words = vocabulary(reference_dose={"A": 10.0})
    p = words.encode([words.parse("A+B", "5+2")])
    np.testing.assert_allclose(p, [[0.5, 2.0, 0.0]])


def test_embedding_is_divided_by_its_mean_norm():
    table = {"A": [3.0, 4.0], "B": [0.0, 15.0], "C": [0.0, 10.0], "unseen": [10.0, 0.0]}
    words = vocabulary(embedding={name: np.array(vector) for name, vector in table.items()})
    assert words.n_features == 2
    p = words.encode([words.parse(label) for label in ("A", "B+C", "unseen", "ctrl")])
    np.testing.assert_allclose(p, [[0.3, 0.4], [0.0, 2.5], [1.0, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_embedding_must_cover_the_data():
    with pytest.raises(ValueError, match=r"no vector for 2 perturbations of the data: \['B', 'C'\]"):
        vocabulary(embedding={"A": np.ones(2)})


def test_unknown_perturbation_names_close_matches_and_the_known():
    words = PerturbationVocabulary(["ctrl"], ["IFNG", "IFNB1", "TNF"])
    with pytest.raises(UnknownPerturbationError) as error:
        words.encode([words.parse("IFNB")])
    message = str(error.value)
    assert "'IFNB'" in message
    assert "Close matches: ['IFNB1'" in message
    assert "'TNF'" in message
    assert "['ctrl']" in message
    assert "perturbation_embedding_key" in message
    assert isinstance(error.value, ValueError)


def test_unknown_perturbation_without_a_close_match():
    with pytest.raises(UnknownPerturbationError) as error:
        vocabulary().encode([vocabulary().parse("dexamethasone")])
    assert "Close matches" not in str(error.value)


@pytest.mark.parametrize("with_embedding", [False, True])
def test_registry_round_trip(with_embedding):
    embedding = {name: np.random.default_rng(0).normal(size=4) for name in "ABCD"} if with_embedding else None
    words = vocabulary(embedding=embedding, reference_dose={"A": 2.0})
    again = PerturbationVocabulary.from_registry(words.to_registry(embedding))
    conditions = [words.parse("A+C", "1+3"), words.parse("ctrl"), words.parse("B")]
    np.testing.assert_array_equal(again.encode(conditions), words.encode(conditions))
    assert again.parse("C+ctrl").key == words.parse("C").key
    assert again.control_label == "ctrl"


# ---- conditions of a data set -------------------------------------------------------------------------------------


def test_spellings_share_an_index_and_control_is_zero():
    labels = ["A+B", "B+A", "ctrl", "A", "non-targeting", "ctrl+A", "A+B"]
    index, conditions = cell_conditions(vocabulary(), labels, None)
    np.testing.assert_array_equal(index, [1, 1, 0, 2, 0, 2, 1])
    assert [condition.members for condition in conditions] == [(), ("A", "B"), ("A",)]
    assert conditions[0].label == "ctrl"


def test_control_has_index_zero_even_without_control_cells():
    index, conditions = cell_conditions(vocabulary(), ["A", "B"], None)
    np.testing.assert_array_equal(index, [1, 2])
    assert conditions[0].is_control


def test_doses_make_conditions_of_their_own():
    index, conditions = cell_conditions(vocabulary(), ["A", "A", "ctrl", "A", "A"], [1.0, 10.0, np.nan, 1.0, 0.0])
    np.testing.assert_array_equal(index, [1, 2, 0, 1, 0])
    assert [condition.doses for condition in conditions] == [(), (1.0,), (10.0,)]


def test_doses_as_text():
    labels, doses = ["A+B", "B+A", "ctrl", "A+B"], ["1+2", "2+1", "nan", "2+1"]
    np.testing.assert_array_equal(cell_conditions(vocabulary(), labels, doses)[0], [1, 1, 0, 2])


def test_categorical_and_numeric_labels():
    labels = pd.Categorical([0, 1, 1, 2])
    index, conditions = cell_conditions(PerturbationVocabulary(["0"], ["1", "2"]), labels, None)
    np.testing.assert_array_equal(index, [0, 1, 1, 2])
    assert [condition.label for condition in conditions] == ["0", "1", "2"]


# ---- embeddings ---------------------------------------------------------------------------------------------------


def test_frames_and_dicts_read_alike():
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=["A", "B"])
    as_dict = {"A": [1.0, 2.0], "B": np.array([[3.0, 4.0]])}
    for table in (frame, as_dict):
        vectors = read_embedding(table, "emb")
        assert list(vectors) == ["A", "B"]
        np.testing.assert_array_equal(vectors["B"], np.array([3.0, 4.0], dtype=np.float32))
        assert vectors["B"].dtype == np.float32


@pytest.mark.parametrize("table", [np.ones((2, 3)), ["A"], None, {}, pd.DataFrame()])
def test_other_containers_are_refused(table):
    with pytest.raises(TypeError, match=r"adata.uns\['emb'\].*needs a DataFrame"):
        read_embedding(table, "emb")


def test_vectors_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"different lengths: \[2, 3\]"):
        read_embedding({"A": [1.0, 2.0], "B": [1.0, 2.0, 3.0]}, "emb")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match=r"\['B'\].*not finite"):
        read_embedding({"A": [1.0, 2.0], "B": [1.0, bad]}, "emb")


def test_repeated_rows_of_an_embedding_are_refused():
    table = pd.DataFrame(np.eye(2), index=["A", "A"])
    with pytest.raises(ValueError, match="more than one row for \\['A'\\]"):
        read_embedding(table, "vectors")


def test_dosage_that_is_no_number_names_the_perturbation():
    vocabulary = PerturbationVocabulary(["control"], ["A"])
    with pytest.raises(ValueError, match="'high' of perturbation 'A' is not a number"):
        vocabulary.parse("A", "high")


def test_many_perturbations_take_no_square_of_their_number():
    """20,000 perturbations: unit vectors laid out would take 1.6 GB."""
    names = [f"P{k}" for k in range(20_000)]
    tracemalloc.start()
    words = PerturbationVocabulary(["control"], names, "+")
    members = words.members([words.parse(label) for label in ("control", "P3+P19999", *names)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6 and words.n_features == 20_000
    assert members.index.shape == (20_002, 2) and members.index[1].tolist() == [3, 19_999]
    np.testing.assert_array_equal(
        members.take(np.array([0, 1, 5])).dense(),
        words.encode_members([words.parse(label) for label in ("control", "P3+P19999", "P3")]),
    )
