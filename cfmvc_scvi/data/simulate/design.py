"""Which simulated cell is of which batch, cell type, condition, place and library size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cfmvc_scvi.data.simulate.truth import Truth


def numbered(stem: str, n: int) -> list[str]:
    """``stem1``, ``stem2``, ..."""
    return [f"{stem}{i + 1}" for i in range(n)]


def draw_design(args: dict[str, Any], labels: list[str], truth: Truth, rng: np.random.Generator) -> pd.DataFrame:
    """Batch, cell type, perturbation and dose of every cell, in random order of the cells."""
    n_cells, n_batches, n_types = args["n_cells"], args["n_batches"], args["n_cell_types"]
    doses = [1.0] if args["doses"] is None else [float(d) for d in args["doses"]]
    arms = [(args["control"], 0.0)] + [(label, dose) for label in labels for dose in doses]
    group = rng.permutation(np.arange(n_cells) % (n_batches * n_types))
    batch = group % n_batches
    arm = _assign_arms(group, _arm_weights(args, len(labels), len(doses))[batch], rng)
    never = sorted({arms[j][0] for j in set(range(len(arms))) - set(arm.tolist())})
    if never:
        raise ValueError(
            f"n_cells={n_cells} is too few for {len(arms)} conditions: none was left for {never[:5]}. Raise "
            "n_cells, or lower n_perturbations, n_pairs, control_fraction or the number of doses."
        )
    levels = [args["control"], *labels]
    obs = pd.DataFrame(index=pd.Index(numbered("cell", n_cells)))
    obs["cell_type"] = pd.Categorical.from_codes(group // n_batches, pd.Index(truth.cell_types))
    obs["batch"] = pd.Categorical.from_codes(batch, pd.Index(truth.batches))
    obs["perturbation"] = pd.Categorical.from_codes([levels.index(arms[j][0]) for j in arm], pd.Index(levels))
    if args["doses"] is not None:
        obs["dosage"] = np.array([arms[j][1] for j in arm])
    return obs


def _arm_weights(args: dict[str, Any], n_labels: int, n_doses: int) -> np.ndarray:
    """Expected fraction of each arm (control, then label × dose) in each batch."""
    n_batches, confounding = args["n_batches"], args["confounding"]
    own = np.arange(n_labels)[None, :] % n_batches == np.arange(n_batches)[:, None]
    weights = np.full((n_batches, n_labels), (1 - confounding) / n_labels)
    weights += confounding * own / np.maximum(own.sum(axis=1, keepdims=True), 1)
    weights = np.repeat(weights, n_doses, axis=1) / n_doses * (1 - args["control_fraction"])
    return np.column_stack([np.full(n_batches, args["control_fraction"]), weights])


def _assign_arms(group: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give each cell, group by group, the arm that is owed most, so that every group is balanced."""
    owed = rng.uniform(-0.5, 0.5, weights.shape[1])
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
        depth = y + 0.1 * np.sin(2 * np.pi * (x + rng.random())) + 0.02 * rng.standard_normal(len(cells))
        layer_order = np.lexsort((shuffle[cells], types[cells]))
        layout[cells[layer_order]] = layout[cells[np.argsort(depth)]]
    return layout


def draw_library_size(args: dict[str, Any], batches: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Expected total counts: log-normal, with a mean that depends on the batch."""
    mean, sd = args["mean_library_size"], args["library_size_sd"]
    mean = 2.0 * args["n_genes"] if mean is None else float(mean)
    batch_mean = mean * np.exp(0.2 * rng.standard_normal(args["n_batches"]))[batches]
    return batch_mean * np.exp(sd * rng.standard_normal(len(batches)) - sd**2 / 2)
