"""A trained module with rows added to its tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.module.extend import set_batch, take_over

N_GENES = 20
SMALL = {"n_latent": 4, "n_latent_technical": 2, "n_hidden": 8, "n_basis": 3, "n_hidden_flow": 8}


def module(n_batch: int, n_labels: int, n_perturbation: int, std: float = 0.3, **more) -> CFMVCModule:
    torch.manual_seed(n_batch)
    made = CFMVCModule(N_GENES, n_batch, n_labels, n_perturbation, **SMALL, **more).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=std)
    return made


def cells(batch: int, counts: np.ndarray | None = None, n: int = 12) -> CellTable:
    counts = np.random.default_rng(0).poisson(3.0, size=(n, N_GENES)) if counts is None else counts
    context = FlowContext(torch.full((len(counts),), batch), torch.zeros(len(counts), dtype=torch.long))
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(counts))])
    library = counts.sum(axis=1).astype(np.float32)
    return CellTable(sparse.csr_matrix(counts.astype(np.float32)), obs, context, library, has_size_factor=False)


@torch.no_grad()
def answers(of: CFMVCModule, batch: int, p: torch.Tensor) -> list[torch.Tensor]:
    """Latents, decoded shares, dispersions and velocities of some cells."""
    table = cells(batch).batch(slice(None))
    z, technical = (q.loc for q in of.posterior_of(table))
    prior = of.technical_prior(table.context.batch)
    velocity = of.velocity(z, torch.full((len(z),), 0.3), table.context, p.expand(len(z), -1)).total
    share = of.decoder(z, technical, table.context.batch)
    theta = of.likelihood.in_batches(table.context.batch).log_theta_of_cells.expand(len(z), -1)
    return [z, technical, prior.loc, prior.scale, velocity, share, theta]


@pytest.mark.parametrize("n_batch", [1, 3])
@pytest.mark.parametrize("more", [{}, {"labels_in_effect": True, "labels_in_context": True}], ids=["plain", "labels"])
def test_the_trained_levels_keep_their_answers(n_batch, more):
    old, new = module(n_batch, 2, 3, **more), module(n_batch + 2, 4, 5, **more)
    take_over(new, old.state_dict(), [1, 0])
    p = torch.tensor([0.4, 0.0, 1.0])
    for batch in range(n_batch):
        for a, b in zip(answers(old, batch, p), answers(new, batch, torch.cat([p, p.new_zeros(2)])), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_dispersions_of_batches_are_extended():
    old, new = module(2, 1, 1, dispersion="gene-batch"), module(3, 1, 1, dispersion="gene-batch")
    take_over(new, old.state_dict(), [])
    np.testing.assert_allclose(new.likelihood.log_theta[2].detach(), old.likelihood.log_theta.detach().mean(dim=0))


def test_new_perturbations_do_nothing_and_new_types_are_like_their_model():
    old, new = module(2, 2, 1), module(2, 3, 2)
    take_over(new, old.state_dict(), [1])
    assert (new.coefficients(torch.tensor([[0.0, 1.0]]), torch.zeros(1, dtype=torch.long)) == 0).all()
    table = new.encoder.covariates.tables[1].weight
    assert torch.equal(table[2], table[1])


def test_a_new_batch_is_set_from_its_controls():
    """The decoded means of its cells become those observed; the batches that were there keep theirs."""
    old, new = module(2, 1, 1, std=0.1), module(3, 1, 1)
    take_over(new, old.state_dict(), [])
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(2.0, 5.0, N_GENES), size=(400, N_GENES))
    there = [answers(new, batch, torch.zeros(1)) for batch in range(2)]
    profiles = np.tile(rng.uniform(5.0, 7.0, N_GENES), (400, 1)).astype(np.float32)
    set_batch(new, 2, cells(2, counts), profiles)
    for batch in range(2):
        for a, b in zip(there[batch], answers(new, batch, torch.zeros(1)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    table = cells(2, counts).batch(slice(None))
    difference = table.lognorm.dense().mean(dim=0).numpy() - profiles[0]
    np.testing.assert_allclose(new.encoder.gene_offset[2], 400 / 410 * difference, rtol=1e-4, atol=1e-4)
    z, technical = (q.loc for q in new.posterior_of(table))
    share = new.decoder.share(z, technical, table.context.batch).detach()
    decoded = (share * table.library[:, None]).sum(dim=0).numpy()
    assert np.abs(np.log(decoded / counts.sum(axis=0))).mean() < 0.05
    assert torch.allclose(new.tech_prior_mean.weight[2], technical.mean(dim=0), atol=1e-5)
