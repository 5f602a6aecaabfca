"""Results fit the data they stand beside."""

import numpy as np


def test_levels_and_columns_are_those_of_the_data(trained):
    assert trained._perturbation_column == "perturbation"
    assert trained._native("batch") == {"batch1": "batch1", "batch2": "batch2"}
    assert trained._counts_layer("mean") is None


def test_coordinates_are_those_of_the_source_cells(trained):
    predicted = trained.predict_perturbation(perturbation=["P1", "P2"], show_progress=False)
    rows = trained.adata.obs_names.get_indexer(predicted.obs["source_cell"])
    np.testing.assert_allclose(predicted.obsm["spatial"], trained.adata.obsm["spatial"][rows], rtol=1e-6)


def test_genes_keep_their_annotations(trained):
    predicted = trained.predict_perturbation(perturbation="P1")
    assert predicted.var.equals(trained.adata.var)
