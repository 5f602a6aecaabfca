"""Covariance in blocks: systems of one and of several populations are solved alike."""

from __future__ import annotations

import numpy as np
import torch

from cfmvc_scvi.calibration.covariance import START, Terms, as_theta, covariance, negative_log_likelihood, solve


def terms(size: int, n_blocks: int = 3, n_genes: int = 2) -> Terms:
    rng = np.random.default_rng(0)
    shape = (n_genes, n_blocks, size)
    one = np.ones((n_blocks, size, size))
    effect, variance = rng.normal(size=shape), rng.uniform(0.1, 1.0, size=shape)
    arrays = (one, 0 * one, 0 * one, 0 * effect + 0.5, 0 * effect + 0.5, np.ones(n_genes), effect, variance)
    return Terms(*map(torch.from_numpy, arrays))


THETA = as_theta({**START, "mean_slope": -0.3})


def test_one_population_is_divided_and_several_are_solved():
    for size in (1, 3):
        matrix, residual = covariance(THETA, *terms(size))
        expected = torch.linalg.solve(matrix, residual[..., None])[..., 0]
        torch.testing.assert_close(solve(matrix, residual), expected)


def test_likelihood_is_the_sum_over_blocks():
    for size in (1, 3):
        matrix, residual = covariance(THETA, *terms(size))
        law = torch.distributions.MultivariateNormal(torch.zeros_like(residual), matrix)
        expected = -law.log_prob(residual).sum(dim=1).mean() - 0.5 * 3 * size * np.log(2 * np.pi)
        torch.testing.assert_close(negative_log_likelihood(THETA, *terms(size)), expected)
