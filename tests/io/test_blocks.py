"""Blocks that are there whole or not at all, of one request alone."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from cfmvc_scvi.io.blocks import BlockFolder, OtherRequestError, refuse_other

IDENTITY = {"model": "a1", "seed": "0"}
PIECES = [
    {"x": np.arange(6.0).reshape(2, 3), "n": np.array([1, 2], dtype=np.int32)},
    {"x": np.full((1, 3), np.nan, dtype=np.float32), "n": np.array([3], dtype=np.int32)},
]


@pytest.fixture
def folder(tmp_path):
    return BlockFolder.open(tmp_path / "parts", 3, IDENTITY)


def test_pieces_come_back_to_the_bit(folder):
    folder.write(1, iter(PIECES), "a block")
    found = list(folder.read(1))
    assert len(found) == 2 and [list(piece) for piece in found] == [["x", "n"]] * 2
    for piece, expected in zip(found, PIECES, strict=True):
        for name, values in expected.items():
            assert piece[name].dtype == values.dtype
            np.testing.assert_array_equal(piece[name], values)
    assert folder.missing() == [0, 2]


def test_a_block_is_not_there_before_its_last_piece(folder):
    def interrupted():
        yield PIECES[0]
        assert folder.missing() == [0, 1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write(0, interrupted(), "a block")
    assert folder.missing() == [0, 1, 2] and not [name for name in os.listdir(folder.path) if "partial" in name]


def test_a_block_written_by_two_at_once_is_whole(folder):
    """The same block, begun by a second process before the first one is through."""

    def slow():
        yield PIECES[0]
        folder.write(0, PIECES, "a block")
        yield PIECES[1]

    folder.write(0, slow(), "a block")
    assert len(list(folder.read(0))) == 2 and folder.missing() == [1, 2]


def test_the_folder_is_found_again_by_the_same_request(folder):
    folder.write(2, PIECES, "a block")
    again = BlockFolder.open(folder.path, 3, dict(reversed(IDENTITY.items())))
    assert again.missing() == [0, 1]
    again.remove()
    assert not folder.path.exists() and folder.missing() == [0, 1, 2]


def test_another_request_is_refused_with_what_differs(folder):
    message = r"parts' belongs to another request: seed is 0, asked for is 1; level is not there, asked for is 0\.9\."
    with pytest.raises(OtherRequestError, match=message):
        BlockFolder.open(folder.path, 3, {"model": "a1", "seed": "1", "level": "0.9"})
    with pytest.raises(OtherRequestError, match=r"seed is 0, asked for is none"):
        refuse_other(IDENTITY, {"model": "a1"}, folder.path)
    assert json.loads((folder.path / "request.json").read_text()) == IDENTITY


@pytest.mark.parametrize("cut", [1, 100, 200])
def test_a_damaged_block_is_named(folder, cut):
    folder.write(0, PIECES, "a block")
    [path] = folder.path.glob("*.block")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(OSError, match=r"0000000\.block' is damaged .*: remove this file and make the call again"):
        list(folder.read(0))


def test_a_damaged_note_is_named(folder):
    (folder.path / "request.json").write_text("{")
    with pytest.raises(OSError, match=r"request\.json' is damaged: remove its folder"):
        BlockFolder.open(folder.path, 3, IDENTITY)


def test_one_process_at_a_time_is_alone(folder):
    fcntl = pytest.importorskip("fcntl")
    with folder.alone(), open(folder.path / "lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with folder.alone():
        pass
