"""Latents of the registered cells, encoded once for stage 2 and the calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfmvc_scvi.data.cells import CellTable
from cfmvc_scvi.data.latent import LatentData
from cfmvc_scvi.data.perturbation import Condition
from cfmvc_scvi.module import CFMVCModule


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

    def set_flow_units(self, module: CFMVCModule, rows: np.ndarray) -> None:
        """Centre and common scale of the latents, and units of the coordinates, from these cells."""
        mean = self.posterior.mean[rows]
        module.flow_center.copy_(mean.mean(dim=0))
        module.flow_scale.copy_(mean.var(dim=0, correction=0).mean().sqrt().clamp(min=1e-6))
        spatial = self.cells.context.spatial
        if spatial is not None:
            module.spatial_center.copy_(spatial[rows].mean(dim=0))
            module.spatial_scale.copy_(spatial[rows].std(dim=0, correction=0).clamp(min=1e-6))

    def flow_data(self, module: CFMVCModule, p: np.ndarray) -> LatentData:
        """The same in the flow's units, with the vectors ``p`` (n_conditions, n_features) of the conditions."""
        center, scale = module.flow_center.cpu(), module.flow_scale.cpu()
        return LatentData(
            mean=(self.posterior.mean - center) / scale,
            scale=self.posterior.scale / scale,
            context=self.cells.context,
            condition=self.condition,
            p=torch.from_numpy(p),
        )
