"""Checksums: the same for the same data in any container, and each changes with its own part alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cfmvc_scvi.registration.fingerprint import data_fingerprint
from cfmvc_scvi.registration.keys import SetupKeys

KEYS = SetupKeys(None, "batch", "cell_type", "perturbation", ["control"], "+", None, None, None, None, ["number"], None)


@pytest.fixture
def numbered(simulated):
    simulated.obs["number"] = np.arange(300.0)
    return simulated


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_containers_and_unregistered_columns_do_not_matter(numbered, container):
    expected = data_fingerprint(numbered, KEYS)
    numbered.X = container(numbered.X.toarray())
    numbered.obs["note"] = "new"
    numbered.obs["batch"] = numbered.obs["batch"].astype(str)
    assert data_fingerprint(numbered, KEYS) == expected
    assert set(expected) == {"cells", "genes", "columns", "perturbations", "counts"}


def change_cells(adata):
    adata.obs_names = [*adata.obs_names[1:], "another"]


def change_genes(adata):
    adata.var_names = adata.var_names[::-1]


def change_columns(adata):
    adata.obs.loc[adata.obs_names[7], "number"] += 1.0


def change_perturbations(adata):
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace("P1", "P2")


def change_counts(adata):
    adata.X[5, 5] += 1


@pytest.mark.filterwarnings("ignore:Changing the sparsity")
@pytest.mark.parametrize("change", [change_cells, change_genes, change_columns, change_perturbations, change_counts])
def test_a_part_that_changes_changes_its_own_sum_alone(numbered, change):
    before = data_fingerprint(numbered, KEYS)
    change(numbered)
    after = data_fingerprint(numbered, KEYS)
    assert {f"change_{name}" for name in before if before[name] != after[name]} == {change.__name__}
