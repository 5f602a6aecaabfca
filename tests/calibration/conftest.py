"""Cells with latents as a calibration sees them, made without a model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.cells.latents import CellPosterior, LatentCache
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.registration.vocabulary import Condition, PerturbationVocabulary

N_GENES = 12


def latent_cache(counts: np.ndarray, labels: np.ndarray, condition: np.ndarray, batch: np.ndarray | None = None):
    """Cells of control, A and B with random latents."""
    n = len(counts)
    batch = np.zeros(n, dtype=int) if batch is None else batch
    context = FlowContext(torch.from_numpy(batch), torch.from_numpy(labels))
    library = np.maximum(counts.sum(axis=1), 1).astype(np.float32)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    table = CellTable(sparse.csr_matrix(counts.astype(np.float32)), obs, context, library, has_size_factor=False)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, size, generator=generator) for size in (4, 4, 2, 2)]
    posterior = CellPosterior(parts[0], parts[1].exp(), parts[2], parts[3].exp())
    conditions = [Condition("control", (), ()), Condition("A", ("A",), (1.0,)), Condition("B", ("B",), (1.0,))]
    return LatentCache(table, posterior, condition, conditions)


@pytest.fixture
def world():
    """A module with random weights, and 240 cells: two types, of each 40 controls, 40 of A and 40 of B."""
    torch.manual_seed(0)
    module = CFMVCModule(N_GENES, 1, 2, 2, n_latent=4, n_latent_technical=2, n_hidden=8, n_basis=3, n_hidden_flow=8)
    for weight in module.eval().parameters():
        torch.nn.init.normal_(weight, std=0.2)
    labels, condition = np.repeat([0, 1], 120), np.tile(np.repeat([0, 1, 2], 40), 2)
    effect = np.where(condition[:, None] == 1, np.tile([3.0, 1 / 3], N_GENES // 2), 1.0)  # of A; B does nothing
    mean = np.random.default_rng(0).gamma(2.0, 20.0, N_GENES) * effect
    counts = np.random.default_rng(1).poisson(mean)
    cache = latent_cache(counts, labels, condition)
    rows = np.arange(240)
    vocabulary = PerturbationVocabulary(["control"], ["A", "B"], "+")
    populations = Populations.of(cache, rows, 2)
    return SimpleNamespace(module=module, cache=cache, rows=rows, vocabulary=vocabulary, populations=populations)


@pytest.fixture(name="latent_cache", scope="session")
def _latent_cache():
    """Function ``latent_cache(counts, labels, condition, batch=None)``."""
    return latent_cache
