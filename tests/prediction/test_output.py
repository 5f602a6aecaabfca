"""Predictions written to disk: whole or not there, also when the disk fills up or the process was killed before."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest

from cfmvc_scvi.io import files

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
