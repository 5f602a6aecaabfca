"""The cells of a prediction, and what is computed of them once for all conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.data.cells import CellTable
from cfmvc_scvi.model.change import cell_generators
from cfmvc_scvi.model.latents import CellPosterior
from cfmvc_scvi.model.request import PredictionCall
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.module.cfmvc_module import BaseFlow

#: Decoded cells kept between conditions, in bytes; beyond it they are decoded again.
_KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SourceChunk:
    """Some cells before the perturbation.

    Attributes
    ----------
    z
        Latents, shape (n_draws, n, n_latent): the posterior mean, or draws to average over.
    flow
        Where the base flow takes each draw.
    context
        Context on the device.
    technical
        Technical latents, shape (n, n_latent_technical).
    names
        Names of the cells.
    """

    z: Tensor
    flow: list[BaseFlow]
    context: FlowContext
    technical: Tensor
    names: list[str]


@dataclass
class SourceCells:
    """Cells of a prediction with their posterior; chunks are computed once and kept.

    Attributes
    ----------
    cells
        The cells, padded to whole units.
    n_cells
        How many of them were asked for.
    nearest
        Whether a cell's type was unknown and the nearest known one stands for it, shape (n_cells,).
    labels
        Cell type every cell is treated as, shape (n_cells,).
    """

    cells: CellTable
    n_cells: int
    nearest: np.ndarray
    labels: np.ndarray
    posterior: CellPosterior
    module: CFMVCModule
    call: PredictionCall
    keep_decoded: bool = False
    _chunks: dict[int, SourceChunk] = field(default_factory=dict)
    _decoded: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = 4 * len(self.cells) * self.cells.counts.shape[1]
        self.keep_decoded = self.keep_decoded and size <= _KEPT_BYTES

    @property
    def asked(self) -> CellTable:
        """The cells that were asked for, without the padding."""
        return self.cells.take(np.arange(self.n_cells))

    @property
    def codes(self) -> np.ndarray:
        """Codes of the types of the cells asked for, -1 where the type is unknown; shape (n_cells,)."""
        labels = self.cells.context.labels.numpy()[: self.n_cells]
        return np.where(self.nearest, -1, labels)

    @torch.inference_mode()
    def chunk(self, rows: slice) -> SourceChunk:
        """Latents and base flow of some cells."""
        if rows.start not in self._chunks:
            device = self.module.device
            names = [str(name) for name in self.cells.obs.index[rows]]
            z = self._latents(rows, names)
            context = self.cells.context[rows].to(device)
            flow = [self.module.base_flow(draw.to(device), context, self.call.solver) for draw in z]
            technical = self.posterior.technical_mean[rows]
            self._chunks[rows.start] = SourceChunk(z, flow, context, technical, names)
        return self._chunks[rows.start]

    @torch.inference_mode()
    def log_share(self, rows: slice) -> Tensor:
        """Log of each gene's share of some cells before the perturbation, mean over draws; (n, n_genes)."""
        if rows.start in self._decoded:
            return self._decoded[rows.start]
        chunk = self.chunk(rows)
        value = decode_mean(self.module, chunk.z, chunk.technical)
        if self.keep_decoded:
            self._decoded[rows.start] = value
        return value

    def _latents(self, rows: slice, names: list[str]) -> Tensor:
        mean = self.posterior.mean[rows]
        if self.call.n_samples == 1 or self.call.return_type == "counts":
            return mean.unsqueeze(0)
        generators = cell_generators(names, self.call.seed, "posterior")
        shape = (self.call.n_samples, mean.shape[1])
        noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in generators], axis=1)
        return mean + self.posterior.scale[rows] * torch.from_numpy(noise)


def decode_mean(module: CFMVCModule, z: Tensor, technical: Tensor) -> Tensor:
    """Log of each gene's share, mean over the draws ``z`` (n_draws, n, n_latent); shape (n, n_genes), on the CPU."""
    technical = technical.to(module.device)
    shares = [module.decoder(draw.to(module.device), technical) for draw in z]
    mean: Any = shares[0] if len(shares) == 1 else torch.stack(shares).mean(dim=0)
    return mean.cpu()
