"""Whole screens: effects and cells as the methods for single conditions give them."""

from __future__ import annotations

import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfmvc_scvi import CFMVC


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


@pytest.fixture(scope="module")
def effects(trained):
    return trained.predict_screen()


def test_effects_are_those_of_single_conditions(trained, effects):
    assert effects.obs["perturbation"].nunique() == 4 and effects.n_obs == 4 * len(trained.cell_types)
    assert list(effects.var_names) == list(trained.get_var_names())
    for row in range(effects.n_obs):
        perturbation, label = effects.obs[["perturbation", "cell_type"]].iloc[row]
        table = trained.get_perturbation_effect(perturbation, label)
        np.testing.assert_allclose(effects.X[row], table["log_fold_change"], rtol=1e-6, atol=1e-7)
        for name in ("sd", "lower", "upper", "lfsr"):
            np.testing.assert_allclose(effects.layers[name][row], table[name], rtol=1e-5, atol=1e-7)
        assert effects.obs["support"].iloc[row] == table.attrs["support"][0]
    profiles = trained._calibration.state.profiles
    codes = [trained.cell_types.index(label) for label in effects.obs["cell_type"]]
    np.testing.assert_allclose(effects.layers["expression"], profiles[codes] + effects.X, atol=1e-6)
    assert (effects.layers["expression"] >= -1e-6).all()


def test_annotations_of_effects(trained, effects):
    predicted = trained.predict_perturbation(perturbation=["P1"], show_progress=False)
    row = effects.obs.loc[f"P1_{trained.cell_types[0]}"]
    cells = predicted.obs[predicted.obs["cell_type"] == trained.cell_types[0]]
    for name in ("support", "support_distance", "n_support"):
        assert (cells[name] == row[name]).all()
    assert effects.uns["cfmvc"]["return_type"] == "effect" and "log1p" in effects.uns["cfmvc"]["units"]


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_effects_on_disk(trained, effects, tmp_path, ending):
    out = tmp_path / f"effects{ending}"
    opened = trained.predict_screen(out, show_progress=False)
    assert not isinstance(opened.layers["sd"], np.ndarray)
    found = ad.read_zarr(out) if ending == ".zarr" else ad.read_h5ad(out)
    assert np.array_equal(found.X, effects.X) and list(found.obs_names) == list(effects.obs_names)
    assert all(np.array_equal(found.layers[name], effects.layers[name]) for name in effects.layers)


@pytest.mark.parametrize("return_type", ["mean", "counts", "lognorm", "latent"])
def test_cells_are_those_of_predict_perturbation(trained, tmp_path, return_type):
    asked = {"perturbation": ["P1", "P1+P2"], "return_type": return_type, "show_progress": False}
    expected = trained.predict_perturbation(**asked)
    opened = trained.predict_screen(tmp_path / "cells.h5ad", **asked)
    found = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert opened.shape == expected.shape and np.array_equal(dense(found.X), dense(expected.X))
    assert np.array_equal(found.obsm["X_cfmvc"], expected.obsm["X_cfmvc"])
    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.obs["support"]) == list(expected.obs["support"])


def test_shards_of_given_cells_and_draws(trained, cells, tmp_path):
    asked = {"return_type": "counts", "n_samples": 2, "seed": 5, "show_progress": False}
    conditions = pd.DataFrame({"perturbation": ["P1", "P2", "P3"], "batch": ["batch1", None, None]})
    out = tmp_path / "cells.zarr"
    assert trained.predict_screen(out, conditions, adata=cells, shard=(0, 2), **asked) is None
    trained.predict_screen(out, conditions, adata=cells, shard=(1, 2), **asked)
    expected = trained.predict_perturbation(cells, conditions, **asked)
    found = ad.read_zarr(out)
    assert (found.X != expected.X).nnz == 0 and list(found.obs["draw"]) == list(expected.obs["draw"])
    assert os.listdir(tmp_path) == ["cells.zarr"]


def test_cell_types_can_be_chosen(trained, tmp_path):
    label = trained.cell_types[1]
    effects = trained.predict_screen(None, ["P1", "P2"], labels=label)
    assert list(effects.obs_names) == [f"P1_{label}", f"P2_{label}"]
    cells = trained.predict_screen(None, ["P1", "P2"], labels=label, return_type="latent", show_progress=False)
    assert set(cells.obs["cell_type"]) == {label} and cells.obs_names.is_unique
    own = pd.DataFrame({"perturbation": ["P1", "P2"], "labels": [None, label]})
    assert list(trained.predict_screen(None, own).obs["cell_type"]) == [*trained.cell_types, label]


def test_control_has_no_effect(trained):
    effects = trained.predict_screen(None, "control")
    assert not effects.X.any() and not effects.layers["sd"].any()


def test_the_same_model_goes_on_after_it_was_saved(trained, tmp_path):
    trained.predict_screen(tmp_path / "effects.zarr", shard=(0, 2), show_progress=False)
    trained.save(tmp_path / "model", save_anndata=True)
    loaded = CFMVC.load(tmp_path / "model", accelerator="cpu")
    assert loaded.predict_screen(tmp_path / "effects.zarr", show_progress=False) is not None


def test_what_differs_is_said(trained, trained_noise, tmp_path):
    out = tmp_path / "effects.h5ad"
    trained.predict_screen(out, ["P1", "P2"])
    with pytest.raises(ValueError, match=r"conditions is 4 of digest \w+, asked for is 2 of digest"):
        trained.predict_screen(out, ["P1"])
    with pytest.raises(
        ValueError, match=r"effects\.h5ad' belongs to another request: level is 0\.95, asked for is 0\.9"
    ):
        trained.predict_screen(out, ["P1", "P2"], level=0.9)
    with pytest.raises(ValueError, match=r"model is \w+, asked for is \w+\. Ask"):
        trained_noise.predict_screen(out, ["P1", "P2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"return_type": "effects"}, "return_type"),
        ({"level": 1.0}, "`level` is 1.0"),
        ({"batch": "batch1"}, "leave `batch` out"),
        ({"indices": [0]}, "leave `adata` and `indices` out"),
        ({"labels": "no"}, "cell type"),
        ({"shard": (0, 2)}, "`shard` is for parts of one file"),
        ({"return_type": "mean", "solver": "no"}, "solver"),
    ],
)
def test_wrong_arguments_are_refused(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained.predict_screen(None, ["P1"], **arguments)


@pytest.mark.slow
def test_doses_are_in_the_names(fit, build, simulate):
    adata = simulate(n_pairs=0)
    adata.obs["dose"] = np.where(adata.obs["perturbation"] == "control", 0.0, 1.0 + np.arange(adata.n_obs) % 2)
    model = fit(build(adata, {"dosage_key": "dose", "labels_key": None}))
    effects = model.predict_screen()
    assert list(effects.obs_names[:2]) == ["P1@1", "P1@2"] and list(effects.obs["dose"][:2]) == [1.0, 2.0]
    assert "cell_type" not in effects.obs
