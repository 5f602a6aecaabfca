"""Model files: they run no code, notice damage, survive an interrupted save, and of earlier versions still load."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from scvi.model.base import BaseModelClass

from cfmvc_scvi import CFMVC
from cfmvc_scvi.io import archive
from cfmvc_scvi.io.archive import ArchiveError

SAVED = sorted((Path(__file__).parents[1] / "saved_models").glob("*"))


@pytest.fixture
def saved(trained, tmp_path):
    trained.save(str(tmp_path / "model"))
    return str(tmp_path / "model")


def latents(model, adata=None):
    return model.get_latent_representation(adata, latent="both")


# ---- files that cannot run code -----------------------------------------------------------------------------------


def test_nothing_is_unpickled(trained, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was read or written")

    adata = trained.adata.copy()
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "dump"), (torch, "load"), (torch, "save")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    trained.save(str(tmp_path / "model"), save_anndata=True)
    files = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert [name.split("-")[0].split(".")[0] for name in files] == ["adata", "model", "model"]
    for given in (None, False, adata):
        CFMVC.load(str(tmp_path / "model"), adata=given)
    assert CFMVC.load_registry(str(tmp_path / "model"))["setup_args"]["batch_key"] == "batch"


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_read_on_request_only(trained, tmp_path):
    folder, ran = tmp_path / "scvi", str(tmp_path / "ran")
    BaseModelClass.save(trained, str(folder))
    for load in (CFMVC.load, CFMVC.load_registry):
        with pytest.raises(ValueError, match=r"model.pt is a pickle.*runs whatever code.*`allow_pickle=True`"):
            load(str(folder))
    backwards = trained.adata[:, ::-1].copy()
    loaded = CFMVC.load(str(folder), adata=backwards, allow_pickle=True)
    np.testing.assert_array_equal(latents(loaded), latents(trained))
    loaded.save(str(folder), overwrite=True)  # in the other format, in its place
    assert not (folder / "model.pt").exists()
    np.testing.assert_array_equal(latents(CFMVC.load(str(folder), adata=trained.adata.copy())), latents(trained))

    (folder / "model.json").unlink()
    (folder / "model.pt").write_bytes(pickle.dumps(RunsCode(ran)))
    with pytest.raises(ValueError, match="pickle"):
        CFMVC.load(str(folder), adata=False)
    assert not os.path.exists(ran)


def test_attributes_that_no_model_has_are_refused(saved):
    path = Path(saved) / "model.json"
    head = json.loads(path.read_text())
    head.pop("checksum")
    for name in ("load", "__class__", "_private_", "save"):
        head["content"]["attributes"] |= {name: 1}
        path.write_text(json.dumps(head | {"checksum": archive._checksum(head)}))
        with pytest.raises(ArchiveError, match=f"attribute '{name}'"):
            CFMVC.load(saved, adata=False)
        del head["content"]["attributes"][name]


# ---- arguments ----------------------------------------------------------------------------------------------------


def test_prefixes_share_a_folder(trained, trained_noise, tmp_path):
    folder = str(tmp_path / "models")
    trained.save(folder, prefix="a_", save_anndata=True)
    trained_noise.save(folder, prefix="b_", overwrite=True)
    trained.save(folder, prefix="a_", overwrite=True)
    np.testing.assert_array_equal(latents(CFMVC.load(folder, prefix="a_")), latents(trained))
    assert CFMVC.load(folder, adata=False, prefix="b_").flow_source == "noise"
    with pytest.raises(FileNotFoundError, match=r"no model in .*: model.json is missing. Found: \['a_.*`prefix`"):
        CFMVC.load(folder, adata=False)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CFMVC.load(str(tmp_path / "nowhere"))


def test_without_saved_data_there_is_a_warning(saved):
    with pytest.warns(UserWarning, match=r"adata.h5ad is not there.*`adata=False`"):
        assert CFMVC.load(saved).adata is None


def test_other_classes_may_be_allowed(trained, saved):
    class Other(CFMVC):
        pass

    loaded = Other.load(saved, adata=trained.adata.copy(), allowed_classes_names_list=["CFMVC"], device="auto")
    np.testing.assert_array_equal(latents(loaded), latents(trained))
    with pytest.raises(ValueError, match="CFMVC, not Other. Load it with CFMVC.load, or name"):
        Other.load(saved, adata=False)


@pytest.mark.parametrize("arguments", [{"backup_url": "https://example.org"}, {"load_adata": 1}])
def test_arguments_of_the_other_format(saved, arguments):
    with pytest.raises(TypeError, match=f"Unknown arguments .*{next(iter(arguments))}"):
        CFMVC.load(saved, adata=False, **arguments)


def test_arguments_of_save(trained, tmp_path):
    with pytest.raises(TypeError, match="compression"):
        trained.save(str(tmp_path / "model"), compression="gzip")
    assert not (tmp_path / "model").exists()
    trained.save(str(tmp_path / "model"), save_anndata=True, compression="gzip")
    without = CFMVC.load(str(tmp_path / "model"), adata=False)
    with pytest.raises(RuntimeError, match="without data"):
        without.save(str(tmp_path / "other"), save_anndata=True)
    assert not (tmp_path / "other").exists()


# ---- damage and interruption --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["model.json", "*.safetensors", "adata.h5ad"])
def test_truncated_files_are_named(trained, tmp_path, which):
    folder = tmp_path / "model"
    trained.save(str(folder), save_anndata=True)
    [path] = folder.glob(which)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArchiveError, match=r"truncated.*Copy the whole folder again") as error:
        CFMVC.load(str(folder))
    assert path.name in str(error.value)


def full_disk(real):
    def write(self, data):
        real(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    return write


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_no_half_model(trained, trained_noise, tmp_path, monkeypatch, exists):
    folder = tmp_path / "model"
    if exists:
        trained_noise.save(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk(Path.write_bytes))
        with pytest.raises(OSError, match=r"Could not write the model to .* the disk is full") as error:
            trained.save(str(folder), overwrite=True)
    assert error.value.errno == errno.ENOSPC
    assert folder.exists() == exists and len(os.listdir(tmp_path)) == int(exists)
    if exists:
        np.testing.assert_array_equal(
            latents(CFMVC.load(str(folder), adata=trained_noise.adata.copy())), latents(trained_noise)
        )


def test_a_folder_that_cannot_be_made(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Could not write the model .*a part of the path is a file"):
        trained.save(str(tmp_path / "file" / "model"))
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_saved_is_named(simulated, build, fit, tmp_path):
    model = fit(build(simulated), vae_max_epochs=1, flow_max_epochs=1)
    model.notes_ = {"made by": object()}
    with pytest.raises(TypeError, match=r"the model\['attributes'\]\['notes_'\]\['made by'\] is a builtins.object"):
        model.save(str(tmp_path / "model"))
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_attributes_of_any_kind_travel(simulated, build, tmp_path):
    model = build(simulated)
    model.extra_ = {
        ("P1", 2): (np.float32(1), [np.arange(3, dtype=np.int16)]),
        "t": torch.ones(2, dtype=torch.bfloat16),
    }
    model.save(str(tmp_path / "model"))
    loaded = CFMVC.load(str(tmp_path / "model"), adata=False)
    scalar, [array] = loaded.extra_["P1", 2]
    assert type(scalar) is np.float32 and array.dtype == np.int16 and loaded.extra_["t"].dtype == torch.bfloat16


# ---- files of released versions -----------------------------------------------------------------------------------


def test_there_are_files_of_released_versions():
    assert [path.name for path in SAVED][:1] == ["0.1.0"]
    assert all(sum(f.stat().st_size for f in path.iterdir()) < 300_000 for path in SAVED)


@pytest.mark.slow
@pytest.mark.parametrize("folder", SAVED, ids=lambda path: path.name)
def test_models_of_released_versions_load_and_predict(folder):
    """``expected.npz`` holds what the version itself gave; see docs/contributing.md."""
    cells = anndata.read_h5ad(folder / "cells.h5ad")
    expected = np.load(folder / "expected.npz")
    model = CFMVC.load(str(folder), adata=cells)
    np.testing.assert_allclose(latents(model), expected["latents"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(latents(CFMVC.load(str(folder), adata=False), cells), expected["latents"], atol=1e-4)
    predicted = model.predict_perturbation(perturbation=["P1", "P1+P2"], return_type="lognorm").X
    np.testing.assert_allclose(predicted, expected["predicted"], rtol=1e-3, atol=1e-3)
