"""What the tests of predictions share."""

from __future__ import annotations

import anndata as ad
import pytest


def control_cells(model) -> ad.AnnData:
    """Control cells as a user brings them: without anything of scvi-tools."""
    cells = model.adata[model.adata.obs["perturbation"] == "control"].copy()
    cells.obs = cells.obs.loc[:, [name for name in cells.obs if not name.startswith("_scvi")]]
    cells.uns = {}
    return cells


@pytest.fixture(scope="module")
def cells(trained):
    return control_cells(trained)


@pytest.fixture(scope="module")
def predicted(trained):
    return trained.predict_perturbation(perturbation="P1")
