"""Latent representation of cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def test_shapes(trained):
    n = trained.adata.n_obs
    intrinsic, technical, both = (
        trained.get_latent_representation(latent=name) for name in ("intrinsic", "technical", "both")
    )
    assert intrinsic.shape == (n, 6) and technical.shape == (n, 3) and both.shape == (n, 9)
    assert intrinsic.dtype == technical.dtype == both.dtype == np.float32
    np.testing.assert_array_equal(both, np.concatenate([intrinsic, technical], axis=1))
    np.testing.assert_array_equal(trained.get_latent_representation(), intrinsic)
    assert intrinsic.std(axis=0).max() > 0.1
    with pytest.raises(ValueError, match=r"`latent` 'z'.*intrinsic"):
        trained.get_latent_representation(latent="z")


@pytest.mark.parametrize("latent", ["intrinsic", "technical", "both"])
def test_draws(trained, latent):
    mean = trained.get_latent_representation(latent=latent)
    first, again = (trained.get_latent_representation(latent=latent, give_mean=False) for _ in range(2))
    assert first.shape == mean.shape and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert (first != mean).mean() > 0.99
    scvi.settings.seed = 1
    assert not np.array_equal(first, trained.get_latent_representation(latent=latent, give_mean=False))


def test_draws_are_of_the_posterior(trained):
    posterior = trained._encode(trained._cells(None))
    draw = trained.get_latent_representation(give_mean=False)
    standard = (draw - posterior.mean.numpy()) / posterior.scale.numpy()
    assert abs(standard.mean()) < 0.1 and abs(standard.std() - 1) < 0.1


def test_indices_keep_their_order(trained):
    everything = trained.get_latent_representation()
    rows = [5, 1, 200, 3, 5, -1]
    np.testing.assert_allclose(trained.get_latent_representation(indices=rows), everything[rows], rtol=1e-5, atol=1e-5)
    mask = np.arange(trained.adata.n_obs) % 2 == 0
    np.testing.assert_allclose(trained.get_latent_representation(indices=mask), everything[mask], rtol=1e-5, atol=1e-5)
    with pytest.raises(IndexError, match="300 cells"):
        trained.get_latent_representation(indices=[300])


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_batch_size_does_not_matter(trained, batch_size):
    np.testing.assert_allclose(
        trained.get_latent_representation(latent="both", batch_size=batch_size),
        trained.get_latent_representation(latent="both"),
        rtol=1e-5,
        atol=1e-5,
    )


def test_new_data(trained):
    expected = trained.get_latent_representation()
    new = trained.adata.copy()
    new.uns, new.X = {}, sparse.csc_matrix(new.X)
    del new.obs["perturbation"]
    np.testing.assert_array_equal(trained.get_latent_representation(new), expected)
    np.testing.assert_array_equal(trained.get_latent_representation(new[:, ::-1].copy()), expected)
    with pytest.raises(ValueError, match="1 of the 60 genes"):
        trained.get_latent_representation(new[:, 1:].copy())
    new.obs["batch"] = "elsewhere"
    with pytest.raises(ValueError, match=r"batch level.*'elsewhere'"):
        trained.get_latent_representation(new)


@pytest.mark.slow
def test_needs_stage_1_only(simulated, build, quiet):
    model = build(simulated)
    with pytest.raises(RuntimeError, match="train_vae"):
        model.get_latent_representation()
    model.train_vae(1, **quiet)
    assert model.get_latent_representation().shape == (300, 6)


@pytest.mark.slow
def test_size_factor_scales_the_input(simulated, build, quiet):
    model = build(simulated, {"size_factor_key": "library_size"})
    model.train_vae(1, **quiet)
    before = model.get_latent_representation()
    other = simulated.copy()
    other.obs["library_size"] *= 2
    assert not np.allclose(model.get_latent_representation(other), before)
    other.X = other.X * 2
    np.testing.assert_allclose(model.get_latent_representation(other), before, rtol=1e-3, atol=1e-3)


def test_cell_types_separate(trained):
    latent, labels = trained.get_latent_representation(), trained.adata.obs["cell_type"].to_numpy()
    means = np.stack([latent[labels == label].mean(axis=0) for label in ("type1", "type2")])
    nearest = np.linalg.norm(latent[:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == (labels == "type2")).mean() > 0.65


INHERITED = ("get_normalized_expression", "get_elbo", "get_reconstruction_error", "get_latent_representation")


def result(model, method, *args):
    scvi.settings.seed = 0
    value = getattr(model, method)(*args)
    value = value["reconstruction_loss"] if isinstance(value, dict) else value
    return value.to_numpy() if isinstance(value, pd.DataFrame) else np.asarray(value, dtype=float)


@pytest.mark.parametrize("method", INHERITED)
def test_genes_in_another_order_are_found_by_name(simulate, build, fit, method):
    model = fit(build(simulate()))
    expected = result(model, method)
    model.adata._inplace_subset_var(np.arange(model.adata.n_vars)[::-1])
    np.testing.assert_allclose(result(model, method), expected, rtol=1e-4)


def test_genes_filtered_after_training_are_missed_by_name(simulate, build, fit):
    model = fit(build(simulate()))
    new = model.adata.copy()
    latent = model.get_latent_representation(new)
    names = list(model.get_var_names())
    model.adata._inplace_subset_var(np.arange(10, 60))
    for method in INHERITED:
        with pytest.raises(ValueError, match="10 of the 60 genes the model was trained on"):
            getattr(model, method)()
    with pytest.raises(ValueError, match="10 of the 60 genes"):
        model.train_flow(1, **QUIET)
    assert list(model.get_var_names()) == names
    np.testing.assert_array_equal(model.get_latent_representation(new), latent)


@pytest.mark.parametrize("method", [*INHERITED, "differential_expression", "posterior_predictive_sample"])
def test_one_check_of_units_for_all_methods(simulate, build, fit, method):
    model = fit(build(simulate()))
    arguments = {"groupby": "cell_type"} if method == "differential_expression" else {}
    model.adata.X = np.log1p(model.adata.X)
    with pytest.raises(ValueError, match="looks log-transformed"):
        getattr(model, method)(**arguments)


@pytest.mark.parametrize("method", [*INHERITED, "differential_expression"])
def test_nothing_is_written_into_new_data(trained, cells, method):
    new = cells.copy()
    before = [set(table) for table in (new.obs, new.obsm, new.uns, new.layers)]
    arguments = {"groupby": "cell_type"} if method == "differential_expression" else {}
    getattr(trained, method)(new, **arguments)
    assert [set(table) for table in (new.obs, new.obsm, new.uns, new.layers)] == before


def test_new_data_are_checked_once_in_a_call(trained, cells, monkeypatch):
    read, reads = trained._reader.read, []
    monkeypatch.setattr(
        type(trained._reader), "read", lambda self, *args, **kwargs: reads.append(1) or read(*args, **kwargs)
    )
    trained.differential_expression(cells, groupby="cell_type")
    assert len(reads) == 1
    trained.differential_expression(groupby="cell_type")
    assert len(reads) == 2


def test_blanks_in_new_categories(trained, cells):
    new = cells.copy()
    new.obs["cell_type"] = new.obs["cell_type"].astype(str) + " "
    np.testing.assert_allclose(trained.get_elbo(new), trained.get_elbo(cells), rtol=0.05)


def test_samples_over_all_cells_have_no_names(trained):
    assert trained.get_normalized_expression(n_samples_overall=20).shape == (20, 60)


def test_default_type_of_torch(simulate, build, fit):
    expected = fit(build(simulate())).predict_perturbation(perturbation="P1").X
    torch.set_default_dtype(torch.float64)
    try:
        model = fit(build(simulate()))
        found = model.predict_perturbation(perturbation="P1").X
        assert torch.get_default_dtype() == torch.float64
        assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, expected)


def test_cells_by_name(trained):
    names = trained.adata.obs_names[[5, 2]]
    np.testing.assert_array_equal(
        trained.get_latent_representation(indices=names), trained.get_latent_representation(indices=[5, 2])
    )
    with pytest.raises(KeyError, match="1 cells that are not there"):
        trained.get_latent_representation(indices=["nobody"])
    with pytest.raises(TypeError, match="float64 values"):
        trained.get_latent_representation(indices=[1.5])


def test_an_overwritten_perturbation_column_is_named(simulate, build, fit):
    model = fit(build(simulate()))
    model.adata.obs["perturbation"] = "P1"
    for ask in (lambda: model.predict_perturbation(perturbation="P1"), lambda: model.train_flow(1, **QUIET)):
        with pytest.raises(ValueError, match="was changed for .* `perturbation=`"):
            ask()
