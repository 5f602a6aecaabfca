r"""Which experiments would tell most: greedy reduction of the variance of the process's mean effects.

The estimates of some conditions have errors of covariance :math:`C` in a gene. Measuring condition j with sampling
variance :math:`v_j` and combining it with the estimates leaves

.. math:: C' = C - \frac{C_{\cdot j} C_{j \cdot}}{C_{jj} + v_j}

(Rasmussen and Williams, 2006, eq. 2.26, one observation at a time; where C is the posterior covariance of the process,
C' is that of the process with the observation added). It does not depend on what will be measured, so experiments can
be compared before they are made. The variance summed over targets falls by :math:`\sum_t C_{tj}^2 / (C_{jj} + v_j)`.
One after another the experiment of the largest fall is taken, summed over genes (active learning after Cohn, 1996).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Design:
    """Experiments in the order in which they are best made.

    Attributes
    ----------
    chosen
        Their places among the conditions, shape (n,).
    variance
        Variance of the targets, mean over targets and genes: before, and after each experiment, shape (n + 1,).
    """

    chosen: np.ndarray
    variance: np.ndarray


def choose_experiments(
    covariance: Float[np.ndarray, "n_genes k k"],
    noise: Float[np.ndarray, "n_genes k"],
    candidates: Int[np.ndarray, " m"],
    targets: Int[np.ndarray, " t"],
    n: int,
) -> Design:
    """Experiments that reduce the variance of the targets most, each taken once.

    Parameters
    ----------
    covariance
        Covariance of the errors of k conditions, for every gene.
    noise
        Sampling variance that measuring a condition would have.
    candidates, targets
        Places of the conditions that can be measured, and of those that are to be known.
    n
        Number of experiments; at most as many as candidates.
    """
    left = covariance.copy()
    open_, chosen = list(map(int, candidates)), []
    variance = [_mean_variance(left, targets)]
    for _ in range(min(n, len(open_))):
        total = np.einsum("gjj->gj", left)[:, open_] + noise[:, open_]
        shared = left[:, targets[:, None], np.array(open_)]
        gain = np.einsum("gtj,gj->j", shared**2, 1.0 / np.maximum(total, 1e-12))
        best = open_.pop(int(gain.argmax()))
        left = observed(left, noise, best)
        chosen.append(best)
        variance.append(_mean_variance(left, targets))
    return Design(np.array(chosen, dtype=int), np.array(variance))


def observed(
    covariance: Float[np.ndarray, "n_genes k k"], noise: Float[np.ndarray, "n_genes k"], at: int
) -> Float[np.ndarray, "n_genes k k"]:
    """Covariance of the errors when the condition at this place has been measured."""
    column = covariance[:, :, at]
    total = np.maximum(column[:, at] + noise[:, at], 1e-12)
    return covariance - column[:, :, None] * (column / total[:, None])[:, None, :]


def _mean_variance(covariance: np.ndarray, targets: np.ndarray) -> float:
    return float(np.einsum("gjj->gj", covariance)[:, targets].mean())
