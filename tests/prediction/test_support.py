"""Support: what was trained on, and how far a condition is from it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cfmvc_scvi.prediction.support import SUPPORT_LEVELS

SHORT = {"vae_max_epochs": 1, "flow_max_epochs": 2}


def test_distance_is_that_to_the_nearest_trained_vector(trained):
    result = trained.predict_perturbation(perturbation=["control", "P1", "P1+P2", "P1+P2+P3"])
    distance = result.obs.groupby("perturbation", observed=True)["support_distance"].unique()
    trained_pairs = set(trained.adata.obs["perturbation"].astype(str))
    assert list(distance["control"]) == list(distance["P1"]) == [0.0]
    assert list(distance["P1+P2"]) == ([0.0] if "P1+P2" in trained_pairs else [1.0])
    assert list(distance["P1+P2+P3"]) == [1.0]  # one member from the pair that was trained on


def test_distance_of_a_vector_grows_with_its_distance(simulate, build, fit):
    adata = simulate(n_pairs=0)
    vectors = adata.uns["perturbation_embedding"].copy()
    for step in (0.0, 0.5, 2.0):
        vectors.loc[f"far {step}"] = vectors.loc["P1"] + step * (vectors.loc["P1"] - vectors.loc["P2"])
    adata.uns["vectors"] = vectors
    model = fit(build(adata, {"perturbation_embedding_key": "vectors"}), **SHORT)
    obs = model.predict_perturbation(perturbation=["far 0.0", "far 0.5", "far 2.0"]).obs
    distance = obs.groupby("perturbation", observed=True, sort=False)["support_distance"].first()
    assert distance["far 0.0"] == 0.0 and 0 < distance["far 0.5"] < distance["far 2.0"]
    assert set(obs["support"]) == {"new perturbation"}


def test_support_table_names_doses_and_contexts(simulate, build, fit):
    adata = simulate(doses=[1.0, 3.0])
    table = fit(build(adata, {"combination_delimiter": "+", "dosage_key": "dosage"}), **SHORT).support()
    assert list(table) == ["perturbation", "dosage", "cell_type", "batch", "n_cells", "n_train"]
    assert table["n_cells"].sum() == adata.n_obs and table["n_train"].sum() == round(0.9 * adata.n_obs)
    one = table[(table["perturbation"] == "P1") & (table["dosage"] == 3.0)]
    assert one["n_cells"].sum() == ((adata.obs["perturbation"] == "P1") & (adata.obs["dosage"] == 3.0)).sum()


def test_support_counts_cells(trained):
    table = trained.support()
    assert set(table.columns) == {"perturbation", "cell_type", "batch", "n_cells", "n_train"}
    assert table["n_cells"].sum() == 300 and table["n_train"].sum() == len(trained.train_indices)
    obs = trained.adata.obs
    one = table[(table["perturbation"] == "P2") & (table["cell_type"] == "type1") & (table["batch"] == "batch2")]
    rows = (obs["perturbation"] == "P2") & (obs["cell_type"] == "type1") & (obs["batch"] == "batch2")
    assert one["n_cells"].tolist() == [rows.sum()]
    assert one["n_train"].tolist() == [rows.to_numpy()[trained.train_indices].sum()]


def test_support_of_an_untrained_model(simulated, build):
    table = build(simulated, {"batch_key": None, "labels_key": None}).support()
    assert set(table.columns) == {"perturbation", "n_cells", "n_train"}
    assert table["n_train"].sum() == 0 and table["n_cells"].sum() == 300


# ---- levels, of a model that only says what it was trained on -------------------------------------------------------


@pytest.fixture
def told(simulated, build):
    """Told that control was seen in both types, P1 in the first and P2 with P3 in the second."""
    model = build(simulated)
    keys = [model.vocabulary.parse(label).key for label in ("control", "P1", "P2+P3")]
    model.trained_conditions_ = [(keys[0], 0), (keys[0], 1), (keys[1], 0), (keys[2], 1)]
    return model


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("P1", ["seen", "new context", "new context"]),
        ("P3+P2", ["new context", "seen", "new context"]),
        ("P1+P3", ["new combination"] * 3),
        ("P2", ["new combination"] * 3),  # only seen together with another
        ("control", ["seen", "seen", "new context"]),
    ],
)
def test_levels(told, label, expected):
    found = told._support(told.vocabulary.parse(label), np.array([0, 1, -1]))
    assert found.tolist() == expected and found.categories.tolist() == list(SUPPORT_LEVELS)


@pytest.mark.parametrize(("label", "distance"), [("control", 0.0), ("P1", 0.0), ("P2", 1.0), ("P1+P2", 1.0)])
def test_distance_is_the_nearest_in_one_hot_vectors(told, label, distance):
    assert told._support_distance(told.vocabulary.parse(label)) == pytest.approx(distance)


def test_types_with_controls_are_those_told_of(told):
    assert told._types_with_controls().tolist() == [0, 1]
    told.trained_conditions_ = told.trained_conditions_[1:]
    assert told._types_with_controls().tolist() == [1]


def test_cells_that_are_perturbed_already_are_named(trained):
    everything = trained.adata.copy()
    n = int((everything.obs["perturbation"] != "control").sum())
    with pytest.warns(UserWarning, match=rf"{n} of the 300 cells are perturbed already, by their 'perturbation'"):
        predicted = trained.predict_perturbation(everything, "P1")
    twice = (everything.obs["perturbation"] != "control").to_numpy()
    support = predicted.obs["support"].to_numpy()
    assert (support[twice] == "new combination").all() and (support[~twice] == "seen").all()
    assert (predicted.obs["n_support"].to_numpy()[twice] == 0).all()


@pytest.mark.parametrize("change", ["no column", "missing", "control alone", "asked for control"])
def test_cells_of_which_nothing_is_known_are_not_named(trained, change):
    cells, asked = trained.adata.copy(), "P1"
    if change == "no column":
        del cells.obs["perturbation"]
    elif change == "missing":
        cells.obs["perturbation"] = None
    elif change == "control alone":
        cells = cells[(cells.obs["perturbation"] == "control").to_numpy()].copy()
    else:
        asked = "control"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicted = trained.predict_perturbation(cells, asked)
    assert predicted.n_obs == cells.n_obs and "new combination" not in set(predicted.obs["support"])


@pytest.fixture(scope="module")
def without_controls(simulate, build, fit):
    """A model of two cell types, the second of which has no control cells."""
    adata = simulate(n_pairs=0)
    keep = ~((adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "type2")).to_numpy()
    return fit(build(adata[keep].copy()))


def test_a_cell_type_without_controls_gets_no_effect(without_controls):
    with pytest.raises(ValueError, match=r"\['type2'\] has no control cells .* \['type1'\]"):
        without_controls.get_perturbation_effect("P1", "type2")
    assert without_controls.get_perturbation_effect("P1").attrs["labels"] == ["type1"]


def test_a_cell_type_without_controls_is_never_seen(without_controls):
    adata = without_controls.adata
    some = adata[(adata.obs["cell_type"] == "type2").to_numpy()].copy()
    some.obs["perturbation"] = "control"
    assert set(without_controls.predict_perturbation(some, "P1").obs["support"]) == {"new context"}
