"""What batches do to all cells alike, beside biological groups."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def batch_effects(y: np.ndarray, batch: np.ndarray, group: np.ndarray, n_batch: int, ridge: float = 1.0) -> np.ndarray:
    """Effect of every batch on every gene, beside the groups; shape (n_batch, n_genes), summing to about zero.

    The groups are eliminated from the normal equations first, where they are a diagonal: many of them cost little.
    """
    if n_batch == 1:
        return np.zeros((1, y.shape[1]), dtype=np.float32)
    by_batch, by_group = one_hot(batch, n_batch), one_hot(group, int(group.max()) + 1)
    together = (by_batch @ by_group.T).toarray()
    share = together / (np.asarray(by_group.sum(axis=1)).ravel() + 1e-3)
    left = np.diag(np.asarray(by_batch.sum(axis=1)).ravel() + ridge) - share @ together.T
    effects = np.linalg.solve(left, by_batch @ y - share @ (by_group @ y))
    return (effects - effects.mean(axis=0)).astype(np.float32)


def batch_log_ratios(
    counts: np.ndarray,
    library: np.ndarray,
    batch: np.ndarray,
    group: np.ndarray,
    n_batch: int,
    pseudocount: float = 2.0,
    n_iterations: int = 10,
) -> np.ndarray:
    r"""Log factor of every batch on the rate of every gene, beside factors of the groups.

    Of the model :math:`E\,x_{ig} = L_i\, a_{c(i) g}\, e^{o_{s(i) g}}` with groups c and batches s, by turns
    :math:`a_{cg} = \sum_{i \in c} x_{ig} / \sum_{i \in c} L_i e^{o_{s(i) g}}` and the same for the batches with a
    pseudocount in both sums: iterative proportional fitting (Deming and Stephan 1940), the maximum of the Poisson
    likelihood.

    Returns
    -------
    Shape (n_batch, n_genes), float32, summing to zero over the batches.
    """
    n_groups = int(group.max()) + 1
    together = sparse.csr_matrix((library.astype(np.float64), (group, batch)), (n_groups, n_batch))
    by_group = one_hot(group, n_groups) @ counts
    by_batch = one_hot(batch, n_batch) @ counts
    ratio = np.ones(by_batch.shape)
    for _ in range(n_iterations):
        rate = by_group / np.maximum(together @ ratio, 1e-9)
        expected = together.T @ rate
        ratio = (by_batch + pseudocount) / (expected + pseudocount)
    log_ratio = np.log(ratio)
    return (log_ratio - log_ratio.mean(axis=0)).astype(np.float32)


def one_hot(codes: np.ndarray, n_levels: int) -> sparse.csr_matrix:
    """Membership of the cells, shape (n_levels, n)."""
    ones = np.ones(len(codes), dtype=np.float32)
    return sparse.csr_matrix((ones, (codes, np.arange(len(codes)))), shape=(n_levels, len(codes)))
