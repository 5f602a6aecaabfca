"""Strata: cells of one batch and one level of every further categorical covariate.

Where perturbed cells are spread over strata as their controls are, all controls of the cell type serve: more cells,
less noise. Where they are not, a comparison with all of them would take a difference of strata for an effect, so each
cell is compared within its own stratum.
"""

from __future__ import annotations

import numpy as np

from cfmvc_scvi._types import FlowContext

#: Control cells that a stratum needs to be compared with on its own.
MIN_CONTROLS = 10
#: Total variation distance of two spreads over strata above which controls are matched. Chance alone makes about 0.15
#: of samples of 100 cells over eight donors.
MIN_IMBALANCE = 0.3


def strata(context: FlowContext) -> np.ndarray:
    """Code of every cell's batch and further categorical covariates, the cell type left out; shape (n_cells,)."""
    columns = [codes.numpy() for codes in context.strata_codes]
    if not len(context):
        return np.zeros(0, dtype=np.int64)
    return np.ravel_multi_index(columns, [codes.max() + 1 for codes in columns])


def imbalance(code: np.ndarray, control: np.ndarray) -> float:
    """Total variation distance between the spreads of two groups of cells over strata: 0 alike, 1 apart."""
    both = np.r_[code, control]
    if both.min() == both.max():
        return 0.0
    levels, of_row = np.unique(both, return_inverse=True)
    first = np.bincount(of_row[: len(code)], minlength=len(levels)) / len(code)
    second = np.bincount(of_row[len(code) :], minlength=len(levels)) / len(control)
    return float(np.abs(first - second).sum() / 2)


def matched_strata(code: np.ndarray, control: np.ndarray) -> dict[int, np.ndarray]:
    """Strata in which perturbed cells are compared with the controls there: which of the cells are in each.

    Parameters
    ----------
    code
        Strata of the perturbed cells, shape (n,).
    control
        Strata of the controls of their cell type.

    Returns
    -------
    Stratum to booleans (n,); nothing where both are spread alike. Cells in none are compared with all controls.
    """
    if not len(code) or not len(control) or imbalance(code, control) <= MIN_IMBALANCE:
        return {}
    return {int(s): code == s for s in np.unique(code) if (control == s).sum() >= MIN_CONTROLS}


def rows_by_group(condition: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Rows of every condition in every cell type, by (condition, cell type) in rising order, in one pass.

    Parameters
    ----------
    condition, labels
        Codes of all cells, shape (n_cells,).
    rows
        Cells to group; they keep their order.
    """
    if not len(rows):
        return {}
    pair = np.stack([condition[rows], labels[rows]])
    codes, group = np.unique(pair, axis=1, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    parts = np.split(rows[order], np.flatnonzero(np.diff(group.ravel()[order])) + 1)
    return {(int(code), int(label)): part for (code, label), part in zip(codes.T, parts, strict=True)}
