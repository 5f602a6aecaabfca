"""Dispersion and batch offsets: their start values on simulated truths, and where they are used."""

import numpy as np
import pytest
import torch

from cfmvc_scvi.likelihood.dispersion import moment_log_theta
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.module.batch_effects import batch_log_ratios
from cfmvc_scvi.module.initialize import initialize_linear_paths


def draw(theta: float, n: int = 1500, n_genes: int = 80, n_strata: int = 3, depth: float = 1500.0, seed: int = 0):
    """Negative binomial counts, library sizes and strata with means of their own."""
    rng = np.random.default_rng(seed)
    stratum = rng.integers(n_strata, size=n)
    share = np.exp(rng.normal(0, 1, n_genes) + rng.normal(0, 0.5, (n_strata, n_genes)))
    library = depth * rng.lognormal(0, 0.3, n)
    mean = share[stratum] / share[stratum].sum(axis=1, keepdims=True) * library[:, None]
    rate = rng.gamma(theta, mean / theta) if np.isfinite(theta) else mean
    return rng.poisson(rate).astype(np.float32), library.astype(np.float32), stratum


@pytest.mark.parametrize("theta", [0.2, 3.0, 10.0])
def test_moments_find_the_dispersion(theta):
    found = moment_log_theta(*draw(theta))
    assert np.median(np.abs(found - np.log(theta))) < 0.15
    assert abs(np.median(found) - np.log(theta)) < 0.12


def test_moments_of_poisson_counts_add_little_variance():
    counts, library, stratum = draw(np.inf)
    mean = counts.mean(axis=0)
    extra = mean / np.exp(moment_log_theta(counts, library, stratum))  # variance over mean, less one
    assert np.median(extra) < 0.1


def test_moments_do_not_take_differences_between_strata_for_dispersion():
    counts, library, stratum = draw(10.0)
    apart = moment_log_theta(counts, library, stratum)
    together = moment_log_theta(counts, library, np.zeros_like(stratum))
    assert np.median(apart) > np.median(together) + 0.5


def test_cells_that_are_alone_and_genes_without_counts_say_nothing():
    counts, library, stratum = draw(3.0)
    counts[:, 0] = 0.0
    found = moment_log_theta(counts, library, stratum)
    assert np.isfinite(found).all()
    alone = moment_log_theta(counts[:5], library[:5], np.arange(5))
    assert np.isfinite(alone).all()
    added = moment_log_theta(
        np.r_[counts, 1000 + counts[:1]], np.r_[library, library[:1]], np.r_[stratum, stratum.max() + 1]
    )
    np.testing.assert_allclose(added, found, atol=1e-6)


def test_batch_ratios_are_those_of_the_rates_beside_groups_that_are_spread_unevenly():
    rng = np.random.default_rng(1)
    n, n_genes = 4000, 30
    group = rng.integers(3, size=n)
    batch = (rng.random(n) < np.array([0.2, 0.5, 0.8])[group]).astype(int)
    effect = rng.normal(0, 0.4, n_genes)
    log_rate = rng.normal(0, 1, (3, n_genes))[group] + np.where(batch[:, None] == 1, effect, -effect) / 2
    counts = rng.poisson(np.exp(log_rate)).astype(np.float32)
    found = batch_log_ratios(counts, np.full(n, 300.0), batch, group, 2)
    np.testing.assert_allclose(found.sum(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(found[1] - found[0], effect, atol=0.12)
    assert not batch_log_ratios(counts, np.full(n, 300.0), np.zeros(n, dtype=int), group, 1).any()


def test_start_values_reach_the_module():
    counts, library, group = draw(3.0)
    batch = np.arange(len(counts)) % 2
    counts[batch == 1, :10] = np.random.default_rng(0).binomial(counts[batch == 1, :10].astype(int), 0.5)
    module = CFMVCModule(80, 2, 1, 1, n_latent=4, n_latent_technical=2, n_hidden=16)
    initialize_linear_paths(module, counts.copy(), library, batch, group)
    log_theta = module.likelihood.log_theta.detach().numpy()
    assert log_theta.shape == (80,)
    assert float(np.median(log_theta)) == pytest.approx(np.log(3.0), abs=0.15)
    offset = module.decoder.offset_weight.detach().numpy()
    assert np.median(offset[:10, 0] - offset[:10, 1]) == pytest.approx(np.log(2.0), abs=0.1)
    moved = module.decoder(torch.zeros(2, 4), torch.zeros(2, 2), torch.tensor([0, 1]))
    assert (moved[0, :10] > moved[1, :10]).all()


def test_offsets_sum_to_zero_and_a_single_batch_has_none():
    module = CFMVCModule(12, 3, n_latent=4, n_latent_technical=2, n_hidden=16)
    torch.nn.init.normal_(module.decoder.output.weight)
    z = torch.zeros(3, 4), torch.zeros(3, 2)
    logits = module.decoder.logits(*z, torch.arange(3))
    torch.testing.assert_close(logits.mean(dim=0), module.decoder.logits(*z)[0])
    single = CFMVCModule(12, 1, n_latent=4, n_latent_technical=2, n_hidden=16).decoder
    assert single.n_offsets == 0
    torch.testing.assert_close(single(*z, torch.zeros(3, dtype=torch.long)), single(*z))
