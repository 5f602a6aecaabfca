"""Effects as they were measured, by hand; and as vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi import data


@pytest.fixture
def cells() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(["ctrl"] * 20 + ["A"] * 15 + ["B"] * 12 + ["few"] * 3),
            "kind": ["x", "y"] * 25,
            "total": rng.integers(50, 99, size=50),
        },
        index=[f"c{i}" for i in range(50)],
    )
    return AnnData(rng.poisson(3.0, size=(50, 7)).astype(np.float32), obs)


def lognorm(cells, library=None):
    total = cells.X.sum(axis=1) if library is None else library
    return np.log1p(cells.X.astype(float) / np.asarray(total)[:, None] * 1e4)


def test_by_hand(cells):
    table, y = data.mean_effects(cells), lognorm(cells)
    assert table.index.tolist() == ["A", "B"] and table.attrs == {"n_cells": {"A": 15, "B": 12}, "left_out": ["few"]}
    np.testing.assert_allclose(
        table, [y[20:35].mean(0) - y[:20].mean(0), y[35:47].mean(0) - y[:20].mean(0)], rtol=1e-4, atol=1e-5
    )
    other = AnnData(np.zeros((50, 7)), cells.obs, layers={"counts": sparse.csr_matrix(cells.X)})
    pd.testing.assert_frame_equal(data.mean_effects(other, layer="counts"), table, rtol=1e-4, atol=1e-5)
    panel = lognorm(cells, cells.obs["total"])
    sized = data.mean_effects(cells, size_factor_key="total", min_cells=1)
    np.testing.assert_allclose(sized.loc["few"], panel[47:].mean(0) - panel[:20].mean(0), rtol=1e-4, atol=1e-5)


def test_within_levels(cells):
    cells.obs["kind"] = ["x"] * 25 + ["y"] * 25
    cells.obs.iloc[:4, cells.obs.columns.get_loc("kind")] = "y"
    y, label, kind = lognorm(cells), cells.obs["perturbation"].to_numpy(), cells.obs["kind"].to_numpy()
    table = data.mean_effects(cells, within="kind")
    expected = np.zeros(7)
    for level in "xy":
        here = (kind == level) & (label == "A")
        expected += here.sum() * (y[here].mean(0) - y[(kind == level) & (label == "ctrl")].mean(0)) / 15
    np.testing.assert_allclose(table.loc["A"], expected, rtol=1e-4, atol=1e-5)
    cells.obs.iloc[:4, cells.obs.columns.get_loc("kind")] = "x"  # no controls in y, where all B and most A are
    with pytest.raises(ValueError, match="No perturbation of .* has 10 cells where there are control cells"):
        data.mean_effects(cells, within="kind")


def test_refuses(cells):
    with pytest.raises(KeyError, match=r"no column 'perturbatio'. Close matches: \['perturbation'\]"):
        data.mean_effects(cells, "perturbatio")
    with pytest.raises(ValueError, match="Which perturbation is the control"):
        data.mean_effects(cells, "kind")


def test_effects_of_another_screen_as_vectors():
    """A second screen of the same perturbations says nearly all of the first; shuffled it says nothing."""
    rng = np.random.default_rng(0)
    names = [f"P{i}" for i in range(25)]
    truth = 0.5 * rng.normal(size=(25, 4)) @ rng.normal(size=(4, 80))
    here, there = (pd.DataFrame(truth + 0.3 * rng.normal(size=truth.shape), index=names) for _ in range(2))
    vectors = data.effect_vectors(there, n_components=10)
    assert vectors.shape == (25, 10) and vectors.to_numpy().dtype == np.float32
    whole = data.effect_vectors(there, n_components=99)
    np.testing.assert_allclose(whole @ whole.T, there @ there.T / 80, atol=1e-4)
    assert data.vector_evidence(vectors, here).attrs["explained"] > 0.6
    with pytest.raises(ValueError, match="finite values"):
        data.effect_vectors(here * np.nan)
