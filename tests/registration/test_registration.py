"""Registration: values that are refused, categories that are not text, embeddings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi.registration.registration import CellConditions, Registration
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary

# ---- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["batch", "cell_type", "perturbation"])
def test_missing_categories_are_refused(simulated, column):
    simulated.obs.loc[simulated.obs_names[:4], column] = np.nan
    with pytest.raises(ValueError, match=rf"'{column}'.*missing for 4 cells.*notna"):
        CFMVC.setup_anndata(simulated)


def test_missing_categorical_covariate_is_refused(simulated):
    simulated.obs["donor"] = ["a"] * 299 + [None]
    with pytest.raises(ValueError, match=r"'donor'.*missing for 1 cells"):
        CFMVC.setup_anndata(simulated, categorical_covariate_keys=["donor"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, "much"])
@pytest.mark.parametrize("argument", ["size_factor_key", "continuous_covariate_keys"])
def test_numeric_columns_must_be_finite(simulated, argument, bad):
    simulated.obs["number"] = pd.Series([bad, *range(1, 300)], index=simulated.obs_names)
    with pytest.raises(ValueError, match=r"'number'.*1 values that are missing or not numbers"):
        CFMVC.setup_anndata(simulated, **{argument: "number" if argument == "size_factor_key" else ["number"]})


def test_size_factors_must_be_positive(simulated):
    simulated.obs["number"] = np.arange(300)
    with pytest.raises(ValueError, match="1 values that are not positive"):
        CFMVC.setup_anndata(simulated, size_factor_key="number")


def test_coordinates_must_be_finite(simulated):
    simulated.obsm["spatial"][5, 1] = np.nan
    with pytest.raises(ValueError, match=r"obsm\['spatial'\].*finite"):
        CFMVC.setup_anndata(simulated)


@pytest.mark.parametrize("dose", [-1.0, np.nan])
def test_doses_must_be_finite_and_not_negative(simulated, dose):
    simulated.obs["dose"] = 1.0
    simulated.obs.loc[simulated.obs_names[simulated.obs["perturbation"] == "P1"][0], "dose"] = dose
    with pytest.raises(ValueError, match=r"Dosage .* of perturbation 'P1' must be finite and not negative"):
        CFMVC.setup_anndata(simulated, dosage_key="dose")


# ---- categories that are not text -------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(0, 1), (False, True), (1.5, 2.5)])
@pytest.mark.parametrize("categorical", [False, True])
def test_categories_may_be_numbers_or_booleans(simulated, build, fit, levels, categorical):
    column = np.where(simulated.obs["batch"] == "batch1", *levels)
    simulated.obs["batch"] = pd.Categorical(column) if categorical else column
    simulated.obs["cell_type"] = np.where(simulated.obs["cell_type"] == "type1", *levels)
    model = fit(build(simulated), vae_max_epochs=1, flow_max_epochs=1)
    assert sorted(model.batches) == sorted(model.cell_types) == sorted(str(level) for level in levels)
    predicted = model.predict_perturbation(perturbation="P1", batch=levels[0])
    assert set(predicted.obs["batch"]) == {levels[0]}
    only_first = simulated[simulated.obs["batch"] == levels[0]].copy()
    assert (model.get_latent_representation(only_first) == model.get_latent_representation()[column == levels[0]]).all()


def test_unseen_category_zero_is_refused(simulated, build, fit):
    simulated.obs["batch"] = np.where(simulated.obs["batch"] == "batch1", 1, 2)
    model = fit(build(simulated), vae_max_epochs=1, flow_max_epochs=1)
    new = simulated.copy()
    new.obs["batch"] = new.obs["batch"] - 1
    for use in (model.get_latent_representation, model.predict_perturbation, model.get_elbo):
        with pytest.raises(ValueError, match="0"):
            use(new)


@pytest.mark.parametrize("levels", [[0, 1], [False, True]])
def test_perturbations_may_be_numbers_or_booleans(simulated, build, fit, levels):
    simulated.obs["perturbation"] = np.where(simulated.obs["perturbation"] == "control", *levels)
    model = fit(build(simulated, {"control_group": levels[0]}), vae_max_epochs=1, flow_max_epochs=1)
    assert model.vocabulary.control_group == (str(levels[0]),)
    predicted = model.predict_perturbation(perturbation=levels[1])
    assert set(predicted.obs["perturbation"]) == {levels[1]}


# ---- embeddings -------------------------------------------------------------------------------------------------


def test_embedding_as_frame_or_dict(simulated, build):
    frame = simulated.uns["perturbation_embedding"]
    setup = {"combination_delimiter": "+", "perturbation_embedding_key": "vectors"}
    simulated.uns["vectors"] = frame
    first = build(simulated.copy(), setup).vocabulary
    simulated.uns["vectors"] = {name: row.to_numpy() for name, row in frame.iterrows()}
    second = build(simulated, setup).vocabulary
    conditions = [first.parse(label) for label in ("P1", "P2", "P1+P3", "control")]
    np.testing.assert_array_equal(first.encode(conditions), second.encode(conditions))
    assert first.encode(conditions).any(axis=1).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        ({"P1": [1.0], "P2": [1.0]}, ValueError, r"no vector for 1 perturbations.*'P3'"),
        ({"P1": [1.0], "P2": [1.0], "P3": [1.0, 2.0]}, ValueError, r"different lengths: \[1, 2\]"),
        ({"P1": [1.0], "P2": [np.nan], "P3": [1.0]}, ValueError, r"\['P2'\].*not finite"),
        (np.ones((3, 2)), TypeError, "DataFrame .* or a dict"),
        ({}, TypeError, "DataFrame .* or a dict"),
    ],
)
def test_embeddings_that_do_not_fit(simulated, vectors, error, message):
    simulated.uns["vectors"] = vectors
    with pytest.raises(error, match=message):
        CFMVC.setup_anndata(simulated, combination_delimiter="+", perturbation_embedding_key="vectors")


# ---- what is established --------------------------------------------------------------------------------------------

ARGUMENTS = {
    "layer": None,
    "batch_key": "batch",
    "labels_key": "cell_type",
    "perturbation_key": "perturbation",
    "control_group": None,
    "combination_delimiter": "+",
    "dosage_key": None,
    "perturbation_embedding_key": None,
    "spatial_key": None,
    "categorical_covariate_keys": None,
    "continuous_covariate_keys": None,
    "size_factor_key": None,
    "sample_key": None,
    "allow_noncounts": False,
}


def test_new_data_make_a_vocabulary_and_later_ones_take_the_models(simulated):
    new = Registration.of(simulated, is_new=True, **ARGUMENTS)
    assert new.keys.control_group == ["control"] and not new.is_matrix
    assert set(PerturbationVocabulary.from_registry(new.vocabulary).names) == {"P1", "P2", "P3"}
    later = Registration.of(simulated, is_new=False, **(ARGUMENTS | {"control_group": ["control"]}))
    assert later.vocabulary is None and later.keys == new.keys
    assert len(later.fields()) == len(new.fields()) == 7


def test_data_are_only_read(simulated):
    before = simulated.copy()
    Registration.of(simulated, is_new=True, **ARGUMENTS)
    pd.testing.assert_frame_equal(simulated.obs, before.obs)
    assert simulated.uns.keys() == before.uns.keys() and simulated.obsm.keys() == before.obsm.keys()


def test_conditions_of_cells(simulated):
    registration = Registration.of(simulated, is_new=True, **ARGUMENTS)
    vocabulary = PerturbationVocabulary.from_registry(registration.vocabulary)
    found = CellConditions.of(simulated, registration.keys, vocabulary)
    labels = simulated.obs["perturbation"].astype(str)
    assert [found.conditions[code].label for code in found.code] == labels.tolist()
    np.testing.assert_array_equal(found.is_control, labels == "control")
    assert found.conditions[0].is_control and 0 < found.is_control.sum() < len(labels)


def test_dose_zero_is_control(simulated):
    simulated.obs["dose"] = np.where(np.arange(300) % 2, 1.0, 0.0)
    registration = Registration.of(simulated, is_new=True, **(ARGUMENTS | {"dosage_key": "dose"}))
    vocabulary = PerturbationVocabulary.from_registry(registration.vocabulary)
    found = CellConditions.of(simulated, registration.keys, vocabulary)
    assert found.is_control[::2].all() and not found.is_control[1::2].all()
