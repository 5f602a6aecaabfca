"""The loss that training runs is the loss that scvi-tools' methods report."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.distributions import Normal

from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CountBatch, FlowContext
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.nn.gene_linear import GeneLinear

N, G = 30, 24


def batch_of(*, size_factor: bool = False, covariates: bool = False) -> CountBatch:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.4, 3.0, size=(N, G))).astype(np.float32)
    counts[2], counts[5, 1] = 0.0, 400.0
    library = np.maximum(counts.sum(axis=1), 1.0)
    batch, labels = (torch.tensor(rng.integers(n, size=N)) for n in (2, 3))
    further = torch.tensor(rng.integers(4, size=(N, 1))) if covariates else None
    continuous = torch.tensor(rng.normal(size=(N, 1)), dtype=torch.float32) if covariates else None
    return CountBatch(
        counts=SparseRows.from_scipy(sparse.csr_matrix(counts)),
        library=torch.from_numpy(library * (3.0 if size_factor else 1.0)),
        context=FlowContext(batch, labels, further, continuous),
        has_size_factor=size_factor,
    )


def module_for(**kwargs) -> CFMVCModule:
    torch.manual_seed(0)
    module = CFMVCModule(G, 2, 3, 4, n_latent=5, n_latent_technical=3, n_hidden=16, **kwargs)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return module


@pytest.mark.parametrize(
    ("options", "data"),
    [
        ({}, {}),
        ({"n_layers_decoder": 0}, {}),
        ({"n_layers_decoder": 2, "kl_weight_intrinsic": 0.7}, {}),
        ({"panel": True}, {"size_factor": True}),
        ({"n_cats_per_cov": [4], "n_continuous_cov": 1}, {"covariates": True}),
    ],
)
@pytest.mark.parametrize("as_sparse", [True, False])
def test_terms_and_gradients_are_those_of_the_reported_loss(monkeypatch, options, data, as_sparse):
    """With the posterior mean in place of a draw, which the two ways take from the generator differently."""
    monkeypatch.setattr(GeneLinear, "SPARSE_BELOW", float(as_sparse))
    monkeypatch.setattr(torch, "randn", torch.zeros)
    monkeypatch.setattr(Normal, "rsample", lambda self, shape=(): self.loc)
    module, batch = module_for(**options), batch_of(**data)
    terms = module.elbo_terms(batch)
    parameters = [p for part in module.vae_parts for p in part.parameters()]
    ours = torch.autograd.grad(terms.loss(0.6), parameters)

    _, _, reported = module(module.tensors(batch), loss_kwargs={"kl_weight": 0.6})
    expected = torch.autograd.grad(reported.loss, parameters)
    assert terms.loss(0.6).item() == pytest.approx(reported.loss.item(), rel=1e-6)
    assert terms.reconstruction.item() == pytest.approx(
        reported.reconstruction_loss["reconstruction_loss"].mean().item()
    )
    for ours_kl, name in ((terms.kl_intrinsic, "intrinsic"), (terms.kl_technical, "technical")):
        assert ours_kl.item() == pytest.approx(reported.kl_local[f"kl_divergence_{name}"].mean().item(), rel=1e-5)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * (1.0 + b.abs().max().item()))
