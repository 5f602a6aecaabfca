"""What other methods are shown by the benchmark, and how they are scored: no cell that was left out, nothing lost."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

PEERS = Path(__file__).parents[2] / "benchmarks/peers"
pytestmark = pytest.mark.skipif(not PEERS.is_dir(), reason="benchmarks/ is not part of this distribution")
HELD_OUT = 9999.0


@pytest.fixture(scope="module")
def peers():
    places = [str(PEERS), str(PEERS.parent / "quality")]
    sys.path[:0] = places
    try:
        spec = importlib.util.spec_from_file_location("benchmarks_peers_run", PEERS / "run.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for place in places:
            sys.path.remove(place)
    return module


@pytest.fixture
def cells():
    """Three donors, control and treated; treated cells of donor c have a count that no other cell has."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"donor": np.repeat(["a", "b", "c"], 40), "condition": np.tile(["vehicle", "drug"], 60)})
    counts = rng.poisson(3.0, size=(120, 60)) + 4.0 * (obs["condition"] == "drug").to_numpy()[:, None] * (
        np.arange(60) < 10
    )
    counts[(obs["donor"] == "c") & (obs["condition"] == "drug"), 59] = HELD_OUT
    order = rng.permutation(120)
    adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs.set_index(obs.index.astype(str)))
    return adata[order].copy()


def tasks(peers, cells):
    setup = {"labels_key": "donor", "perturbation_key": "condition", "control_group": "vehicle"}
    return list(peers.suite.contexts(cells, "donor", ["c"], "drug", setup))


def test_a_fold_on_disk_holds_no_cell_that_was_left_out(peers, cells, tmp_path):
    (task,) = tasks(peers, cells)
    peers.write_fold(tmp_path / "fold", peers.to_fold([task]))
    fold = sys.modules["exchange"].read_fold(tmp_path / "fold")
    assert {path.name for path in (tmp_path / "fold").iterdir()} == {
        "counts.npz",
        "cells.csv",
        "genes.csv",
        "asked.json",
    }
    assert cells.X.max() == HELD_OUT
    assert fold.counts.max() < HELD_OUT
    groups = fold.cells.groupby(["context", "perturbation"]).size()
    assert ("c", "drug") not in groups.index
    assert len(fold.cells) == 100
    np.testing.assert_array_equal(fold.counts.toarray(), task.training.X.toarray())
    np.testing.assert_array_equal(fold.counts[fold.rows].toarray(), task.control.X.toarray())
    assert set(fold.cells["perturbation"].iloc[fold.rows]) == {"control"}
    assert fold.context == "c"
    assert fold.asked == {"c": "drug"}
    np.testing.assert_allclose(fold.lognorm(), peers.suite.expression(task.training, None), rtol=1e-5)


def test_a_combination_left_out_is_not_among_the_names(peers, tmp_path):
    rng = np.random.default_rng(0)
    names = np.repeat(["control", "A", "B", "C", "A+B", "A+C"], 25)
    obs = pd.DataFrame({"perturbation": names, "total": 500.0}, index=[f"cell {i}" for i in range(150)])
    cells = ad.AnnData(sp.csr_matrix(rng.poisson(3.0, size=(150, 8)).astype(np.float32)), obs=obs)
    found = list(peers.suite.pairs(cells, ["A+B", "A+C"], ["A+B", "A+C"], {}, "total", None))
    peers.write_fold(tmp_path, peers.to_fold(found))
    fold = sys.modules["exchange"].read_fold(tmp_path)
    assert set(fold.cells["perturbation"]) == {"control", "A", "B", "C"}
    assert fold.asked == {"A+B": "A+B", "A+C": "A+C"}
    assert set(fold.cells["library"]) == {500.0}
    assert len(fold.rows) == 25


RECIPE = """
import sys
sys.path.insert(0, {place!r})
from pathlib import Path
from exchange import Clock, read_fold, write_predictions
fold = read_fold(Path(sys.argv[1]))
if {fails}:
    raise NotImplementedError("not for donors")
y, drug = fold.lognorm(), (fold.cells["perturbation"] == "drug").to_numpy()
other = (fold.cells["context"] != fold.context).to_numpy()
shift = y[drug & other].mean(axis=0) - y[~drug & other].mean(axis=0)
clock = Clock(float(sys.argv[2]))
write_predictions(Path(sys.argv[1]), {{"peer's shift": {{"c": y[fold.rows] + shift}}}}, clock.report(["numpy"], ""))
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_peer_in_its_own_process_is_scored_as_here(peers, cells, tmp_path, monkeypatch, fails):
    (tmp_path / "recipe_own.py").write_text(RECIPE.format(place=str(PEERS), fails=fails))
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr(peers, "environment", lambda peer, envs: Path(sys.executable))
    monkeypatch.setattr(peers.suite, "TASKS", {"donors": lambda confirm, seed: iter(tasks(peers, cells))})
    options = argparse.Namespace(confirm=False, seed=0, folds=None, budget=1.0, envs=tmp_path)
    (row,) = [row for table in peers.rows("own", "donors", options) for _, row in table.iterrows()]
    assert (row["task"], row["condition"], row["peer"]) == ("donors", "c", "own")
    if fails:
        assert row["failed"] == "NotImplementedError: not for donors"
        return
    assert row["failed"] is None
    assert row["version"] == f"numpy {np.__version__}"
    assert row["peak MB"] > 1
    (task,) = tasks(peers, cells)
    pcs = peers.metrics.fit_pcs(peers.suite.expression(task.training, None), 50)
    # The shift over cells of both donors is that over donors here: each has as many cells.
    here = peers.suite.score(task, {}, pcs, 0).set_index("method").loc["shift"]
    for column in ("pearson_delta", "mse_mean", "energy_distance_pcs", "direction_accuracy"):
        assert row[column] == pytest.approx(here[column], rel=1e-4), column


def test_rows_of_a_new_run_take_the_place_of_the_old(peers):
    table = partial(pd.DataFrame, columns=["peer", "task", "condition", "method", "mse_mean"])
    old = table([("x", "t", "c", "m", 1.0), ("x", "t", "d", "m", 2.0), ("y", "t", "c", "m", 3.0)])
    new = table([("x", "t", "c", "m", 4.0), ("x", "t", "c", "m, other", 5.0)])
    assert sorted(peers.merged(old, new)["mse_mean"]) == [2.0, 3.0, 4.0, 5.0]
    assert len(peers.merged(pd.DataFrame(), new)) == 2


def test_a_training_ends_with_its_budget(peers):
    class Callback: ...

    class Trainer:
        should_stop = False

    clock = sys.modules["exchange"].Clock(budget=0.2)
    callback, trainer = clock.callback(Callback), Trainer()
    callback.on_train_epoch_end(trainer)
    assert not trainer.should_stop
    while not clock.over():
        sum(range(1000))
    callback.on_train_epoch_end(trainer)
    assert trainer.should_stop
    report = clock.report(["numpy"], "")
    assert (report["epochs"], report["budget spent"]) == (2, True)
    assert report["train cpu s"] > 0.2
