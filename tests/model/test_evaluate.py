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


@pytest.fixture(scope="module")
def patients(simulate, build, fit):
    """A model of one cell type and three patients, one of them without perturbed cells; and that patient's."""
    adata = simulate(n_cells=400, n_perturbations=1, n_pairs=0, n_cell_types=1)
    adata.obs["donor"] = [f"d{i % 3}" for i in range(adata.n_obs)]
    held = ((adata.obs["donor"] == "d2") & (adata.obs["perturbation"] == "P1")).to_numpy()
    model = fit(build(adata[~held].copy(), {"sample_key": "donor"}), vae_max_epochs=1, flow_max_epochs=1)
    return model, adata[held].copy()


def test_a_patient_is_compared_with_controls_of_their_own(patients):
    model, real = patients
    table = model.evaluate(real)
    row = table.loc[(table.index[0][0], "CFMVC")]
    obs = model.adata.obs
    assert row["n_control"] == ((obs["donor"] == "d2") & (obs["perturbation"] == "control")).sum()
    assert (row["support"], row["support_place"], row["trained_on"]) == ("seen", "controls only", False)
    assert "mean shift" in table.index.get_level_values("method")  # of the other patients
    assert row["n_known"] == 0 and row["n_real"] == real.n_obs


def test_without_controls_of_their_own_those_of_others_are_taken(patients):
    model, real = patients
    other = real.copy()
    other.obs["donor"] = "d9"
    [held] = model._evaluated(other, 20, 0, False)[0]
    assert not held.own_controls and held.place == "unknown"
    assert len(held.control) == (model.adata.obs["perturbation"] == "control").sum()


def test_cells_that_were_trained_on_are_marked(patients):
    model, _ = patients
    known = model.adata[(model.adata.obs["perturbation"] == "P1").to_numpy()].copy()
    row = model.evaluate(known).iloc[0]
    assert row["trained_on"] and row["n_known"] == known.n_obs and row["support_place"] == "seen"


def _cp10k(adata) -> np.ndarray:
    x = adata.X.toarray()
    return x / x.sum(axis=1, keepdims=True) * 1e4


def test_untrained(simulated, build):
    with pytest.raises(RuntimeError, match="not trained"):
        build(simulated).evaluate(simulated)
