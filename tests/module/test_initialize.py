"""Start values of stage 1: batch effects beside groups, and the memory they are computed in."""

import numpy as np
import torch

from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.module.batch_effects import batch_effects
from cfmvc_scvi.module.initialize import initialize_linear_paths


def test_batch_effects_are_those_of_the_joint_ridge_regression():
    rng = np.random.default_rng(0)
    batch, group = rng.integers(3, size=200), rng.integers(7, size=200)
    y = (rng.normal(size=(200, 5)) + batch[:, None] + np.sin(group)[:, None]).astype(np.float32)
    design = np.c_[np.eye(3)[batch], np.eye(7)[group]]
    penalty = np.diag(np.r_[np.full(3, 1.0), np.full(7, 1e-3)])
    expected = np.linalg.solve(design.T @ design + penalty, design.T @ y)[:3]
    ours = batch_effects(y, batch, group, 3)
    np.testing.assert_allclose(ours, expected - expected.mean(axis=0), atol=1e-5)
    assert not batch_effects(y, np.zeros(200, dtype=int), group, 1).any()


def test_the_components_are_computed_in_the_memory_of_the_counts():
    rng = np.random.default_rng(1)
    counts = rng.poisson(2.0, size=(60, 12)).astype(np.float32)
    library, before = counts.sum(axis=1), counts.copy()
    module = CFMVCModule(12, 1, 1, 1, n_latent=3, n_latent_technical=2, n_hidden=8)
    zeros = np.zeros(60, dtype=int)
    initialize_linear_paths(module, counts, library, zeros, zeros)
    y = np.log1p(before / library[:, None] * 1e4)
    np.testing.assert_allclose(counts, y - y.mean(axis=0), atol=2e-5)
    _, _, axes = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    found = module.encoder.linear_weight.T.detach().numpy()
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(found @ axes[:3].T), np.eye(3), atol=0.05)
    share = before.sum(axis=0) + 0.5
    torch.testing.assert_close(
        module.decoder.output.bias.detach(), torch.from_numpy(np.log(share / share.sum())).float()
    )
