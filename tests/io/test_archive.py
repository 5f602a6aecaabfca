"""Files that are whole or not there, and archives that notice every change."""

from __future__ import annotations

import builtins
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cfmvc_scvi.io import archive
from cfmvc_scvi.io.archive import ArchiveError, read_archive, write_archive
from cfmvc_scvi.io.files import atomic_write

CONTENT = {"weights": np.arange(6.0).reshape(2, 3), "list": [1, (2, "three")], "none": None}


@pytest.fixture
def folder(tmp_path):
    write_archive(tmp_path, "thing", CONTENT, "the thing")
    return tmp_path


def weights_file(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def same_as_written(folder, content=CONTENT) -> bool:
    found = read_archive(folder, "thing")
    assert found["list"] == content["list"] and found["none"] is None
    return np.array_equal(found["weights"], content["weights"])


# ---- atomic writes ------------------------------------------------------------------------------------------------


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with atomic_write(target) as aside:
        aside.write_text("first")
        assert not target.exists()
    with atomic_write(target) as aside:
        aside.write_text("second")
        assert target.read_text() == "first"
    assert target.read_text() == "second" and os.listdir(target.parent) == ["file.txt"]


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "model"
    with atomic_write(target, folder=True) as aside:
        (aside / "a").write_text("1")
        assert not target.exists()
    assert os.listdir(tmp_path) == ["model"] and (target / "a").read_text() == "1"
    with pytest.raises(FileExistsError, match="not an empty folder"), atomic_write(target, folder=True):
        raise AssertionError("not reached")


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failure_leaves_nothing(tmp_path, folder, error):
    target = tmp_path / "thing"
    if not folder:
        target.write_text("before")

    def write():
        with atomic_write(target, "the prediction", folder=folder) as aside:
            (aside / "part" if folder else aside).write_text("half of")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert os.listdir(tmp_path) == ([] if folder else ["thing"])
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert "Could not write the prediction to" in str(caught.value) and "the disk is full" in str(caught.value)


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="a part of the path is a file"), atomic_write(tmp_path / "file" / "x") as aside:
        aside.write_text("")


# ---- archives -----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(folder):
    assert same_as_written(folder)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]
    json.loads((folder / "thing.json").read_text())


def test_a_later_archive_takes_the_place_and_leaves_others_alone(folder):
    write_archive(folder, "thing2", CONTENT, "another")
    later = CONTENT | {"weights": np.ones(3)}
    write_archive(folder, "thing", later, "the thing")
    assert same_as_written(folder, later) and np.array_equal(
        read_archive(folder, "thing2")["weights"], CONTENT["weights"]
    )
    assert len(list(folder.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("call", range(1, 5))
def test_killed_at_any_step_the_old_or_the_new_is_there(folder, monkeypatch, call):
    """Every rename and removal of the file system is a step; the process dies at the ``call``-th."""
    calls = []

    class Killed(BaseException):
        pass

    def dying(real):
        def step(*args, **kwargs):
            calls.append(real)
            if len(calls) == call:
                raise Killed
            return real(*args, **kwargs)

        return step

    later = CONTENT | {"weights": np.ones(3)}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(os, "unlink", dying(os.unlink))
        patch.setattr(archive.Path, "unlink", dying(archive.Path.unlink))
        try:
            write_archive(folder, "thing", later, "the thing")
        except Killed:
            pass
    found = read_archive(folder, "thing")["weights"]
    assert np.array_equal(found, CONTENT["weights"]) or np.array_equal(found, later["weights"])
    write_archive(folder, "thing", later, "the thing")
    assert same_as_written(folder, later)


@pytest.mark.parametrize("which", ["thing.json", "*.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_files(folder, which, kept):
    [path] = folder.glob(which)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept)])
    with pytest.raises(ArchiveError, match="truncated|damaged") as error:
        read_archive(folder, "thing")
    assert path.name in str(error.value) and "save the model again" in str(error.value)


def test_every_changed_byte_is_noticed(folder):
    rng = np.random.default_rng(0)
    for path in (folder / "thing.json", weights_file(folder)):
        raw = path.read_bytes()
        for position in rng.choice(len(raw), 40, replace=False):
            changed = bytearray(raw)
            changed[position] ^= 1 << rng.integers(8)
            path.write_bytes(changed)
            try:
                found = read_archive(folder, "thing")
            except ArchiveError:
                continue
            # white space between the values of the JSON file may change
            assert path.suffix == ".json" and raw[position : position + 1].isspace()
            assert np.array_equal(found["weights"], CONTENT["weights"])
        path.write_bytes(raw)
    assert same_as_written(folder)


def test_missing_weights(folder):
    weights_file(folder).unlink()
    with pytest.raises(ArchiveError, match=r"thing-.*safetensors', which thing.json needs, is not in"):
        read_archive(folder, "thing")


def edit(folder, **changes):
    path = folder / "thing.json"
    head = json.loads(path.read_text()) | changes
    head.pop("checksum")
    path.write_text(json.dumps(head | {"checksum": archive._checksum(head)}))


def test_versions(folder):
    edit(folder, format_version=99, written_by={"cfmvc_scvi": "7.1"})
    with pytest.raises(ArchiveError, match=r"written by cfmvc_scvi 7.1 in format 99.*reads formats up to 1: install"):
        read_archive(folder, "thing")
    edit(folder, format_version="new")
    with pytest.raises(ArchiveError, match="no valid `format_version`"):
        read_archive(folder, "thing")
    edit(folder, format="something else")
    with pytest.raises(ArchiveError, match="not a file that cfmvc_scvi has written"):
        read_archive(folder, "thing")
    (folder / "thing.json").write_text("[1, 2]")
    with pytest.raises(ArchiveError, match="not a file that cfmvc_scvi has written"):
        read_archive(folder, "thing")


def test_files_of_other_folders_are_not_read(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "w.safetensors"
    save_file({"a0": np.zeros(1)}, other)
    edit(folder, weights=str(other), files={str(other): archive.file_checksum(other)})
    with pytest.raises(ArchiveError, match="not in its own folder"):
        read_archive(folder, "thing")


def test_a_safetensors_file_that_is_none(folder):
    path = weights_file(folder)
    path.write_bytes(b"not safetensors")
    edit(folder, files={path.name: archive.file_checksum(path)})
    with pytest.raises(ArchiveError, match="not a safetensors file"):
        read_archive(folder, "thing")


def test_a_full_disk(folder, monkeypatch):
    def full(self, *args, **kwargs):
        with builtins.open(self, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(os.listdir(folder))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"Could not write the thing to .* the disk is full.*unchanged"):
            write_archive(folder, "thing", CONTENT | {"weights": np.ones(9)}, "the thing")
    assert sorted(os.listdir(folder)) == before and same_as_written(folder)
