"""What perturbations do to the latents of all cells alike: the same shift in every cell type."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.ridge import VectorRidge
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.registration.members import Members

#: Cells at which a population has half its full weight, and the ridge beside these weights.
_HALF_WEIGHT, _RIDGE = 10.0, 1e-2


def latent_shift(cache: LatentCache, rows: np.ndarray, populations: Populations, members: Members) -> np.ndarray:
    r"""Change of the mean intrinsic latent per unit of the perturbation vector, shape (n_features, n_latent), float32.

    A ridge regression of the populations' changes against the controls of their cell type, weighted by
    :math:`n / (n + 10)` with n cells. With vectors of their own it is the mean over cell types, and additive for
    perturbations given together: the latent arithmetic of scGen (Lotfollahi et al. 2019).

    Parameters
    ----------
    cache
        All registered cells with their latents.
    rows
        Training cells.
    populations
        Their populations.
    members
        Perturbations of every population.
    """
    z = cache.posterior.mean.numpy()
    n_labels = len(populations.control)
    center = np.stack([z[control].mean(axis=0, dtype=np.float64) for control in populations.control])
    code = cache.condition[rows].astype(np.int64) * n_labels + cache.cells.context.labels.numpy()[rows]
    kinds, place = np.unique(code, return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(rows)), (place, np.arange(len(rows)))))
    mean = (member @ z[rows].astype(np.float64)) / np.asarray(member.sum(axis=1))
    own = np.searchsorted(kinds, populations.condition.astype(np.int64) * n_labels + populations.label)
    weights = populations.n_cells / (populations.n_cells + _HALF_WEIGHT)
    ridge = VectorRidge(members, weights, _RIDGE)
    return ridge.coefficients(mean[own] - center[populations.label]).astype(np.float32)
