"""What a training will take, from a few steps of each stage and from the sizes of what is kept."""

from __future__ import annotations

import copy
import time
import warnings

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scvi import settings

from cfmvc_scvi._base import ModelBase
from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi._types import CellSplit
from cfmvc_scvi.cells.count_loader import CountLoader
from cfmvc_scvi.cells.count_source import count_source
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.cells.pairs import LatentDataModule
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.flow import get_coupling
from cfmvc_scvi.registration.registration import CellConditions
from cfmvc_scvi.train.arguments import VAE_STEPS, epochs_for, flow_steps

#: Cells that the measurement is made on, at most.
_MEASURED = 2048
#: Arrays of one number per population and gene that are alive together while the calibration is made.
_POPULATION_ARRAYS = 12


class ResourceMixin(ModelBase):
    """Estimates of what :class:`~cfmvc_scvi.CFMVC` takes.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: cells and their encoding.
    """

    def estimate_resources(
        self,
        *,
        vae_max_epochs: int | None = None,
        flow_max_epochs: int | None = None,
        batch_size: int = 128,
        flow_batch_size: int = 256,
        available_gb: float | None = None,
    ) -> pd.DataFrame:
        """Time and memory that :meth:`train` is going to take, before it is called.

        A few steps of each stage are timed on at most 2,048 of the cells, with copies of the networks on the device
        they are on (the CPU before training); the model stays as it is. Times are those of this machine as busy as it
        is now, and leave out the calibration. Memory is computed: counts in memory, or what is read of those on disk at
        a time; latents; and 12 arrays of one number per population and gene.

        Parameters
        ----------
        vae_max_epochs, flow_max_epochs, batch_size, flow_batch_size
            As they will be given to :meth:`train`.
        available_gb
            Memory that may be taken, in GB; a warning says what to change where that is not enough. ``None`` does not
            compare.

        Returns
        -------
        DataFrame with the rows ``"stage 1"``, ``"latents"``, ``"stage 2"`` and ``"calibration"`` and the columns
        ``epochs``, ``seconds`` (missing where it is not estimated), ``memory_gb`` (held in this part, beside the
        program itself) and ``disk_gb`` (the networks in one checkpoint; missing where nothing is written).

        Raises
        ------
        RuntimeError
            When the model was loaded without data.
        """
        adata = self._require_adata("measure its cells")
        cells, found = self._read(adata), self._conditions_of(adata)
        n_train = round(0.9 * len(cells)) if self.split_ is None else len(self._split.train)
        vae_epochs = vae_max_epochs or epochs_for(VAE_STEPS, n_train, min(batch_size, n_train))
        flow_epochs = flow_max_epochs or epochs_for(flow_steps(len(self.vocabulary.names)), n_train, flow_batch_size)
        sample = np.unique(np.linspace(0, len(cells) - 1, min(_MEASURED, len(cells))).astype(int))
        vae, encode = self._time_stage1(cells, sample, batch_size)
        flow = self._time_stage2(cells, found, sample, flow_batch_size) if self.vocabulary.names else 0.0
        n, module = len(cells), self.module
        counts = _counts_bytes(cells)
        latents = 8 * n * (module.n_latent + module.n_latent_technical)
        pairs = np.unique(np.stack([found.code, cells.context.labels.numpy()]), axis=1).shape[1]
        populations = 4 * _POPULATION_ARRAYS * pairs * cells.counts.shape[1]
        weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
        table = pd.DataFrame(
            {
                "epochs": [vae_epochs, np.nan, flow_epochs, np.nan],
                "seconds": [vae_epochs * n * vae, n * encode, flow_epochs * n_train * flow, np.nan],
                "memory_gb": np.array([counts, counts + latents, 2 * latents, counts + latents + populations]) / 1e9,
                "disk_gb": [3 * weights / 1e9, np.nan, 3 * weights / 1e9, np.nan],
            },
            index=["stage 1", "latents", "stage 2", "calibration"],
        )
        if available_gb is not None and table["memory_gb"].max() > available_gb:
            _warn_of_memory(table["memory_gb"].max(), available_gb, counts, populations, cells)
        return table

    def _time_stage1(self, cells: CellTable, sample: np.ndarray, batch_size: int) -> tuple[float, float]:
        """Seconds per cell of a training step, and of encoding; reading included."""
        module = copy.deepcopy(self.module)
        module.train()
        loader = CountLoader(count_source(cells), sample, min(batch_size, len(sample)), shuffle=True)
        began, n_cells = time.perf_counter(), 0
        with torch.random.fork_rng():
            for batch in loader:
                module.elbo_terms(batch.to(module.device)).loss().backward()
                n_cells += len(batch)
        step = (time.perf_counter() - began) / n_cells
        began = time.perf_counter()
        self._encode(cells.take(sample), 1024)
        return step, (time.perf_counter() - began) / len(sample)

    def _time_stage2(self, cells: CellTable, found: CellConditions, sample: np.ndarray, batch_size: int) -> float:
        """Seconds per cell of a training step, pairing included."""
        sample = np.union1d(sample, np.flatnonzero(found.is_control)[:batch_size])
        some = cells.take(sample)
        cache = LatentCache(some, self._encode(some, 1024), found.code[sample], found.conditions)
        data = cache.flow_data(torch.zeros(1), torch.ones(1), self.vocabulary.members(found.conditions))
        split = CellSplit(np.arange(len(sample)), sample[:0], sample[:0])
        pairs = LatentDataModule(data, split, get_coupling(self.coupling), self.flow_source, batch_size)
        module = copy.deepcopy(self.module)
        module.train()
        began, n_cells = time.perf_counter(), 0
        with torch.random.fork_rng():
            for batch in pairs.train_dataloader():
                here = batch.to(module.device)
                t = torch.rand(len(batch), device=module.device)
                module.flow_loss(here.z0, here.z1, t, here.context, here.p, here.condition).backward()
                n_cells += len(batch)
        return (time.perf_counter() - began) / max(1, n_cells)


def _counts_bytes(cells: CellTable) -> int:
    """Memory of the counts: all of them, or those that are read from disk at a time, twice."""
    counts = cells.counts
    if isinstance(counts, DiskRows):
        some = counts[: min(1024, len(counts))]
        gathered = min(len(counts), count_source(cells).n_gathered)
        return 2 * 8 * some.nnz * gathered // max(1, len(some.indptr) - 1)
    return counts.data.nbytes + counts.indices.nbytes if sparse.issparse(counts) else counts.nbytes


def _warn_of_memory(needed: float, available: float, counts: int, populations: int, cells: CellTable) -> None:
    remedies = []
    if not isinstance(cells.counts, DiskRows) and counts / 1e9 > available / 2:
        remedies.append("leave the counts on disk, `cfmvc_scvi.data.open_counts(path)`")
    if populations / 1e9 > available / 2:
        remedies.append(f"keep fewer than {int(cells.counts.shape[1] * available * 1e9 / 2 / populations)} genes")
    warnings.warn(
        f"Training is going to hold about {needed:.1f} GB and {available:.1f} GB may be taken: "
        f"{' and '.join(remedies) or 'use a machine with more memory, or fewer cells'}.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
