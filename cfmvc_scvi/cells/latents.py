"""Latents of the registered cells, encoded once for stage 2 and the calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cfmvc_scvi.cells.pairs import LatentData
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.registration.members import Members
from cfmvc_scvi.registration.vocabulary import Condition


@dataclass(frozen=True)
class CellPosterior:
    """Posterior mean and standard deviation of both latents, on the CPU, one row per cell."""

    mean: Tensor
    scale: Tensor
    technical_mean: Tensor
    technical_scale: Tensor

    def __getitem__(self, rows: slice | Tensor) -> CellPosterior:
        return CellPosterior(self.mean[rows], self.scale[rows], self.technical_mean[rows], self.technical_scale[rows])

    def put(self, start: int, part: CellPosterior) -> None:
        """Overwrite the cells from ``start`` on by those of ``part``."""
        for name in ("mean", "scale", "technical_mean", "technical_scale"):
            values = getattr(part, name)
            getattr(self, name)[start : start + len(values)] = values


@dataclass(frozen=True)
class LatentCache:
    """Cells with their posterior and their condition.

    Attributes
    ----------
    condition
        Index into ``conditions`` of every cell, 0 for control.
    """

    cells: CellTable
    posterior: CellPosterior
    condition: np.ndarray
    conditions: list[Condition]

    def flow_data(self, center: Tensor, scale: Tensor, p: Members) -> LatentData:
        """The same in the flow's units, with the perturbations of the conditions."""
        return LatentData(
            mean=(self.posterior.mean - center) / scale,
            scale=self.posterior.scale / scale,
            context=self.cells.context,
            condition=self.condition,
            p=p,
        )
