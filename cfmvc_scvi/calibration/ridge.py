"""Ridge regression of what is seen in populations on their perturbation vectors."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from cfmvc_scvi.registration.members import Members


class VectorRidge:
    r"""Weighted ridge regression :math:`B = (P^\top W P + \lambda I)^{-1} P^\top W Y` on perturbation vectors P.

    Of unit vectors the normal equations are sparse, so thousands of perturbations cost little.

    Parameters
    ----------
    members
        Perturbations of every population, n of them.
    weights
        Weight of every population, shape (n,).
    ridge
        :math:`\lambda`.
    """

    def __init__(self, members: Members, weights: np.ndarray, ridge: float) -> None:
        p = members.sums()
        if isinstance(p, np.ndarray):
            self._weighted = (weights[:, None] * p).T
            self._solve = partial(np.linalg.solve, self._weighted @ p + ridge * np.eye(p.shape[1]))
        else:
            self._weighted = sparse.csr_matrix(p.multiply(weights[:, None]).T)
            gram = sparse.csc_matrix(self._weighted @ p + ridge * sparse.identity(members.n_features))
            self._solve = splu(gram).solve

    def coefficients(self, y: np.ndarray) -> np.ndarray:
        """Coefficients (n_features, m) of values (n, m), float64."""
        return self._solve(np.asarray(self._weighted @ y.astype(np.float64)))
