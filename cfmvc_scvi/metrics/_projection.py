"""Principal components fitted on training cells only, for the distances that are measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import svds

from cfmvc_scvi.metrics._arrays import Matrix, cells, check_array, check_same_genes, dense
from cfmvc_scvi.metrics._names import by_gene_name


@dataclass(frozen=True)
class PrincipalComponents:
    """Centre and directions of a principal component analysis.

    Attributes
    ----------
    mean
        Mean per gene of the cells it was fitted on, ``(genes,)``.
    components
        Orthonormal directions, components x genes, by decreasing variance.
    """

    mean: np.ndarray
    components: np.ndarray

    def transform(self, x: Matrix) -> np.ndarray:
        """Return the coordinates of cells, cells x components."""
        x = check_array(x, "x", min_cells=0)
        check_same_genes(x=x, components=self.components)
        return np.asarray(x @ self.components.T) - self.mean @ self.components.T


@by_gene_name("populations")
def fit_pcs(populations: Matrix | Sequence[Matrix], n_components: int = 50) -> PrincipalComponents:
    """Fit principal components on training cells: centred, not scaled, exact up to the solver's tolerance.

    Parameters
    ----------
    populations
        One matrix of cells x genes (log1p CP10k), or several that are stacked. Never the held-out cells.
    n_components
        Number of components; at most one less than the number of cells, and than that of genes.

    Returns
    -------
    An object with ``transform``; the sign of each component is fixed, so the result does not depend on the
    solver's start.
    """
    stack = list(populations) if isinstance(populations, (list, tuple)) else [populations]
    if n_components < 1:
        raise ValueError(f"`n_components` is {n_components}; ask for at least 1.")
    parts = [dense(check_array(x, f"populations[{i}]", min_cells=0)) for i, x in enumerate(stack)]
    check_same_genes(**{f"populations[{i}]": x for i, x in enumerate(parts)})
    x = cells(np.concatenate(parts), "populations")
    mean = x.mean(axis=0)
    k = min(n_components, min(x.shape) - 1)
    if k < 1:
        raise ValueError(f"Principal components need 2 cells and 2 genes at least; given {x.shape[0]} x {x.shape[1]}.")
    start = np.random.default_rng(0).standard_normal(min(x.shape))
    _, singular, found = svds(x - mean, k=k, v0=start)
    vt = np.asarray(found)[np.argsort(-singular)]
    largest = np.abs(vt).argmax(axis=1)
    return PrincipalComponents(mean, vt * np.sign(vt[np.arange(k), largest])[:, None])
