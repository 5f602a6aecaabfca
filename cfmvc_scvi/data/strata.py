"""Strata: cells of one batch and one level of every further categorical covariate; controls are matched within them."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi._types import FlowContext

#: Control cells that a stratum needs to be compared with on its own.
MIN_CONTROLS = 10


def strata(context: FlowContext) -> np.ndarray:
    """Code of every cell's batch and further categorical covariates, the cell type left out; shape (n_cells,)."""
    table = np.delete(context.categorical.numpy(), 1, axis=1)
    levels = table.max(axis=0) + 1
    return np.ravel_multi_index(table.T, levels) if len(table) else np.zeros(0, dtype=np.int64)


def matched_rows(code: np.ndarray, matched: set[int]) -> dict[int | None, int]:
    """Number of cells in each stratum that has controls of its own; ``None`` counts the rest.

    Parameters
    ----------
    code
        Strata of the cells, shape (n_cells,).
    matched
        Strata with enough controls.
    """
    counts: dict[int | None, int] = {}
    for stratum, n in zip(*np.unique(code, return_counts=True), strict=True):
        key = int(stratum) if int(stratum) in matched else None
        counts[key] = counts.get(key, 0) + int(n)
    return counts
