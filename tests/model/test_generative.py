"""What stage 1 learns of simulated truths: dispersion, and the effect of a batch, which stays out of the latent."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from cfmvc_scvi import CFMVC, data, metrics
from cfmvc_scvi.likelihood.negative_binomial import expected_lognorm
from cfmvc_scvi.prediction.request import default_solver

pytestmark = pytest.mark.slow
QUIET = {"enable_progress_bar": False}


def mean_level(x):
    return np.asarray(metrics.log1p_cp10k(x).mean(axis=0)).ravel()


@pytest.mark.parametrize("theta", [0.2, 3.0])
def test_cells_drawn_from_the_posterior_vary_as_the_cells_do(theta):
    rng = np.random.default_rng(0)
    condition = rng.choice(["control", "A"], 900)
    log_mean = np.tile(rng.normal(0, 1, 120), (900, 1))
    log_mean[:, :10] += (condition == "A")[:, None]
    mean = np.exp(log_mean) * rng.lognormal(0, 0.2, (900, 1))
    mean *= 2000 * len(mean) / mean.sum()
    counts = rng.poisson(rng.gamma(theta, mean / theta)).astype(np.float32)
    obs = pd.DataFrame({"perturbation": condition}, index=[f"c{i}" for i in range(900)])
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs)
    scvi.settings.seed = 0
    CFMVC.setup_anndata(adata)
    model = CFMVC(adata)
    model.train_vae(**QUIET)
    drawn = np.asarray(model.posterior_predictive_sample(n_samples=1).todense()).reshape(counts.shape)
    assert 0.8 < np.median(drawn.var(axis=0) / counts.var(axis=0)) < 1.4


def test_a_dispersion_per_gene_and_batch_finds_each(tmp_path):
    rng = np.random.default_rng(0)
    n, n_genes = 1600, 80
    obs = pd.DataFrame(
        {"perturbation": rng.choice(["control", "A"], n), "batch": rng.choice(["x", "y"], n)},
        index=[f"c{i}" for i in range(n)],
    )
    log_mean = np.tile(rng.normal(0, 1, n_genes), (n, 1))
    log_mean[:, :10] += (obs["perturbation"] == "A").to_numpy()[:, None]
    mean = np.exp(log_mean) / np.exp(log_mean).sum(axis=1, keepdims=True) * 1500
    theta = np.where(obs["batch"] == "x", 0.4, 6.0)[:, None]
    counts = rng.poisson(rng.gamma(np.broadcast_to(theta, mean.shape), mean / theta)).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs)
    scvi.settings.seed = 0
    CFMVC.setup_anndata(adata, batch_key="batch", labels_key=None)
    model = CFMVC(adata, dispersion="gene-batch")
    model.train(flow_max_epochs=2, **QUIET)
    found = dict(zip(model.batches, model.module.likelihood.theta.detach().numpy(), strict=True))
    assert np.median(found["x"]) == pytest.approx(0.4, rel=0.2)
    assert np.median(found["y"]) == pytest.approx(6.0, rel=0.35)
    drawn = [model.generate_cells("A", 400, batch=name, return_type="counts").X for name in ("x", "y")]
    spread = [np.asarray(x.todense()).var(axis=0) for x in drawn]
    assert np.median(spread[0] / spread[1]) > 3
    model.save(str(tmp_path / "model"))
    again = CFMVC.load(str(tmp_path / "model"), adata=adata)
    kinds = ("counts", "mean", "lognorm")
    for kind in kinds:
        before, after = (m.predict_perturbation(perturbation="A", return_type=kind).X for m in (model, again))
        assert abs(before - after).max() == 0


@pytest.fixture(scope="module")
def screen():
    """A simulated screen of two batches and a model of it."""
    adata = data.simulate_perturbation(spatial=False)
    scvi.settings.seed = 0
    CFMVC.setup_anndata(adata)
    model = CFMVC(adata)
    model.train(flow_max_epochs=2, **QUIET)
    return adata, model


def test_choosing_a_batch_moves_cells_most_of_the_way(screen):
    adata, model = screen
    there, here = model.batches
    control = (adata.obs["perturbation"] == "control") & (adata.obs["batch"] == here)
    source = adata[control.to_numpy()].copy()
    library = np.asarray(source.X.sum(axis=1)).ravel()
    theta = adata.var["dispersion"].to_numpy()
    levels = [
        expected_lognorm(data.counterfactual_mean(source, "control", batch=name), theta, library).mean(axis=0)
        for name in (there, here)
    ]
    moved = model.predict_perturbation(source, "control", batch=there)
    slope = np.polyfit(levels[0] - levels[1], mean_level(moved.X) - mean_level(source.X), 1)[0]
    assert 0.85 < slope < 1.15
    by_parts = model.predict_perturbation(source, "control", batch=there, batch_size=7)
    np.testing.assert_allclose(by_parts.X, moved.X, rtol=1e-5, atol=1e-6)
    stayed = model.predict_perturbation(source, "control", batch=here)
    np.testing.assert_allclose(stayed.X, source.X.toarray(), rtol=1e-6)


def test_without_a_calibration_choosing_a_batch_decodes_alone(screen):
    adata, model = screen
    there, here = model.batches
    source = adata[(adata.obs["batch"] == here).to_numpy()][:50].copy()
    calibrated = model.calibration_
    try:
        model.calibrate(None)
        decoded = model.predict_perturbation(source, "control", batch=there)
        assert (model.calibration_.batch_shift(np.array([0]), 0, default_solver()) == 0).all()
    finally:
        model.calibration_ = calibrated
    assert np.abs(model.predict_perturbation(source, "control", batch=there).X - decoded.X).max() > 0.01


def test_batch_is_not_readable_from_the_intrinsic_latent(screen):
    adata, model = screen
    z, batch = model.get_latent_representation(), adata.obs["batch"].astype(str).to_numpy()
    found = cross_val_score(LogisticRegression(max_iter=2000), z, batch, cv=5, scoring="balanced_accuracy").mean()
    assert found < 0.62
