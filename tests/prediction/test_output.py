"""Predictions written to disk: whole or not there, also when the disk fills up or the process was killed before."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfmvc_scvi.io import files
from cfmvc_scvi.prediction.output import make_output

Usage = namedtuple("Usage", "total used free")
KINDS = [("mean", ".h5ad"), ("counts", ".h5ad"), ("mean", ".zarr"), ("counts", ".zarr")]


def predict(model, out=None, return_type="mean"):
    return model.predict_perturbation(perturbation=["P1", "P2"], return_type=return_type, out=out)


@pytest.mark.parametrize(("return_type", "ending"), KINDS)
@pytest.mark.parametrize("fails_at", [0, 1])
def test_a_full_disk_leaves_nothing(trained, tmp_path, monkeypatch, return_type, ending, fails_at):
    calls = []

    def usage(path):
        calls.append(path)
        return Usage(10**12, 0, 10**12 if len(calls) <= fails_at else 1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    out = tmp_path / f"prediction{ending}"
    with pytest.raises(OSError, match=r"Could not write the prediction to .*the disk is full.*are free\)") as error:
        predict(trained, out, return_type)
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == [] and len(calls) == fails_at + 1


@pytest.mark.parametrize(("return_type", "ending"), KINDS)
def test_what_a_killed_process_left_is_cleared(trained, tmp_path, monkeypatch, return_type, ending):
    out = tmp_path / f"prediction{ending}"
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", lambda path: None)  # as if nothing could run after the failure
        patch.setattr("cfmvc_scvi.prediction.output.remove", lambda path: None)
        free = iter([10**12, 0])
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, next(free)))
        with pytest.raises(OSError, match="disk is full"):
            predict(trained, out, return_type)
        assert any(name.endswith(".partial") for name in os.listdir(tmp_path))
    monkeypatch.undo()
    for name in os.listdir(tmp_path):  # probes carry no name of a target
        if not name.startswith(".prediction"):
            files.remove(tmp_path / name)
    written = predict(trained, out, return_type)
    assert os.listdir(tmp_path) == [out.name]
    expected = predict(trained, return_type=return_type).X
    found = written.to_memory().X
    dense = [np.asarray(x.toarray() if hasattr(x, "toarray") else x) for x in (found, expected)]
    np.testing.assert_array_equal(*dense)


@pytest.mark.parametrize("column", [pd.Timestamp("2024-01-01"), pd.Timedelta(1, "D"), [1, "a"]])
@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_columns_no_file_can_hold_are_named_and_leave_nothing(tmp_path, column, ending):
    obs = pd.DataFrame({"when": pd.Series(column if isinstance(column, list) else [column] * 2, dtype=None)})
    obs = obs.set_axis(["a", "b"])
    with pytest.raises(ValueError, match=r"'when' holds .*astype\(str\)"):
        make_output(tmp_path / f"p.{ending}", obs=obs, var=obs.iloc[:, :0], uns={}, n_latent=2, is_sparse=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_nothing_is_left_when_a_file_cannot_be_begun(tmp_path, ending):
    obs = pd.DataFrame(index=["a", "b"])
    with pytest.raises(Exception, match="no method|No method"):
        make_output(tmp_path / f"p.{ending}", obs=obs, var=obs, uns={"x": object()}, n_latent=2, is_sparse=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("ending", [None, "h5ad", "zarr"])
def test_a_layer_holds_the_same_values(tmp_path, ending, is_sparse):
    obs, var = pd.DataFrame(index=["a", "b", "c"]), pd.DataFrame(index=["x", "y"])
    path = None if ending is None else tmp_path / f"p.{ending}"
    output = make_output(
        path, obs=obs, var=var, uns={}, n_latent=1, is_sparse=is_sparse, layer="counts", obsm={"at": np.eye(3)}
    )
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    for rows in (slice(0, 2), slice(2, 3)):
        x = sparse.csr_matrix(values[rows]) if is_sparse else values[rows]
        output.append(x, np.zeros((len(values[rows]), 1), dtype=np.float32))
    result = output.finish().to_memory()
    for matrix in (result.X, result.layers["counts"]):
        matrix = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)
        np.testing.assert_array_equal(matrix, values)
    np.testing.assert_array_equal(result.obsm["at"], np.eye(3))
