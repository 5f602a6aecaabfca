"""Which simulated cell is of which batch, cell type, condition, place and library size."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cfmvc_scvi._messages import shortened
from cfmvc_scvi.data.simulate.design import ScreenDesign, numbered
from cfmvc_scvi.data.simulate.truth import DELIMITER, Truth


def draw_labels(design: ScreenDesign, rng: np.random.Generator) -> list[str]:
    """Labels of the perturbations and pairs that are measured, without the control."""
    possible = design.possible_pairs
    chosen = np.sort(rng.choice(len(possible), design.n_pairs, replace=False)) if design.n_pairs else []
    return design.perturbations + [DELIMITER.join(possible[i]) for i in chosen]


def draw_annotations(design: ScreenDesign, labels: list[str], truth: Truth, rng: np.random.Generator) -> pd.DataFrame:
    """Batch, cell type, perturbation and dose of every cell, in random order of the cells.

    Cells are dealt to arms: the control, and every label at every dose.
    """
    doses = design.doses_of_arms
    arms = [(design.control, 0.0)] + [(label, dose) for label in labels for dose in doses]
    # A group is a batch and a cell type, as one number; all groups are equally large, up to one cell.
    group = rng.permutation(np.arange(design.n_cells) % (design.n_batches * design.n_cell_types))
    batch = group % design.n_batches
    arm = _deal_arms(group, _arm_weights(design, len(labels))[batch], rng)
    never = sorted({arms[j][0] for j in set(range(len(arms))) - set(arm.tolist())})
    if never:
        raise ValueError(
            f"n_cells={design.n_cells} is too few for {len(arms)} conditions: none was left for {shortened(never, 5)}. "
            "Raise n_cells, or lower n_perturbations, n_pairs, control_fraction or the number of doses."
        )
    levels = [design.control, *labels]
    obs = pd.DataFrame(index=pd.Index(numbered("cell", design.n_cells)))
    codes = {
        "cell_type": (group // design.n_batches, truth.cell_types),
        "batch": (batch, truth.batches),
        "perturbation": ([levels.index(arms[j][0]) for j in arm], levels),
    }
    for name, (code, categories) in codes.items():
        obs[name] = pd.Categorical.from_codes(list(code), pd.Index(categories))
    if design.doses is not None:
        obs["dosage"] = np.array([arms[j][1] for j in arm])
    return obs


def _arm_weights(design: ScreenDesign, n_labels: int) -> np.ndarray:
    """Expected fraction of each arm (control, then label × dose) in each batch, (n_batches, n_arms)."""
    n_batches, n_doses, confounding = design.n_batches, len(design.doses_of_arms), design.confounding
    # With full confounding, label k is measured in batch k modulo the number of batches, and nowhere else.
    own = np.arange(n_labels)[None, :] % n_batches == np.arange(n_batches)[:, None]
    weights = np.full((n_batches, n_labels), (1 - confounding) / n_labels)
    weights += confounding * own / np.maximum(own.sum(axis=1, keepdims=True), 1)
    weights = np.repeat(weights, n_doses, axis=1) / n_doses * (1 - design.control_fraction)
    return np.column_stack([np.full(n_batches, design.control_fraction), weights])


def _deal_arms(group: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each cell, group by group, the arm that is owed most, so that every group is balanced.

    ``weights`` holds the expected fraction of each arm for each cell, (n_cells, n_arms).
    """
    owed = rng.uniform(-0.5, 0.5, weights.shape[1])  # in cells; the random start decides which arm comes first
    arm = np.empty(len(group), int)
    for i in np.argsort(group, kind="stable"):
        owed += weights[i]
        arm[i] = np.argmax(np.where(weights[i] > 0, owed, -np.inf))
        owed[arm[i]] -= 1
    return arm


def draw_layout(obs: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Coordinates in the unit square: within each batch, cell types lie in wavy layers."""
    layout = rng.random((len(obs), 2))
    shuffle = rng.random(len(obs))
    types, batches = obs["cell_type"].cat.codes.to_numpy(), obs["batch"].cat.codes.to_numpy()
    for batch in np.unique(batches):
        cells = np.flatnonzero(batches == batch)
        x, y = layout[cells].T
        # Depth is y, on waves along x: the cells of the first type take the places of least depth, and so on.
        depth = y + 0.1 * np.sin(2 * np.pi * (x + rng.random())) + 0.02 * rng.standard_normal(len(cells))
        layer_order = np.lexsort((shuffle[cells], types[cells]))
        layout[cells[layer_order]] = layout[cells[np.argsort(depth)]]
    return layout


def draw_library_size(design: ScreenDesign, batches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Expected total counts: log-normal, with a mean that depends on the batch."""
    mean = 2.0 * design.n_genes if design.mean_library_size is None else float(design.mean_library_size)
    sd = design.library_size_sd
    batch_mean = mean * np.exp(0.2 * rng.standard_normal(design.n_batches))[batches]
    # The mean of exp(sd * normal) is exp(sd**2 / 2): divided by it, the expected total is the batch's mean.
    return batch_mean * np.exp(sd * rng.standard_normal(len(batches)) - sd**2 / 2)
