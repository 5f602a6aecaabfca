"""Registration: which column plays which part, and what is refused."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scvi import REGISTRY_KEYS

from cfmvc_scvi import CFMVC
from cfmvc_scvi._constants import AUTO, CFMVC_KEYS, CONTROL_NAMES


def registered(adata, key):
    """What scvi-tools reads for a field."""
    return np.asarray(CFMVC._get_most_recent_anndata_manager(adata).get_from_registry(key))


def setup_keys(adata, **arguments):
    CFMVC.setup_anndata(adata, **arguments)
    return CFMVC(adata, n_hidden=4, n_hidden_flow=4).setup_keys


# ---- fields ---------------------------------------------------------------------------------------------------


def test_bare_call_takes_conventional_columns(simulated, caplog):
    with caplog.at_level(logging.INFO, logger="cfmvc_scvi"):
        keys = setup_keys(simulated)
    assert (keys.batch_key, keys.labels_key, keys.perturbation_key) == ("batch", "cell_type", "perturbation")
    assert keys.spatial_key == "spatial"
    assert keys.control_group == ["control"]
    assert (keys.layer, keys.dosage_key, keys.size_factor_key, keys.combination_delimiter) == (None,) * 4
    for name in ("batch", "cell_type", "perturbation", "spatial", "control"):
        assert name in caplog.text


def test_conventional_columns_may_be_absent(simulated):
    del simulated.obs["batch"], simulated.obs["cell_type"], simulated.obsm["spatial"]
    keys = setup_keys(simulated)
    assert (keys.batch_key, keys.labels_key, keys.spatial_key) == (None, None, None)
    assert set(registered(simulated, REGISTRY_KEYS.BATCH_KEY).ravel()) == {0}
    assert set(registered(simulated, REGISTRY_KEYS.LABELS_KEY).ravel()) == {0}


def test_none_switches_fields_off(simulated):
    keys = setup_keys(simulated, batch_key=None, labels_key=None, spatial_key=None)
    assert (keys.batch_key, keys.labels_key, keys.spatial_key) == (None, None, None)
    model = CFMVC(simulated, n_hidden=4, n_hidden_flow=4)
    assert model.summary_stats.n_batch == model.summary_stats.n_labels == 1
    assert model.summary_stats.get("n_spatial", 0) == 0


def test_auto_is_the_documented_sentinel(simulated):
    explicit = dict.fromkeys(("batch_key", "labels_key", "perturbation_key", "spatial_key"), AUTO)
    assert setup_keys(simulated.copy(), **explicit) == setup_keys(simulated)
    assert repr(AUTO) == "AUTO"


def test_every_field_is_registered(simulated):
    n = simulated.n_obs
    rng = np.random.default_rng(0)
    simulated.layers["counts"] = simulated.X.copy()
    simulated.obs["donor"] = rng.choice(["a", "b", "c"], n)
    simulated.obs["lane"] = rng.choice(["1", "2"], n)
    simulated.obs["age"] = rng.normal(size=n)
    simulated.obs["dose"] = np.where(simulated.obs["perturbation"] == "control", 0.0, rng.choice([0.5, 2.0], n))
    simulated.obsm["where"] = rng.normal(size=(n, 3))
    simulated.obs = simulated.obs.rename(columns={"batch": "b", "cell_type": "c", "perturbation": "p"})
    CFMVC.setup_anndata(
        simulated,
        layer="counts",
        batch_key="b",
        labels_key="c",
        perturbation_key="p",
        control_group="control",
        combination_delimiter="+",
        dosage_key="dose",
        perturbation_embedding_key="perturbation_embedding",
        spatial_key="where",
        categorical_covariate_keys=["donor", "lane"],
        continuous_covariate_keys=["age"],
        size_factor_key="library_size",
    )
    model = CFMVC(simulated, n_hidden=4, n_hidden_flow=4)
    for key, column in ((REGISTRY_KEYS.BATCH_KEY, "b"), (REGISTRY_KEYS.LABELS_KEY, "c")):
        codes = registered(simulated, key).ravel()
        levels = {REGISTRY_KEYS.BATCH_KEY: model.batches, REGISTRY_KEYS.LABELS_KEY: model.cell_types}[key]
        assert (np.asarray(levels)[codes] == simulated.obs[column].astype(str)).all()
    np.testing.assert_array_equal(registered(simulated, CFMVC_KEYS.SPATIAL_KEY), simulated.obsm["where"])
    np.testing.assert_array_equal(registered(simulated, REGISTRY_KEYS.CONT_COVS_KEY).ravel(), simulated.obs["age"])
    np.testing.assert_array_equal(
        registered(simulated, REGISTRY_KEYS.SIZE_FACTOR_KEY).ravel(), simulated.obs["library_size"]
    )
    assert registered(simulated, REGISTRY_KEYS.CAT_COVS_KEY).shape == (simulated.n_obs, 2)
    assert model.summary_stats.n_extra_categorical_covs == 2
    assert set(model.vocabulary.names) == {"P1", "P2", "P3"}
    assert model.vocabulary.has_embedding
    assert model.vocabulary.reference_dose == dict.fromkeys(("P1", "P2", "P3"), 2.0)
    assert model.module.encoder.covariates.n_out == sum(e.embedding_dim for e in model.module.encoder.covariates.tables)


@pytest.mark.parametrize(
    ("argument", "given", "close"),
    [
        ("batch_key", "batches", "batch"),
        ("labels_key", "celltype", "cell_type"),
        ("perturbation_key", "perturbations", "perturbation"),
        ("spatial_key", "spatia", "spatial"),
        ("dosage_key", "library_siz", "library_size"),
        ("size_factor_key", "library_sizes", "library_size"),
        ("categorical_covariate_keys", ["batchs"], "batch"),
        ("continuous_covariate_keys", ["librarysize"], "library_size"),
        ("layer", "true_means", "true_mean"),
        ("perturbation_embedding_key", "perturbation_embeddings", "perturbation_embedding"),
    ],
)
def test_a_name_that_is_not_there(simulated, argument, given, close):
    with pytest.raises(KeyError) as error:
        CFMVC.setup_anndata(simulated, **{argument: given})
    text = str(error.value)
    wrong = given if isinstance(given, str) else given[0]
    assert f"`{argument}`" in text and repr(wrong) in text
    assert f"Close matches: [{close!r}" in text and "There is:" in text


def test_no_perturbation_column(simulated):
    del simulated.obs["perturbation"]
    with pytest.raises(ValueError, match=r"perturbation_key=.*cell_type"):
        CFMVC.setup_anndata(simulated)
    with pytest.raises(ValueError, match="perturbation_key="):
        CFMVC.setup_anndata(simulated, perturbation_key=None)


# ---- control --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CONTROL_NAMES, "Control", "CTRL", "Dmso", "Non-Targeting"])
def test_usual_control_names_are_found(simulated, name):
    simulated.obs["perturbation"] = simulated.obs["perturbation"].cat.rename_categories({"control": name})
    assert setup_keys(simulated).control_group == [name]


def test_unclear_control(simulated):
    named = simulated.obs["perturbation"]
    simulated.obs["perturbation"] = named.cat.rename_categories({"control": "nothing"})
    with pytest.raises(ValueError, match=r"none of the levels.*control_group=.*'nothing'"):
        CFMVC.setup_anndata(simulated)
    simulated.obs["perturbation"] = named.cat.rename_categories({"P1": "DMSO"})
    with pytest.raises(ValueError, match=r"several levels.*'DMSO', 'control'"):
        CFMVC.setup_anndata(simulated)
    assert setup_keys(simulated, control_group="control").control_group == ["control"]


def test_control_group_of_several_levels(simulated):
    keys = setup_keys(simulated, control_group=["control", "P1"], combination_delimiter="+")
    assert keys.control_group == ["control", "P1"]
    vocabulary = CFMVC(simulated, n_hidden=4, n_hidden_flow=4).vocabulary
    assert set(vocabulary.names) == {"P2", "P3"}
    assert vocabulary.parse("P1").is_control and vocabulary.parse("P1+P3").members == ("P3",)


@pytest.mark.parametrize("given", ["contrl", ["control", "contrl"], []])
def test_control_group_that_is_not_a_level(simulated, given):
    with pytest.raises(ValueError, match=r"`control_group`.*not a level.*Levels:.*'P1'"):
        CFMVC.setup_anndata(simulated, control_group=given)


# ---- containers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_matrix, lambda x: x.toarray()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_containers_of_the_counts_give_the_same_model(simulated, build, container, dtype, layer):
    expected = build(simulated.copy())
    matrix = container(simulated.X).astype(dtype)
    if layer is None:
        simulated.X = matrix
    else:
        simulated.layers[layer] = matrix
        simulated.X = np.full(simulated.shape, 0.5)
    model = build(simulated, {"layer": layer, "combination_delimiter": "+"})
    for some in (expected, model):
        some.is_vae_trained_ = True
    # the linear paths start at random: the same seed, the same networks
    np.testing.assert_array_equal(model.get_latent_representation(), expected.get_latent_representation())


@pytest.mark.parametrize("layer", [None, "counts"])
def test_sparse_arrays_name_the_conversion(simulated, layer):
    array = sparse.csr_array(simulated.X)
    if layer is None:
        simulated.X = array
    else:
        simulated.layers[layer] = array
    with pytest.raises(TypeError, match=r"csr_array.*csr_matrix\("):
        CFMVC.setup_anndata(simulated, layer=layer)


def test_a_view_is_refused_and_its_copy_works(simulated):
    view = simulated[simulated.obs["cell_type"] == "type1"]
    with pytest.raises(ValueError, match=r"(?i)view.*copy"):
        CFMVC.setup_anndata(view)
    copied = view.copy()
    CFMVC.setup_anndata(copied)
    assert CFMVC(copied, n_hidden=4, n_hidden_flow=4).cell_types == ["type1"]


def test_setup_leaves_the_data_as_they_were(simulated):
    before = simulated.copy()
    CFMVC.setup_anndata(simulated, combination_delimiter="+")
    assert (simulated.X != before.X).nnz == 0 and simulated.X.dtype == before.X.dtype
    for column in before.obs:
        pd.testing.assert_series_equal(simulated.obs[column], before.obs[column])
    pd.testing.assert_frame_equal(simulated.var, before.var)
    for name in before.layers:
        np.testing.assert_array_equal(simulated.layers[name], before.layers[name])
    for name in before.obsm:
        np.testing.assert_array_equal(simulated.obsm[name], before.obsm[name])


# ---- state ------------------------------------------------------------------------------------------------------


def test_two_data_sets_do_not_share_state(simulate, build, fit):
    first, second = simulate(), simulate(n_genes=40, n_cell_types=3, n_batches=1, n_perturbations=2, seed=1)
    second.obs["perturbation"] = second.obs["perturbation"].cat.rename_categories({"control": "DMSO", "P1": "Q"})
    one, two = build(first), build(second)
    fit(two, vae_max_epochs=1, flow_max_epochs=1)
    fit(one, vae_max_epochs=1, flow_max_epochs=1)
    assert set(one.vocabulary.names) == {"P1", "P2", "P3"} and one.vocabulary.control_label == "control"
    assert set(two.vocabulary.names) == {"P1", "P2", "Q"}  # P1 is still in the pair
    assert (two.vocabulary.control_label, len(two.cell_types)) == ("DMSO", 3)
    assert set(one.cell_types) == {"type1", "type2"}
    assert one.predict_perturbation(perturbation="P3").n_vars == 60
    assert two.predict_perturbation(perturbation="P2").n_vars == 40


def test_setup_again_changes_the_new_model_only(simulated):
    CFMVC.setup_anndata(simulated, combination_delimiter="+")
    first = CFMVC(simulated, n_hidden=4, n_hidden_flow=4)
    CFMVC.setup_anndata(simulated, batch_key=None)
    second = CFMVC(simulated, n_hidden=4, n_hidden_flow=4)
    assert (first.setup_keys.batch_key, second.setup_keys.batch_key) == ("batch", None)
    assert (set(first.vocabulary.names), len(second.vocabulary.names)) == ({"P1", "P2", "P3"}, 4)


def test_unused_categories_do_no_harm(simulated, build, fit):
    kept = simulated[(simulated.obs["cell_type"] == "type1") & (simulated.obs["perturbation"] != "P2")].copy()
    kept.obs["cell_type"] = kept.obs["cell_type"].cat.set_categories(["type1", "type2"])
    kept.obs["perturbation"] = kept.obs["perturbation"].cat.set_categories(simulated.obs["perturbation"].cat.categories)
    model = fit(build(kept), vae_max_epochs=1, flow_max_epochs=1)
    assert model.vocabulary.names == ("P1", "P3")
    assert np.isfinite(model.predict_perturbation().X).all()


@pytest.mark.slow
def test_control_cells_alone_train_the_vae_only(simulated, build, quiet):
    kept = simulated[simulated.obs["perturbation"] == "control"].copy()
    with pytest.warns(UserWarning, match="only control cells"):
        model = build(kept)
    model.train_vae(1, **quiet)
    assert model.get_latent_representation().shape == (kept.n_obs, 6)


def test_data_on_disk_that_cannot_be_read_by_cells_are_refused_with_the_remedy(simulated, trained, tmp_path):
    simulated.X = sparse.csc_matrix(simulated.X)
    simulated.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for use in (CFMVC.setup_anndata, trained.get_latent_representation, trained.predict_perturbation):
        with pytest.raises(TypeError, match=r"stored by genes.*to_memory\(\)"):
            use(backed)
    simulated.write_zarr(tmp_path / "cells.zarr")
    lazy = ad.experimental.read_lazy(tmp_path / "cells.zarr")
    with pytest.raises(TypeError, match=r"Dataset2D, which is not in memory.*data\.open_counts\(path\)"):
        CFMVC.setup_anndata(lazy)


def test_control_cells_need_no_dose(simulate, build):
    adata = simulate(doses=(0.3, 1.0))
    setup = {"dosage_key": "dosage", "combination_delimiter": "+"}
    expected = build(adata.copy(), setup).vocabulary.reference_dose
    adata.obs.loc[adata.obs["perturbation"] == "control", "dosage"] = np.nan
    assert build(adata, setup).vocabulary.reference_dose == expected
