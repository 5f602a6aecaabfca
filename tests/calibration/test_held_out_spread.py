import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi import CFMVC
from cfmvc_scvi.calibration.held_out_spread import _factor, _towards_typical, keep_signal, populations_of

RNG = np.random.default_rng(0)


def test_kept_deviations_leave_the_mean_counts_of_a_population():
    share, library = RNG.normal(-3, 1, (60, 7)), RNG.uniform(100, 5000, 60)
    population = np.repeat([4, 0, 9], [30, 20, 10])
    signal = np.linspace(0.0, 0.9, 7)
    kept = keep_signal(share, library, population, signal)
    for code in np.unique(population):
        rows = population == code
        before, after = (library[rows] @ np.exp(x[rows]) for x in (share, kept))
        np.testing.assert_allclose(after, before)
        np.testing.assert_allclose(kept[rows].std(axis=0), signal * share[rows].std(axis=0), atol=1e-12)
    assert keep_signal(share, library, population, np.ones(7)) is share


def test_a_population_of_one_cell_keeps_its_shares():
    share = RNG.normal(size=(3, 4))
    np.testing.assert_allclose(keep_signal(share, np.ones(3), np.arange(3), np.full(4, 0.3)), share)


def test_small_populations_are_pooled_over_the_perturbations_of_their_batch_and_type():
    batch, labels = np.zeros(12, dtype=int), np.zeros(12, dtype=int)
    condition = np.r_[np.zeros(6), [1, 1, 2, 2, 3, 3]].astype(int)
    codes = populations_of(batch, labels, condition)
    assert len(set(codes[:6])) == 1
    assert len(set(codes[6:])) == 1
    assert codes[0] != codes[6]
    apart = populations_of(np.arange(12) % 2, labels, condition)
    assert apart[6] != apart[7]


def test_slopes_without_scatter_beyond_their_errors_are_the_common_one():
    information = np.array([1.0, 10.0, 100.0, 0.0])
    np.testing.assert_allclose(_towards_typical(0.5 * information, information), 0.5)
    apart = _towards_typical(np.array([0.1, 0.9, 0.1, 0.9]) * 1e8, np.full(4, 1e8))
    np.testing.assert_allclose(apart, [0.1, 0.9, 0.1, 0.9], atol=1e-3)
    assert not _towards_typical(np.zeros(2), np.zeros(2)).any()


def test_factor_gives_the_spread_that_is_wanted():
    share, library = RNG.normal(0, 0.5, (4000, 2)), np.full(4000, 100.0)
    wanted = np.array([0.05, 10.0])  # beyond what the deviations hold: they stay as they are
    factor = _factor(share, library, np.zeros(4000, dtype=int), wanted)
    np.testing.assert_allclose(factor[0] * 0.5, np.sqrt(np.log1p(0.05)), rtol=0.05)  # of a log-normal
    assert factor[1] == 1.0


def simulate(theta: float, n: int = 900, n_genes: int = 100) -> AnnData:
    """Cells of one population whose rates do not vary but by library size."""
    rng = np.random.default_rng(1)
    mean = rng.lognormal(0, 1, n_genes) * rng.lognormal(2, 0.2, (n, 1))
    x = rng.poisson(rng.gamma(theta, mean / theta))
    obs = pd.DataFrame({"perturbation": np.where(np.arange(n) % 2, "A", "control")}, index=[f"c{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs)


@pytest.fixture(scope="module")
def fitted() -> CFMVC:
    """Stage 1 on cells of theta 3."""
    adata = simulate(3.0)
    CFMVC.setup_anndata(adata)
    model = CFMVC(adata, n_latent=16, n_hidden=64)
    model.train_vae(60, enable_progress_bar=False)
    return model


@pytest.mark.slow
def test_dispersion_is_the_true_one_and_nothing_is_left_to_the_latent(fitted):
    likelihood = fitted.module.likelihood
    error = np.abs(likelihood.log_theta.detach().numpy() - np.log(3.0))
    assert np.median(error) < 0.2
    assert np.median(np.abs(likelihood.learned_log_theta.numpy() - np.log(3.0))) > 2 * np.median(error)
    assert fitted.module.gene_signal.median() < 0.2
    check = fitted.posterior_predictive_check(seed=0).genes
    assert (check["variance_drawn"] / check["variance"]).median() == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_changes_of_observed_cells_keep_the_dispersion_of_training(fitted):
    likelihood, mean = fitted.module.likelihood, np.full((2, 100), 5.0, dtype=np.float32)
    library = np.full(2, 500.0, dtype=np.float32)
    with_learned = likelihood.expected_lognorm(mean, library)
    kept = likelihood.log_theta.detach().clone()
    likelihood.log_theta.data.fill_(-2.0)
    np.testing.assert_array_equal(likelihood.expected_lognorm(mean, library), with_learned)
    likelihood.log_theta.data.copy_(kept)
    likelihood.back_to_training()
    assert likelihood.learned_log_theta.isinf().all()
    np.testing.assert_array_equal(likelihood.expected_lognorm(mean, library), with_learned)
    fitted._finish_vae(fitted._read(fitted.adata))
    assert torch.equal(likelihood.log_theta.detach(), kept)


@pytest.mark.slow
def test_without_validation_cells_the_spread_stays_as_it_was_learned():
    adata = simulate(3.0, n=200, n_genes=30)
    CFMVC.setup_anndata(adata)
    model = CFMVC(adata, n_latent=4, n_hidden=16)
    model.train_vae(2, train_size=1.0, enable_progress_bar=False)
    assert (model.module.gene_signal == 1.0).all()
    assert model.module.likelihood.learned_log_theta.isinf().all()
