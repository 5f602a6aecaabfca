"""Grounds in a batch or sample: what was trained on there, beside controls or not."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi.prediction.places import PLACE_LEVELS, Places, trained_places

CONTROL, P1 = (), ("P1",)


@pytest.fixture
def places() -> Places:
    """Controls of type 0 in places 0 and 1, P1 of type 0 in places 0 and 2; in place 2 controls of type 1 alone."""
    populations = [(CONTROL, 0), (P1, 0), (CONTROL, 1)]
    return Places.of(populations, np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 2, 2]))


def test_grounds(places):
    found = places.grounds(P1, np.array([0, 0, 0, 0, 0, 1, -1]), np.array([0, 1, 2, 3, -1, 2, 0]))
    expected = ["seen", "controls only", "no controls", "unknown", "unknown", "controls only", "no controls"]
    assert found.tolist() == expected and found.categories.tolist() == list(PLACE_LEVELS)
    assert places.grounds(CONTROL, np.array([0, 0]), np.array([0, 2])).tolist() == ["seen", "no controls"]
    assert places.grounds(P1, np.array([], dtype=int), np.array([], dtype=int)).tolist() == []


def test_where(places):
    assert places.where(P1, [0]) == [0] and places.where(P1, [1]) == [] and places.where(CONTROL, [0, 1]) == [0, 1, 2]


def test_places_of_training_are_those_of_its_cells(trained):
    noted = trained_places(trained._latents(), trained._split.train)
    obs = trained.adata.obs.iloc[trained.train_indices].astype(str)
    assert len(noted["pair"]) == len(obs[["perturbation", "cell_type", "batch"]].drop_duplicates())
    assert (noted["sample"] == -1).all()
    assert all((noted[name] == trained.trained_places_[name]).all() for name in noted)


@pytest.fixture(scope="module")
def donors(simulate, build, fit):
    """Four donors in two batches; P1 was given to the first two donors, in the first batch alone."""
    adata = simulate(n_cells=400, n_pairs=0)
    donor = np.arange(adata.n_obs) % 4
    adata.obs["donor"] = [f"d{i}" for i in donor]
    adata.obs["batch"] = np.where(donor < 2, "first", "second")
    keep = (adata.obs["perturbation"] != "P1").to_numpy() | (donor < 2)
    return fit(build(adata[keep].copy(), {"sample_key": "donor"}), vae_max_epochs=1, flow_max_epochs=1)


def test_answers_know_batch_and_donor(donors):
    control = (donors.adata.obs["perturbation"] == "control").to_numpy()
    cells = donors.adata[control].copy()
    cells.obs["donor"] = cells.obs["donor"].astype(str)
    cells.obs.iloc[:5, cells.obs.columns.get_loc("donor")] = "new"
    obs = donors.predict_perturbation(cells, "P1").obs
    first = (obs["batch"] == "first").to_numpy()
    assert set(obs["support"]) == {"seen"}
    assert set(obs["support_batch"][first]) == {"seen"} and set(obs["support_batch"][~first]) == {"controls only"}
    told = pd.crosstab(obs["donor"], obs["support_sample"])
    assert told.loc["new"].to_dict() == {"seen": 0, "controls only": 0, "unknown": 5}
    assert not told.loc[["d0", "d1"], ["controls only", "unknown"]].to_numpy().any()
    assert not told.loc[["d2", "d3"], ["seen", "unknown"]].to_numpy().any()
    moved = donors.predict_perturbation(cells, "P1", batch="second").obs
    assert set(moved["support_batch"]) == {"controls only"}
    assert "support_sample" not in donors.predict_perturbation(_without(cells, "donor"), "P1").obs


def _without(cells, name):
    cells = cells.copy()
    del cells.obs[name]
    return cells


def test_effects_and_the_table_know_them(donors):
    measured = donors.get_perturbation_effect("P1").attrs["measured_in"]
    assert measured == {"batch": ["first"], "sample": ["d0", "d1"]}
    table = donors.support()
    assert set(table.loc[table["perturbation"] == "P1", "sample"]) == {"d0", "d1"}


@pytest.mark.slow
def test_a_batch_without_controls_of_the_type_is_warned_of(simulate, build, fit):
    adata = simulate(n_pairs=0)
    obs = adata.obs
    lacking = (obs["batch"] == "batch2") & (obs["cell_type"] == "type2") & (obs["perturbation"] == "control")
    model = fit(build(adata[~lacking.to_numpy()].copy()), vae_max_epochs=1, flow_max_epochs=1)
    n = int(((model.adata.obs["perturbation"] == "control") & (model.adata.obs["cell_type"] == "type2")).sum())
    with pytest.warns(UserWarning, match=rf"{n} of \d+ predicted cells are in a batch in which no control cell"):
        found = model.predict_perturbation(perturbation="P1", batch="batch2").obs
    assert set(found["support_batch"][found["cell_type"] == "type2"]) == {"no controls"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict_perturbation(perturbation="P1")


def test_models_without_the_record_say_nothing_of_places(trained, monkeypatch):
    monkeypatch.setattr(trained, "trained_places_", None)
    assert "support_batch" not in trained.predict_perturbation(perturbation="P1").obs
