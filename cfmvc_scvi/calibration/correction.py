"""Corrections of decoded changes: shift, spread and rate that give a gene the mean effect it should have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cfmvc_scvi.likelihood import Likelihood

#: Counts per cell up to which, and from which on no longer, the mean of the counts is set by the rates.
_SHALLOW, _DEEP = 200.0, 400.0


@dataclass(frozen=True)
class GeneCorrection:
    """Corrections of the decoded change, by cell type; every array has shape (n_labels, n_genes).

    Attributes
    ----------
    lognorm
        Added to the decoded change of log1p CP10k.
    scale, center
        Factor on the spread of the gene over cells, and the level it spreads around.
    log_ratio
        Added to the decoded log ratio of the likelihood's mean.
    count_scale
        Factor on the expected counts of shallow cells, see :func:`count_scale`.
    """

    lognorm: np.ndarray
    scale: np.ndarray
    center: np.ndarray
    log_ratio: np.ndarray
    count_scale: np.ndarray

    @classmethod
    def neutral(cls, profiles: np.ndarray) -> GeneCorrection:
        """Changes nothing, for genes at these levels (n_labels, n_genes)."""
        zeros = np.zeros_like(profiles)
        return cls(zeros, np.ones_like(profiles), profiles.copy(), zeros.copy(), np.ones_like(profiles))


def spread_factor(variance: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Factor on the standard deviation of a gene whose variance changes by ``change``, kept within [0.5, 3]."""
    moved = np.maximum(variance + change, 0.0)
    return np.clip(np.sqrt((moved + 1e-3) / (variance + 1e-3)), 0.5, 3.0)


def solve_shift(moved: np.ndarray, level: np.ndarray, highest: np.ndarray, n_iterations: int = 30) -> np.ndarray:
    """Shift per gene after which the mean over cells of ``moved``, kept within 0 and ``highest``, is ``level``.

    The mean rises with the shift, so halving the interval that holds the solution finds it.

    Parameters
    ----------
    moved
        Log1p CP10k of the cells after their decoded change, shape (n, n_genes).
    level, highest
        Wanted mean and upper bound of every gene, shape (n_genes,).
    """
    level = np.clip(level, 0.0, highest)
    high = level - moved.min(axis=0)
    low = -moved.max(axis=0)
    shifted = np.empty(moved.shape, dtype=np.result_type(moved, low))
    for _ in range(n_iterations):
        middle = 0.5 * (low + high)
        np.add(moved, middle, out=shifted)
        np.minimum(np.maximum(shifted, 0.0, out=shifted), highest, out=shifted)
        above = shifted.mean(axis=0) > level
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)


def solve_log_ratio(
    log_share: np.ndarray, likelihood: Likelihood, library: np.ndarray, level: np.ndarray, n_iterations: int = 6
) -> np.ndarray:
    """Log factor per gene on the means that gives this mean of log1p CP10k, by damped Newton steps.

    Parameters
    ----------
    log_share
        Log share of every gene after the decoded change, shape (n, n_genes).
    likelihood
        Distribution of the counts.
    library
        Library sizes, shape (n,).
    level
        Wanted mean of log1p CP10k of every gene, shape (n_genes,).
    """
    ratio = np.zeros_like(level)
    level = np.maximum(level, 1e-4)
    for _ in range(n_iterations):
        now = likelihood.expected_lognorm(np.exp(log_share + ratio) * library[:, None], library).mean(axis=0)
        step = np.log(np.expm1(level) + 1e-3) - np.log(np.expm1(np.maximum(now, 0.0)) + 1e-3)
        ratio = np.clip(ratio + np.clip(step, -1.5, 1.5), -6.0, 6.0)
    return ratio


def shallowness(library: np.ndarray) -> float:
    """How far the counts of cells need :func:`count_scale`: 1 below 200 counts per cell, falling to 0 at 400."""
    return float(np.clip(np.log(_DEEP / np.median(library)) / np.log(_DEEP / _SHALLOW), 0.0, 1.0))


def count_scale(x: np.ndarray, expected: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    r"""Factor per gene on expected counts, after which their mean over cells changes as the mean of the rates does.

    .. math:: f_g = \frac{\bar x_g \, \bar\mu'_g / \bar\mu_g + \epsilon}{\bar{x}'_g + \epsilon}, \qquad
              \epsilon = \frac{1}{2 n}

    A shift of log1p multiplies a count and adds next to nothing to a zero, whereas a higher rate turns zeros into
    counts. Where one count is worth little on the log scale both come to the same; in cells of some tens of counts a
    single one is worth 5 or 6, and the mean of shifted counts would be off by a quarter.

    Parameters
    ----------
    x, expected
        Counts observed, and expected after the shift, shape (n, n_genes).
    before, after
        Means of the likelihood :math:`\mu, \mu'`, shape (n, n_genes).
    """
    epsilon = 0.5 / len(x)
    target = x.mean(axis=0) * after.mean(axis=0) / np.maximum(before.mean(axis=0), 1e-9)
    return np.clip((target + epsilon) / (expected.mean(axis=0) + epsilon), 0.25, 4.0)
