"""What a training will take, from a few steps of each stage and from the sizes of what is kept."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._base import ModelBase
from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi._types import CellSplit, obs_of
from cfmvc_scvi.cells.count_loader import CountLoader
from cfmvc_scvi.cells.count_source import count_source
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.cells.pairs import LatentDataModule
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.flow import get_coupling
from cfmvc_scvi.io.memory import free_memory
from cfmvc_scvi.registration.registration import CellConditions
from cfmvc_scvi.train.arguments import VAE_STEPS, epochs_for, flow_steps

#: Cells that the measurement is made on, at most.
_MEASURED = 2048
#: Arrays of one number per cell and latent dimension in stage 2: the posterior in its units, and a pass of pairs.
_PAIR_ARRAYS = 5
#: Arrays of one number per population and gene that are alive together while the calibration is made.
_POPULATION_ARRAYS = 12


@dataclass(frozen=True)
class _Plan:
    """Sizes of what a training keeps: bytes of latents and of pairs per cell, bytes of all populations."""

    cells: int
    genes: int
    latents: int
    pairs: int
    populations: int

    def message(self, needed: float, free: float, counts: float = 0) -> str:
        """What is too large, and the setting that would fit."""
        remedies = []
        if counts > free / 2:
            remedies.append("leave the counts on disk, `cfmvc_scvi.data.open_counts(path)`")
        if self.populations > free / 2:
            remedies.append(f"keep fewer than {int(self.genes * free / 2 / self.populations)} of {self.genes} genes")
        if self.cells * (self.latents + self.pairs) > free / 2:
            most = int(free / 2 / (self.latents + self.pairs))
            remedies.append(f"train on at most {most} of {self.cells} cells, a random sample of every condition")
        return (
            f"Training is going to take about {_gb(needed)} of memory, and {_gb(free)} may be taken: "
            f"{', and '.join(remedies) or 'use a machine with more memory'}."
        )


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
            Memory that may be taken, in GB. ``None`` does not compare; :meth:`train` itself compares with what is free.

        Returns
        -------
        DataFrame with the rows ``"stage 1"``, ``"latents"``, ``"stage 2"`` and ``"calibration"`` and the columns
        ``epochs``, ``seconds`` (missing where it is not estimated), ``memory_gb`` (held in this part, beside the
        program itself) and ``disk_gb`` (the networks in one checkpoint; missing where nothing is written).

        Raises
        ------
        RuntimeError
            When the model was loaded without data.
        MemoryError
            When more than ``available_gb`` would be held, with what to change.
        """
        adata = self._require_adata("measure its cells")
        cells, found = self._read(adata), self._conditions_of(adata)
        n_train = round(0.9 * len(cells)) if self.split_ is None else len(self._split.train)
        vae_epochs = vae_max_epochs or epochs_for(VAE_STEPS, n_train, min(batch_size, n_train))
        flow_epochs = flow_max_epochs or epochs_for(flow_steps(len(self.vocabulary.names)), n_train, flow_batch_size)
        sample = np.unique(np.linspace(0, len(cells) - 1, min(_MEASURED, len(cells))).astype(int))
        vae, encode = self._time_stage1(cells, sample, batch_size)
        flow = self._time_stage2(cells, found, sample, flow_batch_size) if self.vocabulary.names else 0.0
        counts, plan = _counts_bytes(cells), self._plan_of(adata)
        latents, pairs, populations = plan.cells * plan.latents, plan.cells * plan.pairs, plan.populations
        held = [counts, counts + latents, latents + pairs, counts + latents + populations]
        if available_gb is not None and max(held) > 1e9 * available_gb:
            raise MemoryError(plan.message(max(held), 1e9 * available_gb, 0 if _on_disk(cells) else counts))
        n, weights = len(cells), sum(v.numel() * v.element_size() for v in self.module.state_dict().values())
        return pd.DataFrame(
            {
                "epochs": [vae_epochs, np.nan, flow_epochs, np.nan],
                "seconds": [vae_epochs * n * vae, n * encode, flow_epochs * n_train * flow, np.nan],
                "memory_gb": np.array(held) / 1e9,
                "disk_gb": [3 * weights / 1e9, np.nan, 3 * weights / 1e9, np.nan],
            },
            index=["stage 1", "latents", "stage 2", "calibration"],
        )

    def _require_memory(self, adata: AnnData) -> None:
        """Refuse a training whose own arrays cannot fit into what is free; the counts of ``adata`` are there already.

        It is stage 2 that keeps arrays: stage 1 holds what it reads at a time.
        """
        free = free_memory()
        if free is None:
            return
        plan = self._plan_of(adata)
        needed = plan.cells * plan.latents + max(plan.cells * plan.pairs, plan.populations)
        if needed > free:
            raise MemoryError(plan.message(needed, free))

    def _plan_of(self, adata: AnnData) -> _Plan:
        key, condition = self.setup_keys.labels_key, self._conditions_of(adata).code
        label = np.zeros_like(condition) if key is None else pd.factorize(obs_of(adata)[key])[0]
        n_populations = len(np.unique(condition * (label.max() + 1) + label))
        n_genes, n_latent = len(self._var_names), self.module.n_latent
        return _Plan(
            cells=adata.n_obs,
            genes=n_genes,
            latents=8 * (n_latent + self.module.n_latent_technical),
            pairs=_PAIR_ARRAYS * 4 * n_latent,
            populations=4 * _POPULATION_ARRAYS * n_populations * n_genes,
        )

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
    if _on_disk(cells):
        some = counts[: min(1024, len(counts))]
        gathered = min(len(counts), count_source(cells).n_gathered)
        return 2 * 8 * some.nnz * gathered // max(1, len(some.indptr) - 1)
    return counts.data.nbytes + counts.indices.nbytes if sparse.issparse(counts) else counts.nbytes


def _on_disk(cells: CellTable) -> bool:
    return isinstance(cells.counts, DiskRows)


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.3g} MB"
