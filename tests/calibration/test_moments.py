"""Moments of log1p CP10k from the stored counts, against the dense computation."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.calibration import moments
from cfmvc_scvi.cells.table import CellTable


@pytest.mark.parametrize("container", [sparse.csr_matrix, np.asarray])
@pytest.mark.parametrize("piece", [3, 1000])
def test_moments_and_the_highest_value(monkeypatch, container, piece):
    monkeypatch.setattr(moments, "_PIECE", piece)
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.8, size=(40, 9)).astype(np.float32)
    counts[:, 4] = 0.0
    library = np.maximum(counts.sum(axis=1), 1.0)
    context = FlowContext(*torch.zeros(2, 40, dtype=torch.long))
    cells = CellTable(container(counts), pd.DataFrame(index=range(40)), context, library, False)
    rows = np.array([5, 1, 30, 31, 8, 8, 0])
    y = np.log1p(counts[rows] / library[rows, None] * 1e4)
    mean, variance = moments.lognorm_moments(cells, rows)
    np.testing.assert_allclose(mean, y.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance, y.var(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moments.highest_lognorm(cells, rows), y.max(axis=0), rtol=1e-6)
