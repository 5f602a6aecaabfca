"""Changes within samples: means of the cells, by hand."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="module")
def donors(simulate, build, fit):
    """Three donors; the third has no control cells."""
    adata = simulate(n_cells=400, n_pairs=0)
    adata.obs["donor"] = [f"d{i % 3}" for i in range(adata.n_obs)]
    keep = ~((adata.obs["donor"] == "d2") & (adata.obs["perturbation"] == "control")).to_numpy()
    return fit(build(adata[keep].copy(), {"sample_key": "donor"}), vae_max_epochs=1, flow_max_epochs=1)


def mean(model, **where) -> np.ndarray:
    adata = model.adata
    rows = np.isin(np.arange(adata.n_obs), model._fitted_rows)
    for name, value in where.items():
        rows &= (adata.obs[name] == value).to_numpy()
    x = adata.X[rows].toarray()
    return np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)


def test_changes_are_those_of_the_cells(donors):
    table = donors.get_sample_effects("P1", "type1")
    assert list(table.index) == ["d0", "d1", "d2"] and list(table) == list(donors.adata.var_names)
    assert table.attrs["paired"] == ["d0", "d1"] and table.attrs["labels"] == ["type1"]

    def of(donor, perturbation):
        return mean(donors, cell_type="type1", donor=donor, perturbation=perturbation)

    np.testing.assert_allclose(table.loc["d0"], of("d0", "P1") - of("d0", "control"), atol=1e-5)
    typical = (of("d0", "control") + of("d1", "control")) / 2
    np.testing.assert_allclose(table.loc["d2"], of("d2", "P1") - typical, atol=1e-5)


def test_cell_types_are_averaged_by_their_controls(donors):
    both, one, other = (donors.get_sample_effects("P1", labels) for labels in (None, "type1", "type2"))
    control = donors.adata.obs.iloc[donors._fitted_rows]
    control = control[control["perturbation"] == "control"]["cell_type"].value_counts()
    w = control["type1"] / control.sum()
    np.testing.assert_allclose(both.loc["d1"], w * one.loc["d1"] + (1 - w) * other.loc["d1"], atol=1e-5)
    assert sum(both.attrs["n_perturbed"].values()) == sum(
        sum(table.attrs["n_perturbed"].values()) for table in (one, other)
    )


def test_batches_stand_for_samples_where_there_are_none(trained):
    assert set(trained.get_sample_effects("P1").index) == set(trained.adata.obs["batch"])


def test_refuses(trained, simulated, build):
    with pytest.raises(ValueError, match="'control' was not measured"):
        trained.get_sample_effects("control")
    with pytest.raises(RuntimeError, match="not trained"):
        build(simulated).get_sample_effects("P1")


@pytest.mark.slow
def test_models_without_samples_say_what_to_do(simulate, build, fit):
    model = fit(build(simulate(n_pairs=0), {"batch_key": None}), vae_max_epochs=1, flow_max_epochs=1)
    with pytest.raises(ValueError, match="neither samples nor batches: pass `sample_key=`"):
        model.get_sample_effects("P1")
