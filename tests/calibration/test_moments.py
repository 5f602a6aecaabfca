"""Moments of log1p CP10k from the stored counts, against the dense computation."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from scipy import sparse

from cfmvc_scvi._rows import DiskRows
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


@pytest.mark.parametrize("sums_bytes", [1, 10_000_000])
def test_groups_on_disk_are_those_in_memory(monkeypatch, sums_bytes):
    monkeypatch.setattr(moments, "_PIECE", 7)
    monkeypatch.setattr(moments, "_SUMS_BYTES", sums_bytes)
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.8, size=(40, 9)).astype(np.float32))
    group = zarr.group(zarr.storage.MemoryStore())
    ad.io.write_elem(group, "X", counts)
    library = np.maximum(counts.toarray().sum(axis=1), 1.0)
    context = FlowContext(*torch.zeros(2, 40, dtype=torch.long))
    memory = CellTable(counts, pd.DataFrame(index=range(40)), context, library, False)
    disk = replace(memory, counts=DiskRows(ad.io.sparse_dataset(group["X"]), "adata.X"))
    groups = [np.array([5, 1, 30]), np.arange(0, 40, 2), np.array([0]), np.arange(40)]
    found, expected = (list(moments.group_moments(cells, groups)) for cells in (disk, memory))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(*(moments.highest_lognorm(cells, groups[1]) for cells in (disk, memory)))
    assert list(moments.group_moments(disk, [])) == []
