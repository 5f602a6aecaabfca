"""Source cells of a prediction, made with a module of random weights instead of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.cells.latents import CellPosterior
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.prediction.request import PredictionCall
from cfmvc_scvi.prediction.sources import SourceCells


def sources(order: list[int], call: PredictionCall | None = None, **changes) -> SourceCells:
    """Cells of 50, in this order; every cell has the same latents wherever it stands."""
    torch.manual_seed(0)
    module = CFMVCModule(7, 1, 2, 2, n_latent=4, n_latent_technical=2, n_hidden=8, n_basis=3, n_hidden_flow=8)
    for weight in module.eval().parameters():
        torch.nn.init.normal_(weight, std=0.3)
    posterior = CellPosterior(*(torch.randn(50, size).abs() + 0.1 for size in (4, 4, 2, 2)))
    counts = np.random.default_rng(0).poisson(3.0, (50, 7)).astype(np.float32)
    labels = torch.arange(50) % 2
    obs = pd.DataFrame(
        {"cell_type": np.array(["T", "NK"])[labels], "batch": "p0", "_scvi_x": 0}, index=[f"c{i}" for i in range(50)]
    )
    context = FlowContext(torch.zeros_like(labels), labels)
    rows = np.array(order)
    whole = CellTable(sparse.csr_matrix(counts), obs, context, counts.sum(axis=1), has_size_factor=False).take(rows)
    padded = whole.padded()
    places = np.r_[rows, np.repeat(rows[:1], len(padded) - len(rows))]
    arguments = {
        "cells": padded,
        "n_cells": len(rows),
        "nearest": np.zeros(len(rows), dtype=bool),
        "labels": np.array(["T", "NK"])[labels[rows]],
        "posterior": posterior[torch.from_numpy(places)],
        "module": module,
        "call": PredictionCall() if call is None else call,
    }
    return SourceCells(**(arguments | changes))


@pytest.fixture(name="sources", scope="session")
def _sources() -> Callable[..., SourceCells]:
    """Function ``sources(order, call=None, **changes)``."""
    return sources
