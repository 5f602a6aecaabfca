"""One entry for each metric: everything that the package does with a metric is read from it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from cfmvc_scvi import metrics, pl
from cfmvc_scvi.metrics import METRICS, Metric, evaluate

GUIDE = Path(__file__).parents[2] / "docs/user_guide/evaluation.md"


def draw(n, shift, seed):
    rng = np.random.default_rng(seed)
    effect = np.random.default_rng(99).normal(0, 1, 20)
    return metrics.log1p_cp10k(rng.poisson(5 * np.exp(shift * effect), (n, 20)))


@pytest.fixture
def task():
    training = {"B": (draw(30, 0, 3), draw(40, 0.3, 4)), "NK": (draw(25, 0, 5), draw(30, 0.5, 6))}
    return {"truth": draw(60, 0.6, 1), "control": draw(50, 0, 2), "training": training, "top_n": 5, "pcs": 3}


@pytest.fixture
def register(monkeypatch):
    """Function that adds a metric for one test."""
    return lambda name, metric: monkeypatch.setitem(METRICS, name, metric)


def median_error(pred, truth, task):
    mean = pred if pred.ndim == 1 else pred.mean(axis=0)
    return float(np.median(np.abs(mean - truth.mean(axis=0))))


def test_one_entry_is_all_that_a_new_metric_needs(task, register):
    register("median_error", Metric(function=median_error, better="lower", title="median error of the means"))
    pred = draw(55, 0.55, 9)
    table = evaluate({"cells": pred, "mean": pred.mean(axis=0)}, **task)
    raw, scaled = table["raw"]["median_error"], table["scaled"]["median_error"]
    assert list(table["raw"])[-1] == "median_error"
    assert raw["cells"] == raw["mean"] == pytest.approx(median_error(pred, task["truth"], None))
    assert raw["split-half ceiling"] < raw["mean shift"]
    assert scaled["mean shift"] == 0 and scaled["split-half ceiling"] == 1
    drawn = pl.benchmark(table, show=False)
    assert drawn.get_xticklabels()[-1].get_text() == "median error ↓"
    plt.close(drawn.figure)
    assert list(evaluate(pred, **task, metrics=["median_error"])["raw"]) == ["median_error"]


def test_what_a_metric_needs_decides_where_it_is_taken(task, register):
    def spread(pred, truth, task):
        assert task.centroid is not None and task.projection is not None and task.populations
        return float(pred.std() / truth.std())

    needs = frozenset({"cells", "training", "pcs"})
    register("spread", Metric(function=spread, better="one", title="ratio of the spreads", needs=needs))
    pred = draw(55, 0.55, 9)
    table = evaluate({"cells": pred, "mean": pred.mean(axis=0)}, **task)
    assert np.isnan(table["raw"].loc["mean", "spread"]) and table["raw"].loc["cells", "spread"] > 0
    assert "spread" not in evaluate(pred, **(task | {"pcs": None}))["raw"]
    with pytest.raises(ValueError, match="'spread' needs `pcs` and `training`"):
        evaluate(pred, **(task | {"training": None}), metrics=["spread"])


@pytest.mark.parametrize(("better", "arrow", "sign"), [("higher", "↑", 1), ("lower", "↓", -1), ("one", "→ 1", -1)])
def test_directions(better, arrow, sign):
    metric = Metric(function=median_error, better=better, title="a metric")
    assert (metric.arrow, metric.sign) == (arrow, sign)
    values = np.array([0.5, 1.0, 2.0])
    expected = np.log(2) * np.array([1, 0, 1]) if better == "one" else values
    np.testing.assert_allclose(metric.comparable(values), expected)


def test_the_truth_is_the_best_prediction_in_the_stated_direction(task):
    """Held against the real cells themselves, every metric improves from no change in the direction it states."""
    table = evaluate({"truth": task["truth"]}, **task)["raw"]
    for name, metric in METRICS.items():
        best, worse = (metric.comparable(table.loc[row, name]) for row in ("truth", "no change"))
        assert metric.sign * (best - worse) > 0, name


@pytest.mark.skipif(not GUIDE.is_file(), reason="docs/ is not part of this distribution")
def test_the_guide_defines_every_metric_with_its_direction():
    rows = re.findall(r"^\| `(\w+)` \|.*\|\s*(\w*)\s*\|$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stated = {name: better or "one" for name, better in rows}
    for name, metric in METRICS.items():
        stem = name if name in stated else name.removesuffix("_top").removesuffix("_pcs")
        assert stated.get(stem) == metric.better, name
