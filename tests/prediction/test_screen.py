"""Results made block by block: resumed, shared, brought together; without a model."""

from __future__ import annotations

import logging
import os
import shutil
from collections import namedtuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfmvc_scvi.io.blocks import BlockFolder, OtherRequestError
from cfmvc_scvi.prediction.output import make_output
from cfmvc_scvi.prediction.screen import Screen, checked_shard, in_chunks

N, GENES = 6, 4
Usage = namedtuple("Usage", "total used free")


class Killed(BaseException):
    """Ends a call where a signal would."""


class Counted:
    """Rows of a block, which fails when it has given so many blocks; remembers which it gave."""

    def __init__(self, most: int = N, is_sparse: bool = False) -> None:
        self.most, self.given, self.is_sparse = most, [], is_sparse

    def __call__(self, block: int):
        rng = np.random.default_rng(block)
        for piece in range(2):
            if len(self.given) == self.most and piece:
                raise Killed
            x = rng.poisson(1.0, (3, GENES)).astype(np.float32)
            latent = rng.normal(size=(3, 2)).astype(np.float32)
            yield (sparse.csr_matrix(x) if self.is_sparse else x), latent, {"sd": rng.normal(size=(3, GENES))}
        self.given.append(block)


def screen(predict=None, **changes) -> Screen[int]:
    predict = predict or Counted()
    identity = {"model": "m"} | changes

    def output(path):
        obs = pd.DataFrame({"block": np.repeat(np.arange(N), 6)}, index=[f"r{i}" for i in range(6 * N)])
        var = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
        uns = {"cfmvc": {"identity": identity}}
        return make_output(path, obs=obs, var=var, uns=uns, n_latent=2, is_sparse=predict.is_sparse, layers=["sd"])

    return Screen(list(range(N)), predict, output, identity, (6 * N, GENES), 10_000)


def run(made: Screen, out, shard=None):
    return made.run(out, shard, show_progress=False)


def read(path):
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def content(path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_the_whole_is_that_in_memory(tmp_path, ending, is_sparse):
    expected = run(screen(Counted(is_sparse=is_sparse)), None)
    opened = run(screen(Counted(is_sparse=is_sparse)), tmp_path / f"screen{ending}")
    assert opened.shape == (36, 4) and not isinstance(opened.X, (np.ndarray, sparse.csr_matrix))
    found = read(tmp_path / f"screen{ending}")
    assert sparse.issparse(found.X) == is_sparse
    assert np.array_equal(*(x.toarray() if is_sparse else x for x in (found.X, expected.X)))
    assert np.array_equal(found.layers["sd"], expected.layers["sd"])
    assert np.array_equal(found.obsm["X_cfmvc"], expected.obsm["X_cfmvc"]) and found.obs.equals(expected.obs)
    assert os.listdir(tmp_path) == [f"screen{ending}"]


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
@pytest.mark.parametrize("at", [0, 3, N - 1])
def test_what_was_interrupted_goes_on_and_is_the_same_to_the_byte(tmp_path, ending, at):
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"screen{ending}"
    run(screen(), whole)
    with pytest.raises(Killed):
        run(screen(Counted(at)), out)
    assert not out.exists()
    rest = Counted()
    run(screen(rest), out)
    assert rest.given == list(range(at, N)) and content(out) == content(whole)


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_a_kill_while_it_is_brought_together_costs_no_block(tmp_path, ending, monkeypatch):
    whole, out = tmp_path / f"whole{ending}", tmp_path / f"screen{ending}"
    run(screen(), whole)
    read_block = BlockFolder.read

    def killed(self, number):
        if number == 2:
            raise Killed
        return read_block(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(BlockFolder, "read", killed)
        patch.setattr("cfmvc_scvi.prediction.output.remove", lambda path: None)  # as if nothing could run after it
        with pytest.raises(Killed):
            run(screen(), out)
    assert any(name.endswith(".partial") for name in os.listdir(tmp_path))
    rest = Counted()
    run(screen(rest), out)
    assert rest.given == [] and content(out) == content(whole)
    assert sorted(os.listdir(tmp_path)) == sorted([whole.name, out.name])


def test_shards_share_the_blocks_and_the_last_brings_them_together(tmp_path, caplog):
    out, parts = tmp_path / "screen.zarr", [Counted(), Counted()]
    with caplog.at_level(logging.INFO, logger="scvi.cfmvc"):
        assert run(screen(parts[1]), out, (1, 2)) is None and not out.exists()
    assert "36 rows x 4 columns in 6 blocks, of which 0 are there already: about 0.00 GB" in caplog.text
    assert "3 of 6 blocks of" in caplog.text and "are left to other shards" in caplog.text
    assert run(screen(parts[0]), out, (0, 2)).shape == (36, 4)
    assert [part.given for part in parts] == [[0, 2, 4], [1, 3, 5]]
    run(screen(), tmp_path / "whole.zarr")
    assert content(out) == content(tmp_path / "whole.zarr")


def test_a_shard_that_comes_after_the_end_finds_the_whole(tmp_path):
    out = tmp_path / "screen.h5ad"

    class Overtaken(Counted):
        def __call__(self, block):
            if not out.exists():
                run(screen(), out)
            return super().__call__(block)

    assert run(screen(Overtaken()), out, (0, 2)).shape == (36, 4)
    assert os.listdir(tmp_path) == [out.name]


def test_blocks_removed_by_a_faster_process_are_no_error(tmp_path, monkeypatch):
    out = tmp_path / "screen.zarr"
    alone = BlockFolder.alone

    def overtaken(self):
        monkeypatch.setattr(BlockFolder, "alone", alone)
        run(screen(), out)
        return alone(self)

    monkeypatch.setattr(BlockFolder, "alone", overtaken)
    assert run(screen(), out).shape == (36, 4)
    assert os.listdir(tmp_path) == [out.name]


def test_a_finished_screen_is_opened_and_not_predicted_again(tmp_path):
    out, nothing = tmp_path / "screen.h5ad", Counted(0)
    run(screen(), out)
    assert run(screen(nothing), out).shape == (36, 4) and nothing.given == []


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_another_request_is_refused(tmp_path, ending):
    out = tmp_path / f"screen{ending}"
    with pytest.raises(Killed):
        run(screen(Counted(2)), out)
    with pytest.raises(OtherRequestError, match=r"parts' belongs to another request: model is m, asked for is n\. Ask"):
        run(screen(model="n"), out)
    run(screen(), out)
    with pytest.raises(OtherRequestError, match=rf"screen\{ending}' belongs to another request: seed is not there"):
        run(screen(seed="1"), out)


@pytest.mark.parametrize("ending", [".zarr", ".h5ad"])
def test_something_else_is_refused(tmp_path, ending):
    out = tmp_path / f"screen{ending}"
    other = ad.AnnData(np.ones((2, 2), dtype=np.float32))
    other.write_zarr(out) if ending == ".zarr" else other.write_h5ad(out)
    with pytest.raises(FileExistsError, match="that is no screen: remove it or choose another name"):
        run(screen(), out)
    shutil.rmtree(out) if out.is_dir() else out.write_text("text")
    if ending == ".h5ad":
        with pytest.raises(FileExistsError, match="that is no screen"):
            run(screen(), out)


def test_space_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 19_999))
    with pytest.raises(OSError, match="Could not write the screen to .*the disk is full"):
        run(screen(), tmp_path / "screen.zarr")
    assert os.listdir(tmp_path) == []


def test_wrong_paths_and_shards_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of \['.h5ad', '.zarr'\]"):
        run(screen(), tmp_path / "screen.csv")
    with pytest.raises(FileNotFoundError, match="Make it first"):
        run(screen(), tmp_path / "no" / "screen.zarr")
    with pytest.raises(ValueError, match="`shard` is for parts of one file"):
        run(screen(), None, (0, 2))
    for shard in (1, (0,), (0, 1.0), ("0", "2"), (True, 2)):
        with pytest.raises(ValueError, match="must be two whole numbers"):
            checked_shard(shard)
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=r"`shard` is \("):
            checked_shard(shard)
    assert checked_shard(None) == (0, 1) and checked_shard([np.int64(3), 4]) == (3, 4)


def test_chunks_are_consecutive():
    assert [list(chunk) for chunk in in_chunks(range(5), 2)] == [[0, 1], [2, 3], [4]]
