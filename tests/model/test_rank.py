"""Which perturbation brings cells nearest to others."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scvi import settings

COLUMNS = ["perturbation", "rank", "support", "n_support", "mean_distance", "cosine", "rank_mean"]
BY_CELLS = ["energy_genes", "energy_latent", "lower", "upper", "probability_best", "effect_sd"]


@pytest.fixture(scope="module")
def fresh(simulate):
    """New cells of the screen that the trained model saw, under names of their own."""
    settings.seed = 0
    adata = simulate(n_cells=1600)
    adata.obs_names = [f"new{i}" for i in range(adata.n_obs)]
    return adata


def under(adata, perturbation):
    return adata[(adata.obs["perturbation"] == perturbation).to_numpy()].copy()


@pytest.mark.parametrize("truth", ["P1", "P2", "P3", "P1+P3"])
def test_the_perturbation_of_new_cells_is_found(trained, fresh, truth):
    label = truth if truth in set(fresh.obs["perturbation"]) else next(p for p in fresh.obs["perturbation"] if "+" in p)
    table = trained.rank_perturbations(target=under(fresh, label), n_resamples=50)
    assert table["perturbation"].iloc[0] == label and table["rank"].tolist() == list(range(1, len(table) + 1))
    before = table.set_index("perturbation")["energy_genes"]
    assert before[label] < 0.5 * before["control"]
    assert table["probability_best"].sum() == pytest.approx(1.0) and table["probability_best"].iloc[0] > 0.5


def test_table(trained, fresh):
    table = trained.rank_perturbations(target=under(fresh, "P2"), n_best=2, n_resamples=20, n_genes=10)
    assert table.columns.tolist() == [*COLUMNS, *BY_CELLS]
    compared = table["energy_genes"].notna()
    assert compared.sum() == 3 and compared.iloc[:3].all()  # two candidates and control stand first
    assert (table["lower"] <= table["upper"])[compared].all()
    assert table["energy_genes"][compared].is_monotonic_increasing
    assert table["mean_distance"][~compared].is_monotonic_increasing
    control = table[table["perturbation"] == "control"].iloc[0]
    assert control["effect_sd"] == 0 and np.isnan(control["cosine"]) and control["support"] == "seen"
    assert len(table.attrs["genes"]) == 10 and table.attrs["n_target_trained"] == 0
    again = trained.rank_perturbations(target=under(fresh, "P2"), n_best=2, n_resamples=20, n_genes=10)
    pd.testing.assert_frame_equal(table, again)


def test_mean_profile_is_ranked_by_mean_effects(trained, fresh):
    cells = under(fresh, "P3")
    level = np.log1p(cells.X.toarray() / np.asarray(cells.X.sum(axis=1)) * 1e4).mean(axis=0)
    shuffled = pd.Series(level, index=cells.var_names).sample(frac=1, random_state=0)
    table = trained.rank_perturbations(target=shuffled)
    assert table.columns.tolist() == COLUMNS and table["perturbation"].iloc[0] == "P3"
    assert (table["rank"] == table["rank_mean"]).all() and table.attrs["n_target"] == 0
    pd.testing.assert_frame_equal(table, trained.rank_perturbations(target=level))


def test_distance_of_means_is_that_of_the_effect(trained, fresh):
    kind = "type1"
    controls = under(fresh, "control")[(under(fresh, "control").obs["cell_type"] == kind).to_numpy()].copy()
    target = under(fresh, "P1")
    table = trained.rank_perturbations(controls, target, labels=kind, perturbations="P1", n_resamples=2)
    target = target[(target.obs["cell_type"] == kind).to_numpy()]

    def level(cells):
        return np.log1p(cells.X.toarray() / np.asarray(cells.X.sum(axis=1)) * 1e4).mean(axis=0)

    wanted = level(target) - level(controls)
    effect = trained.get_perturbation_effect("P1", kind)
    row = table.set_index("perturbation").loc["P1"]
    change = effect["log_fold_change"].to_numpy()
    assert row["mean_distance"] == pytest.approx(np.sqrt(np.mean((change - wanted) ** 2)), rel=1e-4)
    assert row["cosine"] == pytest.approx(change @ wanted / np.linalg.norm(change) / np.linalg.norm(wanted), rel=1e-4)
    genes = table.attrs["genes"]
    assert row["effect_sd"] == pytest.approx(np.sqrt((effect.loc[genes, "sd"] ** 2).mean()), rel=1e-4)


def test_pairs_are_candidates(trained, fresh):
    table = trained.rank_perturbations(target=under(fresh, "P1"), pairs=True, n_best=1, n_resamples=2)
    assert len(table) == 1 + 3 + 3 and set(table["support"]) == {"seen", "new combination"}
    given = trained.rank_perturbations(
        target=under(fresh, "P1"), perturbations=["P1", "P2", "P2"], pairs=True, n_best=1, n_resamples=2
    )
    assert sorted(given["perturbation"]) == ["P1", "P1+P2", "P2", "control"]


def test_doses_are_candidates(simulate, build, fit):
    adata = simulate(n_cells=900, n_perturbations=2, n_pairs=0, effect_size=1.5, doses=[0.1, 10.0])
    model = fit(build(adata, {"dosage_key": "dosage", "combination_delimiter": "+"}))
    cells = adata[((adata.obs["perturbation"] == "P1") & (adata.obs["dosage"] == 10.0)).to_numpy()]
    with pytest.warns(UserWarning, match="target cells were trained on"):
        table = model.rank_perturbations(target=cells.copy(), n_resamples=2)
    of_p1 = table[table["perturbation"] == "P1"]
    assert of_p1["dosage"].tolist() == [10.0, 0.1] and len(table) == 5
    assert table.attrs["n_target_trained"] > 0
    with pytest.raises(ValueError, match="a dose for each member"):
        model.rank_perturbations(target=cells.copy(), pairs=True)


def test_candidates_that_do_not_fit_are_refused(trained, fresh):
    cells = under(fresh, "P1")
    with pytest.raises(ValueError, match="Close matches"):
        trained.rank_perturbations(target=cells, perturbations="p11")
    with pytest.raises(ValueError, match="Candidates are conditions alone"):
        trained.rank_perturbations(
            target=cells, perturbations=pd.DataFrame({"perturbation": ["P1"], "labels": ["type1"]})
        )
    with pytest.raises(ValueError, match="no candidate but control"):
        trained.rank_perturbations(target=cells, perturbations="control")
    with pytest.raises(ValueError, match="`n_best` is 0"):
        trained.rank_perturbations(target=cells, n_best=0)


def test_equals_share_the_probability(simulate, build, fit):
    """Perturbations with one vector cannot be told apart."""
    adata = simulate(n_cells=400, n_pairs=0)
    vectors = adata.uns["perturbation_embedding"].copy()
    vectors.loc["P2"] = vectors.loc["P1"]
    adata.uns["vectors"] = vectors
    model = fit(build(adata, {"perturbation_embedding_key": "vectors"}))
    cells = under(adata, "P1")
    with pytest.warns(UserWarning, match="target cells were trained on"):
        table = model.rank_perturbations(target=cells, perturbations=["P1", "P2"], n_resamples=50)
    chance = table.set_index("perturbation")["probability_best"]
    assert chance["P1"] == chance["P2"] > 0 and chance.sum() == pytest.approx(1.0)
