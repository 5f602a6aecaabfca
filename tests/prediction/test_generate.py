"""Generation of new cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse


def dense(adata) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


@pytest.mark.parametrize("source", ["trained", "trained_noise"])
@pytest.mark.parametrize("return_type", ["mean", "counts", "lognorm", "latent"])
def test_shapes_and_annotations(request, source, return_type, tmp_path):
    model = request.getfixturevalue(source)
    cells = model.generate_cells("P1", 12, return_type=return_type)
    assert cells.shape == (12, 6 if return_type == "latent" else 60)
    assert set(cells.obs["perturbation"]) == {"P1"} and set(cells.obs["support"]) == {"seen"}
    assert cells.obs_names.is_unique and not set(cells.obs_names) & set(model.adata.obs_names)
    assert "source_cell" not in cells.obs
    assert cells.obsm["X_cfmvc"].shape == (12, 6)
    values = dense(cells)
    assert np.isfinite(values).all()
    if return_type == "counts":
        assert sparse.isspmatrix_csr(cells.X) and (values == np.round(values)).all() and values.sum() > 0
    if return_type != "latent":
        assert values.min() >= 0
        assert cells.var_names.equals(model.adata.var_names)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(dense(read), values)
    assert read.uns["cfmvc"]["return_type"] == return_type


def test_default_is_counts(trained):
    np.testing.assert_array_equal(
        dense(trained.generate_cells("P1", 5)), dense(trained.generate_cells("P1", 5, return_type="counts"))
    )


def test_seed(trained):
    first, again, other = (dense(trained.generate_cells("P1", 20, seed=seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_cell_type_and_batch(trained):
    cells = trained.generate_cells("P2", 30, labels="type2", batch="batch1")
    assert set(cells.obs["cell_type"]) == {"type2"} and set(cells.obs["batch"]) == {"batch1"}
    mixed = trained.generate_cells("P2", 60)
    assert set(mixed.obs["cell_type"]) == {"type1", "type2"} and set(mixed.obs["batch"]) == {"batch1", "batch2"}


@pytest.mark.parametrize("source", ["trained", "trained_noise"])
@pytest.mark.parametrize("label", ["control", "P1", "P1+P3"])
def test_generated_cells_look_like_the_condition(request, source, label):
    model = request.getfixturevalue(source)
    real = model.adata[model.adata.obs["perturbation"] == label].X.toarray()
    generated = dense(model.generate_cells(label, 400))
    real, generated = (np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4) for x in (real, generated))
    assert np.corrcoef(real.mean(axis=0), generated.mean(axis=0))[0, 1] > 0.9
    if label == "control":
        assert abs(generated.std() / real.std() - 1) < 0.2


def test_more_cells_than_controls(trained):
    n_control = int((trained.adata.obs["perturbation"] == "control").sum())
    assert trained.generate_cells("P1", 3 * n_control).n_obs == 3 * n_control


def test_coordinates(trained):
    place = np.zeros((8, 2))
    here = trained.generate_cells("P1", 8, spatial=place, return_type="latent")
    own = trained.generate_cells("P1", 8, return_type="latent")
    assert not np.array_equal(here.X, own.X)
    with pytest.raises(ValueError, match=r"`spatial` has shape \(8, 3\).*\(8, 2\)"):
        trained.generate_cells("P1", 8, spatial=np.zeros((8, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbation": "P9"}, r"Unknown perturbation 'P9'.*Known:.*'P1'"),
        ({"n_cells": 0}, "`n_cells` is 0"),
        ({"labels": "type9"}, r"'type9'.*'type1'"),
        ({"batch": "batch9"}, r"'batch9'.*'batch1'"),
        ({"return_type": "median"}, "`return_type` 'median'"),
        ({"dosage": 1.0}, "without `dosage_key`"),
    ],
)
def test_arguments_that_do_not_fit(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained.generate_cells(**({"perturbation": "P1", "n_cells": 3} | arguments))


def test_models_without_cell_types_or_coordinates(simulated, build, fit):
    model = fit(build(simulated, {"labels_key": None, "spatial_key": None}), vae_max_epochs=1, flow_max_epochs=1)
    assert model.generate_cells("P1", 4).n_obs == 4
    with pytest.raises(ValueError, match="without `labels_key`"):
        model.generate_cells("P1", 4, labels="type1")
    with pytest.raises(ValueError, match="expects no coordinates"):
        model.generate_cells("P1", 4, spatial=np.zeros((4, 2)))


def test_dose(simulate, build, fit):
    model = fit(build(simulate(doses=(0.3, 1.0)), {"dosage_key": "dosage", "combination_delimiter": "+"}))
    none, control = (
        model.generate_cells(label, 30, dosage=dose, return_type="latent")
        for label, dose in (("P1", 0), ("control", 0))
    )
    np.testing.assert_array_equal(none.X, control.X)
    assert not np.array_equal(model.generate_cells("P1", 30, dosage=1.0, return_type="latent").X, none.X)


def test_data_are_left_alone(trained):
    before = trained.adata.copy()
    trained.generate_cells("P1", 10, batch="batch1")
    assert (trained.adata.X != before.X).nnz == 0 and trained.adata.obs.equals(before.obs)


def test_expected_counts_have_the_calibrated_mean_of_the_drawn_ones(trained):
    drawn = trained.generate_cells("P1", 400, return_type="counts", seed=0).X
    expected = trained.generate_cells("P1", 400, return_type="mean", seed=0).X
    drawn, expected = np.asarray(drawn.mean(axis=0)).ravel(), expected.mean(axis=0)
    assert abs(drawn.sum() / expected.sum() - 1.0) < 0.05
    largest = np.argsort(-expected)[:20]
    np.testing.assert_allclose(drawn[largest], expected[largest], rtol=0.25)
