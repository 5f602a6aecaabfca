"""Contexts: controls matched to their perturbed cells, unknown cell types, covariates, the distance of support."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.cells.nearest import UNKNOWN, with_nearest_labels
from cfmvc_scvi.cells.strata import MIN_CONTROLS, imbalance, matched_strata, strata

SHORT = {"vae_max_epochs": 1, "flow_max_epochs": 2}


# ---- matched controls --------------------------------------------------------------------


def test_strata_are_batch_and_covariates_without_the_cell_type():
    categorical = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
    code = strata(FlowContext(categorical[:, 0], categorical[:, 1], categorical[:, 2:]))
    assert code[0] == code[1] and len(set(code)) == 3


def test_imbalance_is_the_total_variation_distance():
    assert imbalance(np.array([0, 1, 1]), np.array([0, 1, 1, 0, 1, 1])) == 0.0
    assert imbalance(np.array([0, 0]), np.array([1, 1])) == 1.0
    assert imbalance(np.array([0, 0, 0, 1]), np.array([0, 1])) == pytest.approx(0.25)


def test_matched_where_unbalanced_and_where_there_are_controls():
    control = np.repeat([0, 1, 2], [40, 40, 3])
    assert matched_strata(np.repeat([0, 1], [20, 25]), control) == {}
    code = np.repeat([0, 1, 2], [60, 5, 10])
    found = matched_strata(code, control)
    assert set(found) == {0, 1}  # three controls are too few
    np.testing.assert_array_equal(found[0], code == 0)
    assert matched_strata(code, np.array([], dtype=int)) == {}


def test_effects_are_measured_against_the_controls_of_the_same_batch(simulate, build):
    """One perturbation in one batch only, where the controls are far from those of the other batch."""
    adata = simulate(n_cells=2000, n_batches=2, confounding=1.0, batch_effect=1.5, n_pairs=0, seed=4)
    model = build(adata, {"size_factor_key": "library_size"})
    cache = _cache(model)
    populations = Populations.of(cache, np.arange(adata.n_obs), len(model.cell_types))
    y = np.log1p(adata.X.toarray() / adata.obs["library_size"].to_numpy()[:, None] * 1e4)
    obs = adata.obs
    for i in range(len(populations)):
        name = cache.conditions[populations.condition[i]].label
        label = model.cell_types[populations.label[i]]
        mine = ((obs["perturbation"] == name) & (obs["cell_type"] == label)).to_numpy()
        [batch] = obs["batch"][mine].unique()
        own = ((obs["perturbation"] == "control") & (obs["cell_type"] == label) & (obs["batch"] == batch)).to_numpy()
        assert own.sum() >= MIN_CONTROLS
        np.testing.assert_allclose(populations.effect[i], y[mine].mean(axis=0) - y[own].mean(axis=0), atol=1e-4)
        expected = y[mine].var(axis=0) / (mine.sum() - 1) + y[own].var(axis=0) / (own.sum() - 1) + 1e-4
        np.testing.assert_allclose(populations.variance[i], expected, rtol=1e-2, atol=1e-4)


def _cache(model):
    model.split_ = [np.arange(model.adata.n_obs), np.array([], dtype=int), np.array([], dtype=int)]
    return model._cache_latents()


# ---- unknown cell types --------------------------------------------------------------------


def relabelled(cells, name="type9"):
    other = cells.copy()
    other.obs["cell_type"] = other.obs["cell_type"].astype(str).replace("type2", name)
    return other


def test_unknown_cell_type_is_refused_with_what_to_do(trained, cells):
    with pytest.raises(ValueError, match=r"cell type level.*\['type9'\].*Known:.*unknown_labels='nearest'"):
        trained.predict_perturbation(relabelled(cells), "P1")
    with pytest.raises(ValueError, match="`unknown_labels` 'skip'"):
        trained.predict_perturbation(cells, "P1", unknown_labels="skip")


def test_nearest_cell_type_stands_for_an_unknown_one_when_asked(trained, cells):
    other = relabelled(cells)
    result = trained.predict_perturbation(other, ["P1", "control"], unknown_labels="nearest")
    unknown = (result.obs["cell_type"] == "type9").to_numpy()
    assert set(result.obs["support"][unknown]) == {"new context"} and set(result.obs["support"][~unknown]) == {"seen"}
    assert (result.obs["nearest_label"][~unknown] == result.obs["cell_type"][~unknown]).all()
    guessed = result.obs["nearest_label"][unknown]
    assert (guessed == "type2").mean() > 0.9  # the hidden truth: the types differ in 16 % of the genes
    truth = trained.predict_perturbation(cells, ["P1", "control"])
    right = np.flatnonzero(unknown)[(guessed == "type2").to_numpy()]
    np.testing.assert_array_equal(result.X[right], truth.X[right])
    alone = trained.predict_perturbation(other[5:6].copy(), "P1", unknown_labels="nearest")
    np.testing.assert_array_equal(alone.X[0], result.X[5])


def test_cells_without_the_column_of_cell_types(trained, cells):
    bare = cells.copy()
    del bare.obs["cell_type"]
    with pytest.raises(KeyError, match=r"'cell_type' is not in adata.obs.*unknown_labels='nearest'"):
        trained.predict_perturbation(bare, "P1")
    result = trained.predict_perturbation(bare, "P1", unknown_labels="nearest")
    assert set(result.obs["support"]) == {"new context"}
    assert (result.obs["nearest_label"].to_numpy() == cells.obs["cell_type"].to_numpy()).mean() > 0.9


def test_known_types_are_left_alone(trained, cells):
    result = trained.predict_perturbation(cells, "P1", unknown_labels="nearest")
    assert "nearest_label" not in result.obs
    np.testing.assert_array_equal(result.X, trained.predict_perturbation(cells, "P1").X)


def test_nearest_is_the_best_correlated_profile(trained, cells):
    table = trained._reader.read(relabelled(cells), allow_unknown=True)
    assert set(table.context.labels.tolist()) == {UNKNOWN, trained.cell_types.index("type1")}
    profiles = trained.calibration_.state.profiles
    filled, unknown = with_nearest_labels(table, profiles, np.array([0, 1]))
    y = np.log1p(cells.X.toarray() / table.library[:, None] * 1e4)
    for i in np.flatnonzero(unknown)[:20]:
        scores = [np.corrcoef(y[i], profile)[0, 1] for profile in profiles]
        assert filled.context.labels[i] == np.argmax(scores)


# ---- covariates --------------------------------------------------------------------


def test_time_as_a_continuous_covariate(simulate, build, fit):
    adata = simulate()
    adata.obs["hours"] = np.where(adata.obs["perturbation"] == "control", 0.0, 6.0)
    model = fit(build(adata, {"combination_delimiter": "+", "continuous_covariate_keys": ["hours"]}), **SHORT)
    control = adata[adata.obs["perturbation"] == "control"].copy()
    at_zero = model.predict_perturbation(control, "P1").X
    control.obs["hours"] = 6.0
    assert not np.array_equal(model.predict_perturbation(control, "P1").X, at_zero)
    np.testing.assert_array_equal(model.predict_perturbation(control, "control").X, control.X.toarray())


# ---- distance of support --------------------------------------------------------------------


def test_distance_is_that_to_the_nearest_trained_vector(trained):
    result = trained.predict_perturbation(perturbation=["control", "P1", "P1+P2", "P1+P2+P3"])
    distance = result.obs.groupby("perturbation", observed=True)["support_distance"].unique()
    trained_pairs = set(trained.adata.obs["perturbation"].astype(str))
    assert list(distance["control"]) == list(distance["P1"]) == [0.0]
    assert list(distance["P1+P2"]) == ([0.0] if "P1+P2" in trained_pairs else [1.0])
    assert list(distance["P1+P2+P3"]) == [1.0]  # one member from the pair that was trained on


def test_distance_of_a_vector_grows_with_its_distance(simulate, build, fit):
    adata = simulate(n_pairs=0)
    vectors = adata.uns["perturbation_embedding"].copy()
    for step in (0.0, 0.5, 2.0):
        vectors.loc[f"far {step}"] = vectors.loc["P1"] + step * (vectors.loc["P1"] - vectors.loc["P2"])
    adata.uns["vectors"] = vectors
    model = fit(build(adata, {"perturbation_embedding_key": "vectors"}), **SHORT)
    obs = model.predict_perturbation(perturbation=["far 0.0", "far 0.5", "far 2.0"]).obs
    distance = obs.groupby("perturbation", observed=True, sort=False)["support_distance"].first()
    assert distance["far 0.0"] == 0.0 and 0 < distance["far 0.5"] < distance["far 2.0"]
    assert set(obs["support"]) == {"new perturbation"}


def test_support_table_names_doses_and_contexts(simulate, build, fit):
    adata = simulate(doses=[1.0, 3.0])
    table = fit(build(adata, {"combination_delimiter": "+", "dosage_key": "dosage"}), **SHORT).support()
    assert list(table) == ["perturbation", "dosage", "cell_type", "batch", "n_cells", "n_train"]
    assert table["n_cells"].sum() == adata.n_obs and table["n_train"].sum() == round(0.9 * adata.n_obs)
    one = table[(table["perturbation"] == "P1") & (table["dosage"] == 3.0)]
    assert one["n_cells"].sum() == ((adata.obs["perturbation"] == "P1") & (adata.obs["dosage"] == 3.0)).sum()


# ---- embedding --------------------------------------------------------------------


def test_embedding_is_the_mean_displacement_of_control_cells(trained):
    """With fewer controls than the 128 that stand for a type, those are all of them."""
    table = trained.get_perturbation_embedding()
    train = np.sort(np.r_[trained.train_indices, trained.validation_indices])
    control = train[(trained.adata.obs["perturbation"] == "control").to_numpy()[train]]
    moved = trained.predict_perturbation(indices=control, perturbation="P1", return_type="latent").X
    move = moved - trained.get_latent_representation(indices=control)
    types = trained.adata.obs["cell_type"].to_numpy()[control]
    expected = np.mean([move[types == name].mean(axis=0) for name in ("type1", "type2")], axis=0)
    np.testing.assert_allclose(table.loc["P1"], expected, atol=1e-4)


def test_embedding_of_combinations_and_unseen_ones(trained):
    table = trained.get_perturbation_embedding(["P1+P2", "P1"])
    assert table.index.tolist() == ["control", "P1+P2", "P1"]
    np.testing.assert_array_equal(table.loc["P1"], trained.get_perturbation_embedding().loc["P1"])
    with pytest.raises(ValueError, match="Unknown perturbation 'P9'"):
        trained.get_perturbation_embedding(pd.DataFrame({"perturbation": ["P9"]}))


# ---- names --------------------------------------------------------------------


def test_names_and_order_of_all_categories_do_not_matter(simulate, build, fit):
    """Other names of perturbations, cell types, batches and donors, in another order: the same bits."""
    rng = np.random.default_rng(0)
    donor = rng.choice(["d1", "d2", "d3"], 300)
    plain, renamed = simulate(), simulate()
    plain.obs["donor"], renamed.obs["donor"] = donor, pd.Series(donor).map({"d1": "z", "d2": "m", "d3": "a"}).to_numpy()
    names = {"P1": "Z", "P2": "M", "P3": "A", "P1+P3": "A+Z", "P1+P2": "Z+M", "P2+P3": "M+A"}
    obs = renamed.obs
    obs["perturbation"] = obs["perturbation"].astype(str).map(lambda n: names.get(n, n))
    obs["cell_type"] = obs["cell_type"].astype(str).map({"type1": "y", "type2": "x"})
    obs["batch"] = pd.Categorical(obs["batch"].astype(str).map({"batch1": "b", "batch2": "a"}), ["b", "a", "unused"])
    setup = {"combination_delimiter": "+", "categorical_covariate_keys": ["donor"]}
    one, other = fit(build(plain, setup)), fit(build(renamed, setup))
    np.testing.assert_array_equal(one.get_latent_representation(), other.get_latent_representation())
    for return_type in ("mean", "counts"):
        expected = one.predict_perturbation(perturbation=["P1", "P1+P2+P3"], return_type=return_type).X
        found = other.predict_perturbation(perturbation=["Z", "A+M+Z"], return_type=return_type).X
        difference = expected - found
        assert abs(difference).max() == 0
