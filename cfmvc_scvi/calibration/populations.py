"""Populations of the training cells: mean and spread of every gene, beside the controls of the same context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cfmvc_scvi.calibration.moments import lognorm_moments
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.cells.strata import matched_strata, strata
from cfmvc_scvi.cells.table import CellTable

#: Cells that make a population.
_MIN_CELLS = 9


@dataclass(frozen=True)
class Populations:
    """Control and perturbed populations of the training cells, and their moments of log1p CP10k.

    Attributes
    ----------
    control
        Rows of the control cells of every cell type; all control cells where a type has none.
    mean0, spread0
        Mean and variance over those cells, shape (n_labels, n_genes).
    mean1, spread1
        The same of every perturbed population, shape (n, n_genes).
    effect, variance
        Mean change of every perturbed population against its matched controls, and its sampling variance, (n, n_genes).
    n_cells, label, condition
        Cells, cell type and index of the condition of every perturbed population.
    """

    control: list[np.ndarray]
    mean0: np.ndarray
    spread0: np.ndarray
    mean1: np.ndarray
    spread1: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    n_cells: np.ndarray
    label: np.ndarray
    condition: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, cache: LatentCache, rows: np.ndarray, n_labels: int) -> Populations:
        """Populations of at least nine cells, whose cell type has as many controls.

        The controls of a population are all of its cell type. Where the two are spread differently over batches and
        further categorical covariates (:mod:`~cfmvc_scvi.cells.strata`), they are those of the same strata, weighted as
        the population's cells are spread over them.
        """
        labels, condition = cache.cells.context.labels.numpy()[rows], cache.condition[rows]
        everyone = rows[condition == 0]
        own = [rows[(condition == 0) & (labels == label)] for label in range(n_labels)]
        control = [cells if len(cells) else everyone for cells in own]
        pooled = [(*lognorm_moments(cache.cells, cells), len(cells)) for cells in control]
        controls = MatchedControls(cache.cells, own, pooled)
        found = []
        for code, label in sorted(set(zip(condition.tolist(), labels.tolist(), strict=True))):
            cells = rows[(condition == code) & (labels == label)]
            if code > 0 and min(len(cells), len(own[label])) >= _MIN_CELLS:
                mean, spread = lognorm_moments(cache.cells, cells)
                mean0, variance0 = controls.mean(cells, label)
                variance = spread / (len(cells) - 1) + variance0 + 1e-4
                found.append((mean, spread, mean - mean0, variance, len(cells), label, code))
        n_genes = cache.cells.counts.shape[1]
        empty = (np.zeros((0, n_genes)),) * 4 + (np.zeros(0), np.zeros(0, dtype=int), np.zeros(0, dtype=int))
        columns = [np.stack(column) for column in zip(*found, strict=True)] if found else empty
        return cls(control, np.stack([m for m, _, _ in pooled]), np.stack([v for _, v, _ in pooled]), *columns)

    def spread_effect(self, p: np.ndarray) -> np.ndarray:
        """Change of every gene's variance per unit of the perturbation vector, (n_features, n_genes), by ridge.

        Parameters
        ----------
        p
            Perturbation vector of every population, shape (n, n_features).
        """
        weights = np.sqrt(self.n_cells)[:, None]
        change = self.spread1 - self.spread0[self.label]
        gram = p.T @ (weights * p) + np.sqrt(_MIN_CELLS) * np.eye(p.shape[1])
        return np.linalg.solve(gram, p.T @ (weights * change)).astype(np.float32)


#: Mean and variance of every gene, and the number of cells.
Moments = tuple[np.ndarray, np.ndarray, int]


class MatchedControls:
    """Mean of the controls that a population is compared with.

    Parameters
    ----------
    cells
        All cells.
    own
        Rows of the control cells of every cell type.
    pooled
        Their moments.
    """

    def __init__(self, cells: CellTable, own: list[np.ndarray], pooled: list[Moments]) -> None:
        self._cells, self._own, self._pooled = cells, own, pooled
        self._code = strata(cells.context)
        self._moments: dict[tuple[int, int], Moments] = {}

    def mean(self, rows: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the matched controls of the cells ``rows`` of a type, and its sampling variance, (n_genes,) both."""
        groups = matched_strata(self._code[rows], self._code[self._own[label]])
        parts = [(self._in_stratum(label, stratum), here.sum()) for stratum, here in groups.items()]
        rest = len(rows) - sum(n for _, n in parts)
        if rest:
            parts.append((self._pooled[label], rest))
        weights = [n / len(rows) for _, n in parts]
        mean = sum(w * moments[0] for w, (moments, _) in zip(weights, parts, strict=True))
        variance = sum(w**2 * m[1] / (m[2] - 1) for w, (m, _) in zip(weights, parts, strict=True))
        return np.asarray(mean), np.asarray(variance)

    def _in_stratum(self, label: int, stratum: int) -> Moments:
        if (label, stratum) not in self._moments:
            rows = self._own[label][self._code[self._own[label]] == stratum]
            self._moments[label, stratum] = (*lognorm_moments(self._cells, rows), len(rows))
        return self._moments[label, stratum]
