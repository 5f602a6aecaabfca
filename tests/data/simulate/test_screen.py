"""Simulated screens: the counts follow the stated model, and the truth is what it says."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors

from cfmvc_scvi.data import counterfactual_mean, simulate_perturbation

SMALL = {"n_cells": 300, "n_genes": 60}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return simulate_perturbation(seed=3)


@pytest.fixture(scope="module")
def dosed() -> ad.AnnData:
    return simulate_perturbation(n_cells=600, n_genes=80, doses=(0.1, 1, 10), seed=3)


def log_effect(adata: ad.AnnData, perturbation: str, **kwargs) -> np.ndarray:
    """Change of the log rate, centred over genes (the softmax leaves a constant per cell open)."""
    control = counterfactual_mean(adata, "control").astype(np.float64)
    effect = np.log(counterfactual_mean(adata, perturbation, **kwargs)) - np.log(control)
    return effect - effect.mean(axis=1, keepdims=True)


def test_structure(adata):
    assert adata.shape == (2400, 500)
    assert sparse.issparse(adata.X) and adata.X.format == "csr" and adata.X.dtype == np.float32
    assert (adata.X.data == np.round(adata.X.data)).all() and adata.X.data.min() >= 1
    assert list(adata.obs) == ["cell_type", "batch", "perturbation", "library_size"]
    labels = adata.obs["perturbation"].cat.categories
    assert list(labels[:6]) == ["control", "P1", "P2", "P3", "P4", "P5"]
    assert len(labels) == 8 and all(label.count("+") == 1 for label in labels[6:])
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    assert adata.obsm["spatial"].shape == (2400, 2)
    assert adata.var["affected"].mean() == pytest.approx(0.2)
    assert list(adata.uns["perturbation_embedding"].index) == ["P1", "P2", "P3", "P4", "P5"]


def test_mean_and_variance_are_those_of_the_stated_model():
    data = simulate_perturbation(n_cells=5000, n_genes=200, seed=5)
    mean = data.layers["true_mean"].astype(np.float64)
    theta = data.var["dispersion"].to_numpy()
    variance = mean + mean**2 / theta
    residual = data.X.toarray() - mean
    z_mean = residual.sum(axis=0) / np.sqrt(variance.sum(axis=0))
    # Var of (x - mu)^2 for NB: fourth central moment minus the squared variance.
    fourth = variance * (1 + 6 * variance / theta) + 3 * variance**2
    z_variance = (residual**2 - variance).sum(axis=0) / np.sqrt((fourth - variance**2).sum(axis=0))
    for z in (z_mean, z_variance):
        assert np.abs(z).max() < 5
        assert abs(z.mean()) < 0.3
        assert 0.8 < z.std() < 1.2
    poisson = (residual**2 - mean).sum(axis=0) / np.sqrt((fourth - variance**2).sum(axis=0))
    assert np.median(poisson) > 5, "the same test must see that the counts are not Poisson"


def test_mean_sums_to_library_size(adata):
    total = adata.layers["true_mean"].sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(total, adata.obs["library_size"], rtol=1e-5)


def test_own_condition_is_the_true_mean_bit_for_bit(adata):
    labels = adata.obs["perturbation"]
    np.testing.assert_array_equal(counterfactual_mean(adata, labels), adata.layers["true_mean"])
    for label in labels.cat.categories:
        cells = adata[labels == label]
        np.testing.assert_array_equal(counterfactual_mean(cells, label), cells.layers["true_mean"])


def test_other_cells_genes_and_order_change_nothing(adata):
    rng = np.random.default_rng(0)
    whole = counterfactual_mean(adata, "P1+P2")
    for size in (1, 7, 255, 256, 257, 1111):
        cells = rng.choice(adata.n_obs, size, replace=False)
        genes = rng.choice(adata.n_vars, 33, replace=False)
        part = counterfactual_mean(adata[cells][:, genes], "P1+P2")
        np.testing.assert_array_equal(part, whole[np.ix_(cells, genes)])
    assert counterfactual_mean(adata[:0], "P1").shape == (0, adata.n_vars)


def test_order_of_categories_changes_nothing(adata):
    other = adata.copy()
    for column in ("cell_type", "batch"):
        other.obs[column] = other.obs[column].cat.reorder_categories(other.obs[column].cat.categories[::-1])
    np.testing.assert_array_equal(counterfactual_mean(other, "P2"), counterfactual_mean(adata, "P2"))


@pytest.mark.parametrize("label", ["P1+P2", "P2+P1", "P1+control+P2", "P1+P2+P1"])
def test_combinations_have_no_order(adata, label):
    np.testing.assert_array_equal(counterfactual_mean(adata, label), counterfactual_mean(adata, "P1+P2"))


def test_pairs_are_additive_without_interaction_only():
    for interaction in (0.0, 0.5):
        data = simulate_perturbation(**SMALL, interaction=interaction, seed=1)
        excess = log_effect(data, "P1+P2") - log_effect(data, "P1") - log_effect(data, "P2")
        if interaction == 0:
            assert np.abs(excess).max() < 1e-5
        else:
            assert np.sqrt((excess[:, data.var["affected"]] ** 2).mean()) > 0.1


@pytest.mark.parametrize("interaction", [0.25, 1.0])
def test_interaction_is_of_the_size_asked_for(interaction):
    data = simulate_perturbation(n_cells=90, n_genes=400, n_perturbations=8, interaction=interaction, seed=2)
    names = data.uns["perturbation_embedding"].index
    single = {name: log_effect(data, name) for name in names}
    excess = np.stack(
        [log_effect(data, f"{a}+{b}") - single[a] - single[b] for i, a in enumerate(names) for b in names[:i]]
    )
    excess -= np.median(excess, axis=2, keepdims=True)
    size = np.sqrt((excess[..., data.var["affected"]] ** 2).mean())
    assert size == pytest.approx(0.8 * interaction, rel=0.2)


def test_interaction_changes_nothing_but_combinations():
    plain, interacting = (simulate_perturbation(**SMALL, interaction=i, seed=1) for i in (0, 1))
    pd.testing.assert_frame_equal(plain.obs, interacting.obs)
    np.testing.assert_array_equal(counterfactual_mean(plain, "P1"), counterfactual_mean(interacting, "P1"))
    assert (counterfactual_mean(plain, "P1+P2") != counterfactual_mean(interacting, "P1+P2")).any()


def test_effects_are_of_the_size_asked_for():
    sizes = {}
    for effect_size in (0.0, 0.4, 0.8):
        data = simulate_perturbation(
            n_cells=300,
            n_genes=400,
            n_perturbations=10,
            effect_size=effect_size,
            affected_fraction=0.1,
            seed=2,
        )
        effect = np.stack([log_effect(data, f"P{k}") for k in range(1, 11)])
        effect -= np.median(effect, axis=2, keepdims=True)
        affected = data.var["affected"].to_numpy()
        assert np.abs(effect[..., ~affected]).max() < 1e-5
        sizes[effect_size] = np.sqrt((effect[..., affected] ** 2).mean()) if affected.any() else 0.0
    assert sizes[0.0] < 1e-5
    assert sizes[0.4] == pytest.approx(0.4, rel=0.15)
    assert sizes[0.8] == pytest.approx(0.8, rel=0.15)


@pytest.mark.parametrize(
    ("shared", "state", "across_types", "within_type"),
    [(1.0, 0.0, False, False), (0.0, 0.0, True, False), (0.0, 1.0, True, True)],
)
def test_shares_of_the_effect(shared, state, across_types, within_type):
    data = simulate_perturbation(**SMALL, shared_fraction=shared, state_fraction=state, seed=4)
    assert data.var["affected"].sum() == 12
    effect = log_effect(data, "P1")
    effect -= np.median(effect, axis=1, keepdims=True)
    assert (effect.std(axis=0).max() > 0.1) == across_types
    one_type = (data.obs["cell_type"] == "type1").to_numpy()
    assert (effect[one_type].std(axis=0).max() > 0.1) == within_type


def test_dose_zero_is_control_exactly(dosed):
    control = counterfactual_mean(dosed, "control")
    np.testing.assert_array_equal(counterfactual_mean(dosed, "control", dosage=10), control)
    for label in ("P1", "P1+P2"):
        np.testing.assert_array_equal(counterfactual_mean(dosed, label, dosage=0), control)
    np.testing.assert_array_equal(
        counterfactual_mean(dosed, "P1+P2", dosage="3+0"), counterfactual_mean(dosed, "P1", dosage=3)
    )
    assert (dosed.obs.loc[dosed.obs["perturbation"] == "control", "dosage"] == 0).all()
    assert set(dosed.obs.loc[dosed.obs["perturbation"] != "control", "dosage"]) == {0.1, 1.0, 10.0}


def test_dose_response_rises_and_saturates(dosed):
    doses = [0, 1e-3, 0.1, 0.3, 1, 3, 10, 1e4, 1e300]
    size = [np.abs(log_effect(dosed, "P1", dosage=dose)).mean() for dose in doses]
    assert (np.diff(size[:-1]) > 0).all()
    assert size[-1] == pytest.approx(size[-2], rel=1e-3)


def test_own_dose_is_the_true_mean(dosed):
    own = counterfactual_mean(dosed, dosed.obs["perturbation"], dosage=dosed.obs["dosage"])
    np.testing.assert_array_equal(own, dosed.layers["true_mean"])


def test_deterministic():
    first, second = (simulate_perturbation(**SMALL, seed=11) for _ in range(2))
    other = simulate_perturbation(**SMALL, seed=12)
    assert (first.X != second.X).nnz == 0
    pd.testing.assert_frame_equal(first.obs, second.obs)
    np.testing.assert_array_equal(first.obsm["spatial"], second.obsm["spatial"])
    assert (first.X != other.X).nnz > 0
    state = np.random.get_state()[1].copy()
    simulate_perturbation(**SMALL)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_more_cells_same_genes():
    small, large = (simulate_perturbation(n_cells=n, n_genes=60, seed=1).uns["simulation"] for n in (300, 400))
    for key, value in small.items():
        np.testing.assert_array_equal(value, large[key], err_msg=key)


def test_balanced_within_batch_and_cell_type(adata):
    table = pd.crosstab([adata.obs["batch"], adata.obs["cell_type"]], adata.obs["perturbation"])
    assert (table.max() - table.min()).max() <= 3
    assert table["control"].sum() / adata.n_obs == pytest.approx(0.25, abs=0.01)


def test_confounding_ties_perturbations_to_batches():
    data = simulate_perturbation(n_cells=600, n_genes=50, confounding=1, seed=1)
    table = pd.crosstab(data.obs["perturbation"], data.obs["batch"])
    assert (table.loc["control"] > 0).all()
    assert ((table.drop("control") > 0).sum(axis=1) == 1).all()


def test_neighbours_share_their_cell_type(adata):
    for batch in adata.obs["batch"].cat.categories:
        cells = adata[adata.obs["batch"] == batch]
        places, types = cells.obsm["spatial"], cells.obs["cell_type"].to_numpy()
        neighbours = NearestNeighbors(n_neighbors=7).fit(places).kneighbors(places)[1][:, 1:]
        chance = (pd.Series(types).value_counts(normalize=True) ** 2).sum()
        assert (types[neighbours] == types[:, None]).mean() > chance + 0.4
        state = cells.obsm["true_state"]
        smooth = [np.corrcoef(state[neighbours, s].mean(axis=1), state[:, s])[0, 1] for s in range(2)]
        assert smooth[0] > 0.4 and abs(smooth[1]) < 0.2


def test_without_space():
    data = simulate_perturbation(**SMALL, spatial=False)
    assert "spatial" not in data.obsm
    np.testing.assert_array_equal(counterfactual_mean(data, data.obs["perturbation"]), data.layers["true_mean"])


def test_batch_effect_and_decoding_in_another_batch(adata):
    there = counterfactual_mean(adata, "control", batch="batch2")
    own = counterfactual_mean(adata, "control")
    in_batch2 = (adata.obs["batch"] == "batch2").to_numpy()
    np.testing.assert_array_equal(there[in_batch2], own[in_batch2])
    assert np.abs(np.log(there[~in_batch2] / own[~in_batch2])).mean() > 0.1
    data = simulate_perturbation(**SMALL, batch_effect=0)
    np.testing.assert_array_equal(counterfactual_mean(data, "P1", batch="batch2"), counterfactual_mean(data, "P1"))


def test_panel_keeps_the_library_size_of_all_genes():
    data = simulate_perturbation(n_cells=300, n_genes=200, n_panel_genes=20, seed=1)
    assert data.shape == (300, 20)
    assert data.layers["true_mean"].sum() < 0.5 * data.obs["library_size"].sum()
    np.testing.assert_array_equal(counterfactual_mean(data, data.obs["perturbation"]), data.layers["true_mean"])


def test_round_trip_through_h5ad(dosed, tmp_path):
    dosed.write_h5ad(tmp_path / "screen.h5ad")
    back = ad.read_h5ad(tmp_path / "screen.h5ad")
    np.testing.assert_array_equal(
        counterfactual_mean(back, "P1+P2", dosage="1+3"), counterfactual_mean(dosed, "P1+P2", dosage="1+3")
    )
    own = counterfactual_mean(back, back.obs["perturbation"], dosage=back.obs["dosage"])
    np.testing.assert_array_equal(own, dosed.layers["true_mean"])
    pd.testing.assert_frame_equal(back.uns["perturbation_embedding"], dosed.uns["perturbation_embedding"])


def test_round_trip_of_the_smallest_screen(tmp_path):
    tiny = {
        "n_cells": 10,
        "n_genes": 5,
        "n_cell_types": 1,
        "n_batches": 1,
        "n_perturbations": 1,
        "n_pairs": 0,
    }
    data = simulate_perturbation(**tiny, n_state=1, n_embedding=1)
    data.write_h5ad(tmp_path / "tiny.h5ad")
    back = ad.read_h5ad(tmp_path / "tiny.h5ad")
    np.testing.assert_array_equal(counterfactual_mean(back, "P1"), counterfactual_mean(data, "P1"))


def test_vectors_predict_the_effects():
    data = simulate_perturbation(n_cells=400, n_genes=100, n_perturbations=40, n_pairs=0, seed=6)
    vectors = data.uns["perturbation_embedding"].to_numpy()
    effects = np.stack([log_effect(data, f"P{k + 1}").mean(axis=0) for k in range(40)])
    shuffled = np.random.default_rng(0).permutation(vectors)

    def error(features: np.ndarray) -> float:
        predicted = cross_val_predict(Ridge(alpha=0.1), features, effects, cv=5)
        return ((predicted - effects) ** 2).sum() / ((effects - effects.mean(axis=0)) ** 2).sum()

    assert error(vectors) < 0.1
    assert error(shuffled) > 0.7


def test_embedding_noise():
    plain, noisy = (simulate_perturbation(**SMALL, embedding_noise=n) for n in (0, 0.5))
    difference = noisy.uns["perturbation_embedding"] - plain.uns["perturbation_embedding"]
    assert 0.2 < difference.to_numpy().std() < 0.9
    assert (plain.X != noisy.X).nnz == 0


def test_true_mean_can_be_left_out():
    data = simulate_perturbation(**SMALL, store_true_mean=False)
    assert "true_mean" not in data.layers
    assert (data.X != simulate_perturbation(**SMALL).X).nnz == 0


def test_control_name():
    data = simulate_perturbation(**SMALL, control="non-targeting")
    assert data.obs["perturbation"].cat.categories[0] == "non-targeting"
    assert counterfactual_mean(data, "non-targeting").shape == data.shape


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_cells": 0}, "n_cells must be an integer of at least 1, got 0"),
        ({"n_cells": 10.5}, "n_cells"),
        ({"n_genes": True}, "n_genes"),
        ({"n_batches": 0}, "n_batches"),
        ({"n_pairs": 11}, "make 10 pairs"),
        ({"n_pairs": -1}, "n_pairs"),
        ({"seed": None}, "seed"),
        ({"seed": -1}, "seed"),
        ({"interaction": -0.1}, "interaction"),
        ({"interaction": float("nan")}, "interaction"),
        ({"effect_size": float("inf")}, "effect_size"),
        ({"effect_size": "large"}, "effect_size"),
        ({"shared_fraction": 0.9, "state_fraction": 0.2}, "must not exceed 1"),
        ({"affected_fraction": 1.1}, "affected_fraction"),
        ({"control_fraction": 0}, "control_fraction"),
        ({"control_fraction": 1}, "control_fraction"),
        ({"dispersion": 0}, "dispersion"),
        ({"dispersion": None}, "dispersion"),
        ({"mean_library_size": -5}, "mean_library_size"),
        ({"doses": ()}, "doses must be distinct"),
        ({"doses": (0, 1)}, "Dose 0 is the control"),
        ({"doses": (1, 1)}, "doses must be distinct"),
        ({"doses": 3}, "doses must be distinct"),
        ({"control": "P1"}, "no perturbation's name"),
        ({"control": "a+b"}, "without '\\+'"),
        ({"control": ""}, "non-empty"),
        ({"n_panel_genes": 501}, "n_panel_genes"),
        ({"n_perturbations": 1, "n_pairs": 0, "confounding": 0.5}, "perturbations of its own"),
        ({"n_cells": 5}, "too few"),
    ],
)
def test_hostile_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        simulate_perturbation(**kwargs)


def test_hostile_counterfactuals_are_refused(adata, dosed):
    cases = [
        (adata, "P9", None, r"Unknown perturbation \['P9'\] in 'P9'.*Known: \['control', 'P1'"),
        (adata, "P1+", None, "Unknown perturbation"),
        (adata, "P1", 1.0, "without doses"),
        (adata, ["P1", "P2"], None, "one for each of the 2400"),
        (dosed, "P1", None, "give dosage="),
        (dosed, "P1", -1, "at least 0"),
        (dosed, "P1", float("nan"), "at least 0"),
        (dosed, "P1", "high", "at least 0"),
        (dosed, "P1+P2", "1+2+3", "one per member"),
    ]
    for data, label, dosage, message in cases:
        with pytest.raises(ValueError, match=message):
            counterfactual_mean(data, label, dosage=dosage)
    with pytest.raises(ValueError, match=r"batches .*'batch9'.* were not simulated"):
        counterfactual_mean(adata, "P1", batch="batch9")
    renamed = adata[:5].copy()
    renamed.var_names = [f"x{i}" for i in range(renamed.n_vars)]
    with pytest.raises(ValueError, match=r"genes .* were not simulated"):
        counterfactual_mean(renamed, "P1")
    with pytest.raises(KeyError, match="simulate_perturbation writes"):
        counterfactual_mean(ad.AnnData(np.ones((3, 2))), "P1")
    edited = adata[:5].copy()
    del edited.uns["simulation"]["vectors"]
    with pytest.raises(KeyError, match="vectors"):
        counterfactual_mean(edited, "P1")
