"""Cells for timing: negative binomial counts in CSR, made block by block, so that a million cells fit in memory."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

#: Cells drawn afresh; further ones reuse their pattern of zeros, with counts drawn anew.
_POOL = 10_000
_PERTURBATIONS = ["control", "P1", "P2", "P3", "P4", "P5"]


def simulated_cells(n_cells: int, n_genes: int, density: float = 0.18, seed: int = 0) -> ad.AnnData:
    """Counts (n_cells, n_genes), CSR of float32, with columns ``perturbation``, ``cell_type`` and ``batch``."""
    rng = np.random.default_rng(seed)
    pool = _pool(min(n_cells, _POOL), n_genes, density, rng)
    blocks = [_POOL] * (n_cells // _POOL) + ([n_cells % _POOL] if n_cells % _POOL else [])
    orders = [np.arange(size) if i == 0 else rng.permutation(pool.shape[0])[:size] for i, size in enumerate(blocks)]
    lengths = np.diff(pool.indptr)
    indptr = np.r_[0, np.cumsum(np.concatenate([lengths[order] for order in orders]))]
    values = np.empty(indptr[-1], dtype=np.float32)
    genes = np.empty(indptr[-1], dtype=np.int32)
    done = 0
    for i, order in enumerate(orders):
        block = pool[order]
        here = slice(done, done + block.nnz)
        values[here] = block.data if i == 0 else 1.0 + rng.poisson(block.data - 1.0)
        genes[here] = block.indices
        done += block.nnz
    dtype = np.int32 if indptr[-1] < 2**31 else np.int64
    counts = sparse.csr_matrix((values, genes.astype(dtype, copy=False), indptr.astype(dtype)), (n_cells, n_genes))
    return ad.AnnData(counts, obs=_obs(n_cells, rng), var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


def _pool(n_cells: int, n_genes: int, density: float, rng: np.random.Generator) -> sparse.csr_matrix:
    level = rng.normal(scale=1.5, size=n_genes)
    loadings = rng.normal(scale=0.3, size=(8, n_genes))
    shift = _shift_for(level, density)
    blocks = []
    for start in range(0, n_cells, 1000):
        size = min(1000, n_cells - start)
        log_rate = level + shift + rng.normal(size=(size, 8)) @ loadings + rng.normal(scale=0.3, size=(size, 1))
        counts = rng.poisson(rng.gamma(2.0, np.exp(log_rate) / 2.0))
        blocks.append(sparse.csr_matrix(counts.astype(np.float32)))
    return sparse.vstack(blocks, format="csr")


def _shift_for(level: np.ndarray, density: float) -> float:
    """Added to the log rates so that about this share of the counts is not zero."""
    low, high = -12.0, 12.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        share = 1.0 - np.mean((1.0 + np.exp(level + middle) / 2.0) ** -2.0)
        low, high = (middle, high) if share < density else (low, middle)
    return middle


def _obs(n_cells: int, rng: np.random.Generator) -> pd.DataFrame:
    perturbation = np.where(rng.random(n_cells) < 0.4, 0, rng.integers(1, len(_PERTURBATIONS), n_cells))
    return pd.DataFrame(
        {
            "perturbation": pd.Categorical.from_codes(perturbation, _PERTURBATIONS),
            "cell_type": pd.Categorical.from_codes(rng.integers(4, size=n_cells), ["A", "B", "C", "D"]),
            "batch": pd.Categorical.from_codes(rng.integers(2, size=n_cells), ["b1", "b2"]),
        },
        index=np.arange(n_cells).astype(str),
    )
