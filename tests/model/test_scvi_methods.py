"""What scvi-tools' own methods give for this model."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pandas as pd
import pytest
import scvi

ROWS = [5, 1, 9, 3]


def test_elbo_and_reconstruction_error(trained):
    elbo = float(trained.get_elbo())
    error = trained.get_reconstruction_error()
    reconstruction = float(error["reconstruction_loss"])
    assert np.isfinite(elbo) and elbo < 0
    assert np.isfinite(reconstruction)
    # the ELBO is the reconstruction less a KL, both in nats per cell
    assert elbo < -abs(reconstruction) < 0
    last = float(trained.history["elbo_train"].iloc[-1].item())
    assert abs(elbo + last) < 0.2 * abs(last)


def test_per_cell_values(trained):
    per_cell = trained.get_elbo(indices=ROWS, return_mean=False)
    assert np.asarray(per_cell).shape == (4,)
    error = trained.get_reconstruction_error(indices=ROWS, return_mean=False)
    assert np.asarray(error["reconstruction_loss"]).shape == (4,)


def test_reconstruction_error_is_the_negative_binomial(trained):
    """scvi-tools' own likelihood of the same counts, at the posterior mean."""
    import torch

    cells = trained._cells(None)
    x = torch.as_tensor(cells.dense(slice(None)))
    with torch.inference_mode():
        out = trained.module.inference(x, cells.context)
        px = trained.module.generative(
            out["qz"].loc, out["qz_technical"].loc, out["library"], cells.context.batch.unsqueeze(-1)
        )["px"]
        expected = -px.log_prob(x).sum(dim=-1).mean()
    assert float(trained.get_reconstruction_error()["reconstruction_loss"]) == pytest.approx(float(expected), rel=0.05)


def test_normalized_expression(trained):
    frame = trained.get_normalized_expression()
    assert isinstance(frame, pd.DataFrame) and frame.shape == (300, 60)
    assert frame.index.equals(trained.adata.obs_names) and frame.columns.equals(trained.adata.var_names)
    np.testing.assert_allclose(frame.sum(axis=1), 1.0, rtol=1e-4)
    scaled = trained.get_normalized_expression(library_size=1e4, return_numpy=True)
    np.testing.assert_allclose(scaled.sum(axis=1), 1e4, rtol=1e-4)
    latent = trained.get_normalized_expression(library_size="latent", return_numpy=True)
    np.testing.assert_allclose(latent.sum(axis=1), np.asarray(trained.adata.X.sum(axis=1)).ravel(), rtol=1e-3)


def test_normalized_expression_of_genes_cells_and_draws(trained):
    genes = list(trained.adata.var_names[[4, 2]])
    part = trained.get_normalized_expression(indices=ROWS, gene_list=genes)
    assert part.index.tolist() == trained.adata.obs_names[ROWS].tolist()
    assert sorted(part.columns) == sorted(genes)
    draws = trained.get_normalized_expression(
        indices=ROWS, n_samples=5, return_mean=False, return_numpy=True, gene_list=genes
    )
    assert draws.shape == (5, 4, 2) and draws.std(axis=0).min() > 0
    mean = trained.get_normalized_expression(indices=ROWS, n_samples=5)
    assert mean.shape == (4, 60)


def test_transform_batch(trained):
    own = trained.get_normalized_expression(return_numpy=True)
    moved = trained.get_normalized_expression(transform_batch="batch2", return_numpy=True)
    in_batch_2 = (trained.adata.obs["batch"] == "batch2").to_numpy()
    difference = np.abs(np.log(moved) - np.log(own))
    assert difference[~in_batch_2].mean() > 0.01
    # both are draws of the latent, so the cells that stay differ by that alone
    assert difference[in_batch_2].mean() < difference[~in_batch_2].mean()
    np.testing.assert_allclose(moved.sum(axis=1), 1.0, rtol=1e-4)


def test_transform_to_several_batches_is_their_mean(trained):
    both = trained.get_normalized_expression(transform_batch=["batch1", "batch2"], indices=ROWS)
    assert both.shape == (4, 60)
    np.testing.assert_allclose(both.sum(axis=1), 1.0, rtol=1e-4)


@pytest.mark.slow  # scvi-tools imports `sparse`, which compiles
def test_posterior_predictive_sample(trained):
    one = trained.posterior_predictive_sample(indices=ROWS)
    many = trained.posterior_predictive_sample(indices=ROWS, n_samples=3)
    assert one.shape == (4, 60) and many.shape == (4, 60, 3)
    for sample in (one, many):
        values = np.asarray(sample.todense())
        assert (values == np.round(values)).all() and values.min() >= 0 and values.sum() > 0
    totals = np.asarray(trained.posterior_predictive_sample().todense()).sum(axis=1)
    assert np.corrcoef(totals, np.asarray(trained.adata.X.sum(axis=1)).ravel())[0, 1] > 0.8


def test_likelihood_parameters(trained):
    parameters = trained.get_likelihood_parameters(indices=ROWS)
    assert parameters["mean"].shape == (4, 60)
    theta = trained.module.likelihood.theta.detach().numpy()
    np.testing.assert_allclose(parameters["dispersions"], np.broadcast_to(theta, (4, 60)), rtol=1e-5)


def test_differential_expression(trained):
    table = trained.differential_expression(
        groupby="cell_type", group1="type1", group2="type2", mode="change", silent=True
    )
    assert len(table) == 60 and {"lfc_mean", "proba_de"} <= set(table.columns)
    assert table["lfc_mean"].abs().max() > 0.1


def test_marginal_likelihood_is_not_offered(trained):
    with pytest.raises(NotImplementedError, match="importance sampling over its two latents.*`get_elbo`"):
        trained.get_marginal_ll()


@pytest.mark.parametrize("method", ["get_elbo", "get_reconstruction_error", "get_normalized_expression"])
def test_genes_of_new_data_are_matched_by_name(trained, method):
    import scvi

    def call(adata):
        scvi.settings.seed = 0
        value = getattr(trained, method)(adata)
        value = value["reconstruction_loss"] if isinstance(value, dict) else value
        return np.asarray(value, dtype=float)

    new = trained.adata.copy()
    new.uns = {}
    backwards = new[:, ::-1].copy()
    np.testing.assert_allclose(call(backwards), call(new), rtol=1e-6)
    with pytest.raises(ValueError, match="1 of the 60 genes the model was trained on"):
        call(new[:, 1:].copy())


def test_views_are_copied(trained):
    view = trained.adata[trained.adata.obs["cell_type"] == "type1"]
    rows = np.flatnonzero(trained.adata.obs["cell_type"] == "type1")
    values = []
    for call in (lambda: trained.get_elbo(view), lambda: trained.get_elbo(indices=rows)):
        scvi.settings.seed = 0
        values.append(float(call()))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_representation_and_setup_are_printed(trained, simulated, build, capsys):
    text = repr(trained)
    assert "CFMVC with n_latent: 6, n_latent_technical: 3" in text and "trained: autoencoder and flow" in text
    capsys.readouterr()
    trained.view_anndata_setup()
    printed = capsys.readouterr().out
    for part in ("perturbation", "control", "batch", "spatial"):
        assert part in printed
    assert "trained: nothing yet" in repr(build(simulated))


def test_managers_can_be_dropped(simulated, build, fit):
    model = fit(build(simulated), vae_max_epochs=1, flow_max_epochs=1)
    new = simulated.copy()
    model.get_elbo(new)
    reference = weakref.ref(new)
    del new
    model.deregister_manager()
    gc.collect()
    assert reference() is None
