"""Vectors of perturbations: what their inner products mean, and what is refused."""

import builtins

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cfmvc_scvi import data


@pytest.fixture(scope="module")
def control() -> AnnData:
    """Control cells in which G0 to G4 follow one hidden programme, G5 to G9 another, and the rest none."""
    rng = np.random.default_rng(0)
    programme = rng.normal(size=(600, 2))
    log_rate = np.full((600, 40), 1.5)
    log_rate[:, :5] += 0.8 * programme[:, :1]
    log_rate[:, 5:10] += 0.8 * programme[:, 1:]
    counts = rng.poisson(np.exp(log_rate)).astype(np.float32)
    return AnnData(counts, var=pd.DataFrame(index=[f"G{i}" for i in range(40)]))


def test_onehot():
    table = data.onehot_embedding(["B", "A", "B"])
    assert table.index.tolist() == ["B", "A"]
    np.testing.assert_array_equal(table, np.eye(2))


@pytest.mark.parametrize("function", [data.gene_loadings, data.coexpression_embedding])
def test_genes_of_one_programme_are_near_each_other(control, function):
    table = function(control, [f"G{i}" for i in range(10)], n_components=2)
    assert table.shape == (10, 2) and table.to_numpy().dtype == np.float32
    unit = table / np.linalg.norm(table, axis=1)[:, None]
    likeness = (unit @ unit.T).to_numpy()
    assert likeness[:5, :5].min() > 0.9 and likeness[5:, 5:].min() > 0.9
    assert np.abs(likeness[:5, 5:]).max() < 0.6


def test_inner_products_are_covariance_and_correlation(control):
    y = np.log1p(control.X / control.X.sum(axis=1, keepdims=True) * 1e4)
    names = list(control.var_names)
    loadings = data.gene_loadings(control, names, n_components=40).to_numpy()
    np.testing.assert_allclose(loadings @ loadings.T, np.cov(y.T), atol=2e-3)
    coexpression = data.coexpression_embedding(control, names, n_components=40).to_numpy()
    np.testing.assert_allclose(coexpression @ coexpression.T, np.corrcoef(y.T), atol=2e-2)


def test_perturbations_may_have_other_names_than_their_genes(control):
    mapped = data.gene_loadings(control, {"KO-3": "G3", "KO-7": "G7"}, n_components=3)
    direct = data.gene_loadings(control, ["G3", "G7"], n_components=3)
    assert mapped.index.tolist() == ["KO-3", "KO-7"]
    np.testing.assert_array_equal(mapped, direct)


def test_layer_and_sparse_counts_give_the_same(control):
    from scipy import sparse

    other = AnnData(np.zeros_like(control.X), var=control.var, layers={"counts": sparse.csr_matrix(control.X)})
    expected = data.gene_loadings(control, ["G1"], n_components=3)
    np.testing.assert_allclose(data.gene_loadings(other, ["G1"], n_components=3, layer="counts"), expected, rtol=1e-4)


def test_genes_that_are_not_there(control):
    with pytest.raises(ValueError, match=r"1 of the 2 genes .* are not in .*\['G33x'\]. Close matches: \['G33'\]"):
        data.gene_loadings(control, ["G1", "G33x"], n_components=3)
    table = data.gene_loadings(control, ["G1", "G33x"], n_components=3, missing="drop")
    assert table.index.tolist() == ["G1"]
    with pytest.raises(ValueError, match="2 of the 2 genes"):
        data.gene_loadings(control, ["x", "y"], n_components=3, missing="drop")


def test_arguments_that_do_not_fit(control):
    with pytest.raises(ValueError, match="`n_components` is 41; 600 cells x 40 genes allow 1 to 40"):
        data.gene_loadings(control, ["G1"], n_components=41)
    with pytest.raises(ValueError, match="`missing` 'skip'"):
        data.gene_loadings(control, ["G1"], missing="skip")
    with pytest.raises(ValueError, match="negative"):
        data.gene_loadings(AnnData(-control.X, var=control.var), ["G1"], n_components=3)


def test_fingerprints_of_alike_molecules_are_alike():
    pytest.importorskip("rdkit")
    smiles = {"ethanol": "CCO", "propanol": "CCCO", "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C"}
    table = data.smiles_fingerprints(smiles, n_bits=256)
    assert table.shape == (3, 256) and set(np.unique(table)) == {0.0, 1.0}
    shared = table @ table.T
    assert shared.loc["ethanol", "propanol"] > shared.loc["ethanol", "caffeine"]
    np.testing.assert_array_equal(table.loc["ethanol"], data.smiles_fingerprints({"x": "OCC"}, n_bits=256).loc["x"])
    with pytest.raises(ValueError, match=r"'nonsense' cannot be read: 'C\(C'"):
        data.smiles_fingerprints({"nonsense": "C(C"})


def test_without_rdkit_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("rdkit"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install rdkit"):
        data.smiles_fingerprints({"ethanol": "CCO"})


def test_no_gene_of_the_targets_in_a_panel(real_data):
    """The panel of Papalexi 2021 holds none of the genes that were knocked out: refused, not made up."""
    adata = real_data("papalexi2021")
    targets = sorted(set(adata.obs["perturbation"].astype(str)) - {"control", "non-targeting"})
    with pytest.raises(ValueError, match="25 of the 25 genes of the perturbations are not in this AnnData"):
        data.gene_loadings(adata, targets)
