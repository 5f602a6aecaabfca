"""Control cells that stand for their cell type, in whom effects are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.flow import Solver
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.module.transport import BaseFlow

#: Control cells per cell type.
_MOST = 128


@dataclass(frozen=True)
class StoredReference:
    """Control cells of one cell type, as they are saved with a model: arrays, one row per cell.

    Attributes
    ----------
    z, technical
        Posterior means of both latents, shapes (n, n_latent) and (n, n_latent_technical).
    context
        What the flow knows of the cells beside their latents.
    library
        Library sizes, shape (n,).
    counts
        Counts, CSR (n, n_genes).
    """

    z: np.ndarray
    technical: np.ndarray
    context: FlowContext
    library: np.ndarray
    counts: sparse.csr_matrix

    @classmethod
    def sample(cls, cache: LatentCache, rows: np.ndarray, rng: np.random.Generator) -> StoredReference:
        """Up to 128 of the cells at these rows."""
        if len(rows) > _MOST:
            rows = np.sort(rng.choice(rows, _MOST, replace=False))
        return cls(
            z=cache.posterior.mean[rows].numpy(),
            technical=cache.posterior.technical_mean[rows].numpy(),
            context=cache.cells.context[torch.from_numpy(rows)],
            library=cache.cells.library[rows],
            counts=sparse.csr_matrix(cache.cells.counts[rows]),
        )

    def to_saved(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_saved` reads back."""
        context = {field.name: getattr(self.context, field.name) for field in fields(FlowContext)}
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"context": {name: value for name, value in context.items() if value is not None}}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> StoredReference:
        """Counterpart of :meth:`to_saved`."""
        context = {name: torch.as_tensor(value) for name, value in saved["context"].items()}
        return cls(**{**saved, "context": FlowContext(**context)})


@dataclass(frozen=True)
class ReferenceCells:
    """The same cells as the networks see them, before any perturbation.

    Attributes
    ----------
    z, technical, context, flow
        Latents, context and base flow, on the device of the networks.
    library
        Library sizes, shape (n,).
    counts, lognorm, log_share
        Observed counts, observed log1p CP10k and decoded log share of every gene, shape (n, n_genes), on the CPU.
    level
        Expected log1p CP10k of every gene by the model, mean over the cells, shape (n_genes,).
    """

    z: Tensor
    technical: Tensor
    context: FlowContext
    flow: BaseFlow
    library: np.ndarray
    counts: np.ndarray
    lognorm: np.ndarray
    log_share: Tensor
    level: np.ndarray

    @classmethod
    @torch.inference_mode()
    def of(cls, stored: StoredReference, module: CFMVCModule, solver: Solver) -> ReferenceCells:
        """Decode the stored cells and solve their base flow."""
        device = module.device
        z, technical = (torch.from_numpy(array).to(device) for array in (stored.z, stored.technical))
        context = stored.context.to(device)
        log_share = module.decoder(z, technical, context.batch).cpu()
        mean = np.exp(log_share.numpy()) * stored.library[:, None]
        counts = stored.counts.toarray().astype(np.float32)
        return cls(
            z=z,
            technical=technical,
            context=context,
            flow=module.base_flow(z, context, solver),
            library=stored.library,
            counts=counts,
            lognorm=lognorm_expression(counts, stored.library),
            log_share=log_share,
            level=module.likelihood.in_batches(context.batch).expected_lognorm(mean, stored.library).mean(axis=0),
        )

    @torch.inference_mode()
    def moved(self, p: np.ndarray, module: CFMVCModule, solver: Solver) -> Tensor:
        """Latents (n, n_latent) after the perturbation with the vector ``p`` (n_features,)."""
        vectors = torch.from_numpy(p).to(self.z.device).expand(len(self.z), -1)
        return module.transport(self.z, vectors, self.context, solver, self.flow)

    def effect(self, log_share: Tensor, module: CFMVCModule) -> np.ndarray:
        """Change (n_genes,) of the mean expected log1p CP10k when the log shares become these, (n, n_genes)."""
        mean = np.exp(log_share.numpy()) * self.library[:, None]
        likelihood = module.likelihood.in_batches(self.context.batch)
        return likelihood.expected_lognorm(mean, self.library).mean(axis=0) - self.level

    @torch.inference_mode()
    def decoded(self, z: Tensor, module: CFMVCModule) -> Tensor:
        """Log share of every gene (n, n_genes), on the CPU, of the cells at other latents."""
        return module.decoder(z, self.technical, self.context.batch).cpu()
