"""Vectors by the names of the data: what is kept, mapped, reported and refused."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import data
from cfmvc_scvi.data.vectors.read import needed_names

X = np.arange(1.0, 13.0).reshape(4, 3)
FRAME = pd.DataFrame(X, index=["ENSG00000001", "ENSG00000002", "IRF1", "MYC (4609)"], columns=list("abc"))


@pytest.fixture
def file(tmp_path):
    FRAME.to_csv(tmp_path / "x.csv")
    return tmp_path / "x.csv"


def test_everything(file):
    table = data.read_vectors(file)
    assert table.to_numpy().dtype == np.float32 and list(table.index) == list(FRAME.index)
    np.testing.assert_array_equal(table, X)
    assert table.attrs == {"source": "x.csv", "renamed": 0, "missing": [], "dropped": []}


def test_wanted_labels_with_aliases(file):
    """Pairs are split, controls need none, the rest is reported once and not filled in."""
    labels = ["STAT1+IRF1", "control", "non-targeting_3", "IRF1+ctrl", "JAK2", None, "IRF11"]
    with pytest.warns(UserWarning, match=r"2 perturbations have no vector in 'x.csv': \['JAK2', 'IRF11'\]. Close") as w:
        table = data.read_vectors(file, wanted=labels, delimiter="+", aliases={"ENSG00000002": "STAT1"})
    assert len(w) == 1 and "IRF1" in str(w[0].message)
    assert list(table.index) == ["STAT1", "IRF1"]
    np.testing.assert_array_equal(table, X[1:3])
    assert table.attrs["missing"] == ["JAK2", "IRF11"] and table.attrs["renamed"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.read_vectors(file, wanted=pd.Series(["IRF1", "water"], dtype="category"), control_group="water")


def test_the_table_serves_the_model(simulated, tmp_path, build):
    """What is read registers as it is, and a perturbation without vector is refused there, not made up."""
    labels = simulated.obs["perturbation"]
    names = needed_names(labels, "+")
    pd.DataFrame(np.eye(len(names)), index=names).to_csv(tmp_path / "v.csv")
    simulated.uns["vectors"] = data.read_vectors(tmp_path / "v.csv", wanted=labels, delimiter="+")
    setup = {"combination_delimiter": "+", "perturbation_embedding_key": "vectors"}
    model = build(simulated, setup)
    assert model.vocabulary.n_features == len(names)
    pd.DataFrame(np.eye(len(names))[1:], index=names[1:]).to_csv(tmp_path / "less.csv")
    with pytest.warns(UserWarning, match="1 perturbations have no vector"):
        simulated.uns["vectors"] = data.read_vectors(tmp_path / "less.csv", wanted=labels, delimiter="+")
    with pytest.raises(ValueError, match="no vector for 1 perturbations"):
        build(simulated, setup)


def test_transposed_and_renamed(tmp_path):
    """As DepMap: a column per gene, called "SYMBOL (entrez)"."""
    FRAME.T.rename_axis("ModelID").to_csv(tmp_path / "depmap.csv")
    table = data.read_vectors(tmp_path / "depmap.csv", transpose=True, aliases=lambda name: name.split(" (")[0])
    assert list(table.index) == ["ENSG00000001", "ENSG00000002", "IRF1", "MYC"] and list(table.columns) == list("abc")
    np.testing.assert_array_equal(table, X)


def test_names_of_an_array(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(ValueError, match="4 vectors without names: pass `names=`.*put 'x.names.txt' beside"):
        data.read_vectors(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="3 names for the 4 vectors"):
        data.read_vectors(tmp_path / "x.npy", names=list("ABC"))
    (tmp_path / "other.txt").write_text("A\nB\nC\nD\n")
    (tmp_path / "x.names.txt").write_text("E\nF\nG\nH\n")
    assert list(data.read_vectors(tmp_path / "x.npy", names=tmp_path / "other.txt").index) == list("ABCD")
    assert list(data.read_vectors(tmp_path / "x.npy").index) == list("EFGH")
    assert list(data.read_vectors(tmp_path / "x.npy").columns) == ["0", "1", "2"]


def test_duplicates(file):
    both = {"ENSG00000001": "A", "ENSG00000002": "A"}
    with pytest.raises(ValueError, match=r"1 names have several vectors in 'x.csv': \['A'\]. Average them by"):
        data.read_vectors(file, aliases=both)
    table = data.read_vectors(file, aliases=both, duplicates="mean")
    np.testing.assert_array_equal(table.loc["A"], X[:2].mean(axis=0))
    assert list(data.read_vectors(file, aliases=both, wanted=["IRF1"]).index) == ["IRF1"]  # what is not asked for


def test_numbers_that_are_unusable(tmp_path):
    frame = FRAME.copy()
    frame.iloc[1, 1], frame.iloc[2, 0] = np.nan, np.inf
    frame.loc["GAP"] = 0.0  # to a model that would be control
    frame.to_csv(tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"3 of 5 vectors .*: \['ENSG00000002', 'IRF1', 'GAP'\]. Leave"):
        data.read_vectors(tmp_path / "x.csv")
    with pytest.warns(UserWarning, match="3 vectors have missing or infinite numbers"):
        table = data.read_vectors(tmp_path / "x.csv", unusable="drop")
    assert list(table.index) == ["ENSG00000001", "MYC (4609)"]
    assert table.attrs["dropped"] == ["ENSG00000002", "IRF1", "GAP"]
    with pytest.raises(ValueError, match="1 of 1 vectors"):
        data.read_vectors(tmp_path / "x.csv", wanted=["IRF1"], unusable="drop")


def test_refusals(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        data.read_vectors(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="None of the 1 perturbations wanted.*identifiers of another kind"):
        data.read_vectors(file, wanted=["STAT1"])
    with pytest.raises(ValueError, match="None of the 0 perturbations"):
        data.read_vectors(file, wanted=["control"])
    with pytest.raises(TypeError, match="`wanted` is the text 'STAT1'"):
        data.read_vectors(file, wanted="STAT1")
    for argument in ("duplicates", "unusable"):
        with pytest.raises(ValueError, match=f"Unknown `{argument}` 'first'"):
            data.read_vectors(file, **{argument: "first"})
    np.save(tmp_path / "flat.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"array of shape \(3,\)"):
        data.read_vectors(tmp_path / "flat.npy", names=list("ABC"))
