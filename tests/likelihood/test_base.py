"""A likelihood that a user adds: a Poisson, one class and one call, trains and predicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scvi.distributions import Poisson
from torch import nn

from cfmvc_scvi import CFMVC
from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CountBatch, FlowContext
from cfmvc_scvi.likelihood import LIKELIHOODS, Likelihood, get_likelihood, register_likelihood


class PoissonLikelihood(Likelihood):
    """Counts that differ between like cells by chance alone."""

    def log_prob(self, x, log_mean):
        return x * log_mean - log_mean.exp() - torch.lgamma(x + 1.0)

    def distribution(self, mean, share):
        return Poisson(mean, scale=share)

    def expected_lognorm(self, mean, library):
        unit = library[:, None] / 1e4
        return np.log1p(mean / unit) - 0.5 * mean / (unit + mean) ** 2  # the delta method will do

    def draw(self, mean, rng):
        return rng.poisson(mean)

    def draw_counterfactual(self, x, mean0, log_ratio, rng):
        thinned = rng.binomial(x.astype(np.int64), np.exp(np.minimum(log_ratio, 0.0)))
        return thinned + rng.poisson(mean0 * np.expm1(np.maximum(log_ratio, 0.0)))


@pytest.fixture
def poisson():
    register_likelihood("poisson", PoissonLikelihood)
    yield "poisson"
    del LIKELIHOODS["poisson"]


def test_unknown_names_list_those_that_are_known():
    with pytest.raises(ValueError, match=r"Unknown `gene_likelihood` 'poisson': choose one of \['nb'\]"):
        get_likelihood("poisson", 3)


def test_what_is_registered_is_made_for_the_genes(poisson):
    assert get_likelihood("poisson", 7).n_genes == 7


def test_a_likelihood_without_its_methods_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Likelihood(3)


@pytest.mark.parametrize("panel", [False, True])
def test_default_loss_is_the_likelihood_of_counts_that_share_the_library(panel):
    """Without features every gene has the same logit, so the means are known: L / G, or L / (G + 1) with a panel."""
    counts, library = np.array([[3.0, 0.0, 1.0], [2.0, 2.0, 9.0]], dtype=np.float32), torch.tensor([4.0, 26.0])
    codes = torch.zeros(2, dtype=torch.long)
    batch = CountBatch(SparseRows.from_scipy(sparse.csr_matrix(counts)), library, FlowContext(codes, codes))
    output = nn.Linear(2, 3)
    nn.init.zeros_(output.weight), nn.init.zeros_(output.bias)
    loss = PoissonLikelihood(3).reconstruction_loss(torch.randn(2, 2), output, batch, panel=panel)
    mean = (library / (4 if panel else 3)).unsqueeze(1).expand(2, 3)
    expected = -torch.distributions.Poisson(mean).log_prob(torch.from_numpy(counts)).sum(dim=1).mean()
    torch.testing.assert_close(loss, expected)


def test_a_poisson_trains_predicts_and_is_saved(poisson, simulated, build, fit, tmp_path):
    model = fit(build(simulated, gene_likelihood=poisson), vae_max_epochs=8, vae_plan_kwargs={"lr": 0.01})
    losses = model.history["reconstruction_loss_train"].to_numpy(dtype=float).ravel()
    assert losses[-1] < losses[0]
    result = model.predict_perturbation(perturbation=["control", "P1"], return_type="counts")
    n = len(result) // 2
    own = simulated[result.obs["source_cell"][:n].tolist()].X
    assert (result.X[:n] != own).nnz == 0 and (result.X[n:] != own).nnz > 0
    assert (result.X.data == np.floor(result.X.data)).all()
    model.save(tmp_path / "model")
    loaded = CFMVC.load(tmp_path / "model", adata=simulated)
    assert isinstance(loaded.module.likelihood, PoissonLikelihood)
    expected = model.predict_perturbation(perturbation="P1").X
    np.testing.assert_array_equal(loaded.predict_perturbation(perturbation="P1").X, expected)
    assert float(loaded.get_elbo()) == pytest.approx(float(model.get_elbo()), rel=0.05)


def test_a_likelihood_without_a_dispersion_per_batch_says_so(poisson):
    with pytest.raises(ValueError, match=r"Unknown `dispersion` 'gene-batch': choose one of \['gene'\]"):
        get_likelihood(poisson, 3, "gene-batch", 2)
    assert get_likelihood("nb", 3, "gene-batch", 2).log_theta.shape == (2, 3)
