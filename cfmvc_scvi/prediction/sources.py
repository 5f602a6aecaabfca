"""The cells of a prediction, and what is computed of them once for all conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.calibration.change import cell_generators
from cfmvc_scvi.cells.latents import CellPosterior
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.flow import Adaptive
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.module.transport import BaseFlow
from cfmvc_scvi.prediction.request import PredictionCall

#: Cells that a fixed-step solver integrates at a time.
_FLOW_ROWS = 1024
#: Decoded cells kept between conditions, in bytes; beyond it they are decoded again.
_KEPT_BYTES = 256 * 2**20


@dataclass
class SourceCells:
    """Cells of a prediction with their posterior; what the conditions share is computed once and kept.

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
    perturbed
        Whether a cell is said to be perturbed already, shape (n_cells,); ``None`` where none is.
    """

    cells: CellTable
    n_cells: int
    nearest: np.ndarray
    labels: np.ndarray
    posterior: CellPosterior
    module: CFMVCModule
    call: PredictionCall
    keep_decoded: bool = False
    perturbed: np.ndarray | None = None
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

    @cached_property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.module.parameters()).device

    @cached_property
    def names(self) -> list[str]:
        """Names of the cells."""
        return [str(name) for name in self.cells.obs.index]

    @cached_property
    def z(self) -> Tensor:
        """Latents before the perturbation, (n_draws, n, n_latent): the posterior mean, or draws to average over."""
        mean = self.posterior.mean
        if self.call.n_samples == 1 or self.call.return_type == "counts":
            return mean.unsqueeze(0)
        generators = cell_generators(self.names, self.call.seed, "posterior")
        shape = (self.call.n_samples, mean.shape[1])
        noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in generators], axis=1)
        return mean + self.posterior.scale * torch.from_numpy(noise)

    @torch.inference_mode()
    def move(self, p: np.ndarray) -> Tensor:
        """Latents after the perturbation with this vector (n_features,), shape (n_draws, n, n_latent)."""
        device = self.device
        vector = torch.from_numpy(p).to(device)
        moved = torch.empty_like(self.z)
        for draw, rows, context, flow in self._base_flows:
            z = self.z[draw, rows].to(device)
            vectors = vector.expand(len(z), -1)
            moved[draw, rows] = self.module.transport(z, vectors, context, self.call.solver, flow).cpu()
        return moved

    @torch.inference_mode()
    def decoded(self, rows: slice) -> Tensor:
        """What :meth:`decode` gives for some cells before the perturbation."""
        if rows.start in self._decoded:
            return self._decoded[rows.start]
        value = self.decode(self.z[:, rows], self.posterior.technical_mean[rows], self.cells.context.batch[rows])
        if self.keep_decoded:
            self._decoded[rows.start] = value
        return value

    def decode(self, z: Tensor, technical: Tensor, batch: Tensor) -> Tensor:
        """Share of each gene in the batches (n,), (n, n_genes), on the CPU; for drawn counts its log.

        Of several draws ``z`` (n_draws, n, n_latent) it is the mean on the log scale.
        """
        technical, batch = technical.to(self.device), batch.to(self.device)
        wants_log = self.call.return_type == "counts"
        if len(z) == 1 and not wants_log:
            return self.module.decoder.share(z[0].to(self.device), technical, batch).cpu()
        log_shares = [self.module.decoder(draw.to(self.device), technical, batch) for draw in z]
        mean = log_shares[0] if len(z) == 1 else torch.stack(log_shares).mean(dim=0)
        return (mean if wants_log else mean.exp()).cpu()

    @cached_property
    def _base_flows(self) -> list[tuple[int, slice, FlowContext, BaseFlow]]:
        """Base flow of every draw and block of cells: what all perturbations share."""
        size = self.call.batch_size if isinstance(self.call.solver, Adaptive) else _FLOW_ROWS
        out = []
        for rows in self.cells.chunks(size):
            context = self.cells.context[rows].to(self.device)
            for draw in range(len(self.z)):
                z = self.z[draw, rows].to(self.device)
                out.append((draw, rows, context, self.module.base_flow(z, context, self.call.solver)))
        return out
