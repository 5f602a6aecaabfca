"""Which conditions to measure next."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

COLUMNS = ["perturbation", "labels", "support", "n_support", "sd", "sd_targets", "explained"]


@pytest.fixture(scope="module")
def pairs() -> list[str]:
    return ["P1+P2", "P1+P3", "P2+P3"]


def test_table(trained, pairs):
    plan = trained.suggest_experiments(pairs, n=4)
    assert plan.columns.tolist() == COLUMNS and len(plan) == 4
    assert not plan[["perturbation", "labels"]].duplicated().any()
    assert plan["sd_targets"].is_monotonic_decreasing and plan["sd_targets"].iloc[0] < plan.attrs["sd_targets"]
    np.testing.assert_allclose(plan["explained"], 1 - (plan["sd_targets"] / plan.attrs["sd_targets"]) ** 2)
    assert plan.attrs["n_targets"] == 6
    trained.predict_perturbation(perturbation=plan[["perturbation", "labels"]], return_type="latent")


def test_what_was_not_measured_is_chosen_before_what_was(trained, pairs):
    """The measured pair is known better than the two others, which share a member with it."""
    measured = next(p for p in trained.adata.obs["perturbation"].unique() if "+" in p)
    plan = trained.suggest_experiments(pairs, n=6, n_cells=50)
    assert plan["perturbation"].iloc[0] != measured and set(plan["support"]) == {"seen", "new combination"}
    known = plan["perturbation"] == measured
    assert plan["sd"][known].max() < plan["sd"][~known].min()


def test_sd_is_that_of_effects(trained):
    """The standard error of a measured perturbation is the one of its effect, but for the networks' disagreement."""
    plan = trained.suggest_experiments("P1", n=1, labels="type1", n_genes=60)
    error = trained.calibration_.effect_error(trained.vocabulary.parse("P1"), [0])
    variance, _ = error.averaged(np.ones(1))
    assert plan["sd"].item() == pytest.approx(np.sqrt(variance.mean()), rel=1e-5)


def test_more_cells_tell_more(trained, pairs):
    few, many = (trained.suggest_experiments(pairs, n=2, n_cells=n)["explained"].iloc[-1] for n in (5, 500))
    assert few < many


def test_targets_and_cell_types(trained, pairs):
    conditions = pd.DataFrame({"perturbation": pairs, "labels": "type2"})
    plan = trained.suggest_experiments(conditions, n=1, targets="P2+P3", labels="type1")
    assert plan["labels"].tolist() == ["type2"] and plan.attrs["n_targets"] == 1
    here = trained.suggest_experiments(pairs, n=1, targets="P2+P3", labels="type1")
    assert here["perturbation"].tolist() == ["P2+P3"] and here["explained"].item() > plan["explained"].item()


def test_new_perturbations_by_their_vectors(simulate, build, fit):
    adata = simulate(n_cells=500, n_perturbations=6, n_pairs=0)
    names = ["P4", "P5", "P6"]
    seen = adata[~adata.obs["perturbation"].isin(names)].copy()
    model = fit(build(seen, {"perturbation_embedding_key": "perturbation_embedding"}))
    plan = model.suggest_experiments(names, n=3, n_cells=60)
    assert set(plan["support"]) == {"new perturbation"} and (plan["n_support"] == 0).all()
    assert 0 < plan["explained"].iloc[0] < plan["explained"].iloc[-1] < 1


def test_samples_are_not_counted_in_cells(simulate, build, fit):
    adata = simulate(n_cells=400)
    adata.obs["donor"] = [f"d{i % 4}" for i in range(adata.n_obs)]
    model = fit(build(adata, {"sample_key": "donor", "combination_delimiter": "+"}))
    with pytest.raises(ValueError, match="leave `n_cells` out"):
        model.suggest_experiments("P1", n_cells=50)
    assert len(model.suggest_experiments(["P1", "P2+P3"], n=2)) == 2


def test_what_does_not_fit_is_refused(trained, monkeypatch):
    with pytest.raises(ValueError, match="Close matches"):
        trained.suggest_experiments("p11")
    with pytest.raises(ValueError, match="no condition but control"):
        trained.suggest_experiments("control")
    with pytest.raises(ValueError, match="`n` is 0"):
        trained.suggest_experiments("P1", n=0)
    with pytest.raises(ValueError, match="leave the column of batches out"):
        trained.suggest_experiments(pd.DataFrame({"perturbation": ["P1"], "batch": ["batch1"]}))
    monkeypatch.setattr("cfmvc_scvi.model.design._MOST_NUMBERS", 4 * 25)
    with pytest.raises(ValueError, match="pass `n_genes=25` or less"):
        trained.suggest_experiments("P1")
