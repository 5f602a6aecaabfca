"""Mean effects as they were measured, and as vectors of the same perturbations in another screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._messages import close_matches, shortened
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.metrics import log1p_cp10k
from cfmvc_scvi.registration.labels import find_control_group
from cfmvc_scvi.registration.spelling import texts_of


def mean_effects(
    adata: AnnData,
    perturbation_key: str = "perturbation",
    *,
    control_group: str | Sequence[str] | None = None,
    within: str | None = None,
    layer: str | None = None,
    size_factor_key: str | None = None,
    min_cells: int = 10,
) -> pd.DataFrame:
    """Mean effect of every perturbation as it was measured, without a model.

    The mean of log1p of counts per 10,000 over the perturbed cells minus that over control cells.

    Parameters
    ----------
    adata
        Raw counts (n_cells, n_genes), in memory.
    perturbation_key
        Column of ``obs`` with the perturbation.
    control_group
        Level (or levels) that is unperturbed; ``None`` takes the one with a usual name.
    within
        Column of ``obs``, such as the cell type or the batch: differences are taken within its levels, where both kinds
        of cells are, and averaged in proportion to the perturbed cells.
    layer
        Layer with the counts; ``None`` takes ``adata.X``.
    size_factor_key
        Column of ``obs`` with library sizes, where the genes are a panel; ``None`` takes the row sums.
    min_cells
        Perturbations of fewer cells, counted where there are controls, are left out.

    Returns
    -------
    DataFrame (perturbation x gene), natural log; ``attrs["n_cells"]`` says how many cells stand behind each, and
    ``attrs["left_out"]`` which perturbations had too few.

    Raises
    ------
    KeyError
        For a column that is not there.
    ValueError
        Where the control is not clear, or no perturbation has enough cells.
    """
    whole_number("min_cells", min_cells)
    keys = [key for key in (perturbation_key, within, size_factor_key) if key is not None]
    for key in keys:
        if key not in adata.obs:
            raise KeyError(f"adata.obs has no column {key!r}.{close_matches(key, adata.obs)}")
    stored: Any = adata.X if layer is None else adata.layers[layer]
    obs = obs_of(adata)
    library = None if size_factor_key is None else obs[size_factor_key].to_numpy(dtype=float)
    y = log1p_cp10k(stored, library)
    labels = texts_of(obs[perturbation_key])
    levels = list(dict.fromkeys(labels[obs[perturbation_key].notna().to_numpy()]))
    control = np.isin(labels, find_control_group(levels, control_group))
    perturbed = [level for level in levels if not control[labels == level].any()]
    strata = np.zeros(adata.n_obs, dtype=int) if within is None else pd.factorize(obs[within])[0]
    total, counted = np.zeros((len(perturbed), adata.n_vars)), np.zeros(len(perturbed), dtype=int)
    for stratum in np.unique(strata[strata >= 0]):
        here = strata == stratum
        if not (here & control).any():
            continue
        base = _mean(y, here & control)
        for i, level in enumerate(perturbed):
            cells = here & (labels == level)
            if cells.any():
                total[i] += cells.sum() * (_mean(y, cells) - base)
                counted[i] += cells.sum()
    kept = counted >= min_cells
    if not kept.any():
        raise ValueError(
            f"No perturbation of {shortened(perturbed)} has {min_cells} cells where there are control cells: lower "
            "`min_cells`, or leave out `within`."
        )
    names = pd.Index([level for level, there in zip(perturbed, kept, strict=True) if there], name="perturbation")
    table = pd.DataFrame(total[kept] / counted[kept, None], index=names, columns=adata.var_names.astype(str))
    table.attrs = {
        "n_cells": {str(name): int(n) for name, n in zip(names, counted[kept], strict=True)},
        "left_out": [str(level) for level, there in zip(perturbed, kept, strict=True) if not there],
    }
    return table


def effect_vectors(effects: pd.DataFrame, n_components: int = 32) -> pd.DataFrame:
    r"""Effects that were measured elsewhere, as vectors of the same perturbations.

    What a perturbation did in another screen says more about it than text or sequence does. With :math:`Y = U S V^\top`
    the effects, the vectors are the first columns of :math:`U S / \sqrt{n_{genes}}`: inner products approach the mean
    product of the effects over genes. They are not centred, so that what all perturbations do stays in them.

    Parameters
    ----------
    effects
        Mean effects (perturbation x gene) of the other screen, as :func:`mean_effects` gives them.
    n_components
        Length of the vectors; at most the smaller dimension of the table is given.

    Returns
    -------
    DataFrame (perturbation x n_components), float32.

    Raises
    ------
    ValueError
        For values that are not finite, and repeated names.

    Examples
    --------
    >>> effects = pd.DataFrame([[1.0, 0.0, 2.0], [2.0, 0.0, 4.0], [0.0, 3.0, 0.0]], index=["A", "B", "C"])
    >>> vectors = effect_vectors(effects, n_components=2)
    >>> np.allclose(vectors @ vectors.T, effects @ effects.T / 3, atol=1e-5)
    True
    """
    whole_number("n_components", n_components)
    y = effects.to_numpy(dtype=float)
    if not np.isfinite(y).all() or not effects.index.is_unique:
        raise ValueError("`effects` must have finite values, and every perturbation once.")
    u, s, _ = np.linalg.svd(y / np.sqrt(max(y.shape[1], 1)), full_matrices=False)
    vectors = (u * s)[:, :n_components].astype(np.float32)
    return pd.DataFrame(vectors, index=effects.index, columns=[f"effect_{i}" for i in range(vectors.shape[1])])


def _mean(y: Any, cells: np.ndarray) -> np.ndarray:
    mean = y[np.flatnonzero(cells)].mean(axis=0)
    return np.asarray(mean).ravel() if sparse.issparse(y) else mean
