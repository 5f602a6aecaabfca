"""Start value of the dispersion: the method of moments."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def moment_log_theta(
    counts: np.ndarray, library: np.ndarray, stratum: np.ndarray, towards: np.ndarray | None = None
) -> np.ndarray:
    r"""Log of the inverse dispersion of every gene by the method of moments, from cells of like means.

    .. math:: \frac{1}{\theta_g} = \frac{\sum_i \left[ \frac{n_i}{n_i - 1} (x_{ig} - \mu_{ig})^2 - \mu_{ig} \right]}
              {\sum_i \mu_{ig}^2}, \qquad \mu_{ig} = L_i \frac{\sum_{j \sim i} x_{jg}}{\sum_{j \sim i} L_j}

    with :math:`j \sim i` the :math:`n_i` cells of i's stratum. What a gene with few counts says is drawn towards the
    median gene, or its own value ``towards``, by its standard error under the Poisson,
    :math:`\sqrt{\sum_i (\mu_{ig} + 2 \mu_{ig}^2)} / \sum_i \mu_{ig}^2`. Kept within [0.02, 1000].

    Parameters
    ----------
    counts
        Shape (n, n_genes), dense.
    library, stratum
        Library sizes and codes of the strata (cells of one batch, cell type and perturbation, say), shape (n,).
    towards
        Log of the inverse dispersion in more cells than these, shape (n_genes,).

    Returns
    -------
    Shape (n_genes,), float32.
    """
    member = sparse.csr_matrix((np.ones(len(counts)), (stratum, np.arange(len(counts)))))
    size = np.asarray(member.sum(axis=1)).ravel()
    rate = (member @ counts) / np.maximum(member @ library.astype(np.float64), 1.0)[:, None]
    excess, square, noise = np.zeros((3, counts.shape[1]))
    for start in range(0, len(counts), 2048):
        rows = slice(start, start + 2048)
        mean = rate[stratum[rows]] * library[rows, None]
        n = size[stratum[rows]][:, None]
        usable = n > 1
        excess += np.where(usable, (counts[rows] - mean) ** 2 * (n / np.maximum(n - 1, 1)) - mean, 0.0).sum(axis=0)
        square += np.where(usable, mean**2, 0.0).sum(axis=0)
        noise += np.where(usable, mean + 2.0 * mean**2, 0.0).sum(axis=0)
    seen = square > 0
    if not seen.any():
        return np.zeros(counts.shape[1], dtype=np.float32) if towards is None else towards
    square = np.maximum(square, 1e-12)
    phi, variance = excess / square, noise / square**2
    if towards is None:
        typical = np.full(len(phi), max(float(np.median(phi[seen & (variance <= np.median(variance[seen]))])), 1e-3))
    else:
        typical = np.exp(-towards.astype(np.float64))
    weight = np.where(seen, typical**2 / (typical**2 + variance), 0.0)
    phi = np.clip(weight * phi + (1.0 - weight) * typical, 1e-3, 50.0)
    return -np.log(phi).astype(np.float32)
