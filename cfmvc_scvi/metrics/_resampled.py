"""Energy distances over resampled cells: how far a distance is uncertain because cells are few."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.metrics._population import _euclidean


class ResampledEnergy:
    r"""Energy distances of several samples to one target, as given and over the same bootstrap resamples of its cells.

    The distance is the U-statistic of :func:`cfmvc_scvi.metrics.energy_distance`. Of a resample with counts :math:`c_i`
    of the n cells the mean distance within is that over pairs of different cells, :math:`\sum_{i \ne j} c_i c_j d_{ij}
    / \sum_{i \ne j} c_i c_j`: a cell and its own copy, at distance zero, tell nothing of the spread.

    Parameters
    ----------
    target
        Cells of the target, shape (m, d).
    n_cells
        Cells of every sample. Row i of each is the same source cell, so it is resampled alike in all of them.
    n_resamples, seed
        Resamples, and their seed.
    """

    def __init__(self, target: np.ndarray, n_cells: int, n_resamples: int, seed: int) -> None:
        if len(target) < 2 or n_cells < 2:
            raise ValueError(f"The energy distance needs two cells in each sample, not {n_cells} and {len(target)}.")
        rng = np.random.default_rng(seed)
        self._target = np.asarray(target, dtype=np.float64)
        self._of_target, self._of_sample = (_counts(rng, n, n_resamples) for n in (len(target), n_cells))
        self._within_target = _within(self._target, self._of_target)

    def distances(self, sample: np.ndarray) -> np.ndarray:
        """Distance of a sample (n_cells, d) to the target, and then that of every resample; (1 + n_resamples,)."""
        sample = np.asarray(sample, dtype=np.float64)
        apart = _euclidean(sample, self._target)
        between = np.einsum("bi,bi->b", self._of_sample @ apart, self._of_target) / apart.size
        between = np.r_[apart.mean(), between]
        return 2 * between - _within(sample, self._of_sample) - self._within_target


def _counts(rng: np.random.Generator, n: int, n_resamples: int) -> np.ndarray:
    """How often every resample has each of n cells, shape (n_resamples, n)."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=n_resamples).astype(np.float64)


def _within(x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean distance of two cells of a sample, and of every resample, shape (1 + n_resamples,)."""
    apart, n = _euclidean(x, x), len(x)
    np.fill_diagonal(apart, 0.0)
    resampled = np.einsum("bi,bi->b", counts @ apart, counts) / np.maximum(n**2 - (counts**2).sum(axis=1), 1)
    return np.r_[apart.sum() / (n * (n - 1)), resampled]
