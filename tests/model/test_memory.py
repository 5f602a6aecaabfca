"""Data given for one call are let go of after it."""

from __future__ import annotations

import gc
import os
import weakref

import numpy as np
import psutil
import pytest

from cfmvc_scvi import CFMVC

CALLS = {
    "predict_perturbation": lambda m, a: m.predict_perturbation(a, "P1"),
    "get_latent_representation": lambda m, a: m.get_latent_representation(a),
    "get_velocity": lambda m, a: m.get_velocity(a, "P1"),
    "get_elbo": lambda m, a: m.get_elbo(a),
    "get_reconstruction_error": lambda m, a: m.get_reconstruction_error(a),
    "get_normalized_expression": lambda m, a: m.get_normalized_expression(a),
    "get_likelihood_parameters": lambda m, a: m.get_likelihood_parameters(a),
    "posterior_predictive_sample": lambda m, a: m.posterior_predictive_sample(a[:30].copy()),
    "get_feature_correlation_matrix": lambda m, a: m.get_feature_correlation_matrix(a, n_samples=2),
    "differential_expression": lambda m, a: m.differential_expression(
        a, groupby="cell_type", group1="type1", silent=True
    ),
}


def fresh(model):
    adata = model.adata.copy()
    adata.uns = {}
    return adata


@pytest.mark.parametrize("name", CALLS)
def test_new_data_are_freed(trained, name):
    adata = fresh(trained)
    CALLS[name](trained, adata)
    reference = weakref.ref(adata)
    del adata
    gc.collect()
    assert reference() is None
    assert np.isfinite(float(trained.get_elbo()))  # its own data are still registered


def test_a_model_without_data_stays_without(trained, tmp_path):
    trained.save(str(tmp_path / "model"))
    model = CFMVC.load(str(tmp_path / "model"), adata=False)
    adata = fresh(trained)
    expected = trained.get_elbo()
    assert float(model.get_elbo(adata)) == pytest.approx(float(expected), rel=1e-3)
    assert float(model.get_elbo(adata)) == pytest.approx(float(expected), rel=1e-3)
    reference = weakref.ref(adata)
    del adata
    gc.collect()
    assert model.adata is None and reference() is None


@pytest.mark.slow
def test_many_predictions_hold_memory_flat(simulate, build, fit):
    """Predictions on fresh data of 20 MB each: after the first ten the process grows by less than one of them."""
    model = fit(build(simulate(n_cells=2000, n_genes=500)), vae_max_epochs=1, flow_max_epochs=1)
    process = psutil.Process(os.getpid())
    sizes = []
    for _ in range(40):
        model.predict_perturbation(fresh(model), "P1", indices=range(100))
        gc.collect()
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[9] < 20e6


def test_data_that_were_set_up_are_given_free_on_request(simulate, build):
    adata = simulate()
    model = build(adata)
    gone = weakref.ref(adata)
    CFMVC.deregister(adata)
    assert not [name for name in [*adata.obs, *adata.uns, *adata.obsm] if str(name).startswith("_scvi")]
    del adata, model
    gc.collect()
    assert gone() is None


def test_another_setup_and_its_models_stay(simulate, build):
    kept, other = build(simulate()), simulate()
    CFMVC.setup_anndata(other)
    CFMVC.deregister(other)
    with pytest.raises(ValueError, match="set up"):
        CFMVC(other)
    CFMVC(kept.adata)
