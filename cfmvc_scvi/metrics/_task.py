"""What the predictions of one condition are scored with, made once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cfmvc_scvi.metrics._arrays import Matrix
from cfmvc_scvi.metrics._baselines import Training
from cfmvc_scvi.metrics._projection import fit_pcs


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """All that a metric may ask for beside a prediction and the truth; read-only.

    The truth is handed to every metric separately, so that half of the true cells can stand in for it.

    Attributes
    ----------
    control
        Real control cells of the context, cells x genes.
    top
        Positions of the top differentially expressed genes.
    top_n
        How many genes count as top differentially expressed.
    significant
        Mask of the genes that differ significantly between truth and control, ``(genes,)``.
    centroid
        Mean perturbed profile of the training contexts, ``(genes,)``; ``None`` without training data.
    projection
        Object with ``transform`` from genes to components; ``None`` where there is none.
    max_cells
        Populations are reduced to this many cells where pairs of cells are compared; ``None``: never.
    seed
        Seed of that reduction.
    populations
        Training populations on components, by name: control and perturbed cells of every context.
    """

    control: np.ndarray
    top: np.ndarray
    top_n: int
    significant: np.ndarray
    centroid: np.ndarray | None = None
    projection: Any = None
    max_cells: int | None = None
    seed: int = 0
    populations: Mapping[str, np.ndarray] = field(default_factory=dict)

    def provides(self) -> set[str]:
        """What metrics may need and find here: ``"training"``, ``"pcs"``."""
        there = {"training": self.centroid, "pcs": self.projection}
        return {name for name, value in there.items() if value is not None}

    def few(self, x: Matrix) -> Matrix:
        """At most ``max_cells`` cells, drawn with ``seed``."""
        if self.max_cells is None or x.shape[0] <= self.max_cells:
            return x
        return x[np.random.default_rng(self.seed).choice(x.shape[0], self.max_cells, replace=False)]

    def project(self, x: Matrix) -> np.ndarray:
        """Coordinates on components of at most ``max_cells`` cells, cells x components."""
        return np.asarray(self.projection.transform(self.few(x)), dtype=np.float64)

    def project_training(self, training: Training) -> dict[str, np.ndarray]:
        """Coordinates of every training population, and of the control cells, that has cells."""
        populations = {"control": self.control}
        for context, pair in training.items():
            populations |= {f"{context} {i}": x for i, x in enumerate(pair)}
        return {name: self.project(x) for name, x in populations.items() if x.shape[0]}


def find_projection(pcs: Any, control: np.ndarray, training: Training | None) -> Any:
    """Return what projects cells on components, fitted on training cells where ``pcs`` is a number; or ``None``."""
    if pcs is None:
        return None
    if isinstance(pcs, (int, np.integer)):
        if training is None:
            return None
        return fit_pcs([control, *(x for pair in training.values() for x in pair)], int(pcs))
    if hasattr(pcs, "transform"):
        return pcs
    raise TypeError(f"`pcs` is {type(pcs).__name__}; allowed: a number, a fitted object with `transform`, or None.")
