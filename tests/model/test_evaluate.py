"""Held-out cells scored by the model, as a table."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi import metrics


@pytest.fixture(scope="module")
def real(simulate):
    """Cells of the same simulated screen that the model has not seen."""
    adata = simulate(n_cells=500)
    adata.obs_names = [f"new_{name}" for name in adata.obs_names]
    chosen = (adata.obs["cell_type"] == "type1") & adata.obs["perturbation"].isin(["P1", "P2"])
    return adata[chosen.to_numpy()].copy()


def test_scores_verdict_and_what_was_left_out(trained, real):
    few = np.r_[
        np.flatnonzero((real.obs["perturbation"] == "P1").to_numpy()),
        np.flatnonzero((real.obs["perturbation"] == "P2").to_numpy())[:3],
    ]
    table = trained.evaluate(real[few].copy(), n_de=20)
    assert table.index.names == ["condition", "method"]
    row = table.loc[("P1 in type1", "CFMVC")]
    cells = real[(real.obs["perturbation"] == "P1").to_numpy()].copy()
    adata = trained.adata
    here = (adata.obs["cell_type"] == "type1") & (adata.obs["perturbation"] == "control")
    predicted = trained.predict_perturbation(adata[here.to_numpy()].copy(), "P1", return_type="lognorm").X
    assert row["mse_mean"] == pytest.approx(metrics.mse_mean(predicted, np.log1p(_cp10k(cells))), rel=1e-3)
    assert row["verdict"] in ("ahead", "mixed", "behind") and 0 <= row["coverage"] <= 1
    assert row["n_real"] == cells.n_obs and row["support"] == "seen"
    assert table.loc[("P1 in type1", "no change"), "verdict"] is np.nan
    assert len(table.attrs["skipped"]) == 1 and table.attrs["skipped"][0].startswith("P2 in type1: 3 real")


def _cp10k(adata) -> np.ndarray:
    x = adata.X.toarray()
    return x / x.sum(axis=1, keepdims=True) * 1e4


def test_untrained(simulated, build):
    with pytest.raises(RuntimeError, match="not trained"):
        build(simulated).evaluate(simulated)
