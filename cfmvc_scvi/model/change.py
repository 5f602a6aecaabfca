"""A decoded change, and how it is put on an observed cell."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from cfmvc_scvi.module.likelihood import draw_counterfactual


@dataclass(frozen=True)
class CellChange:
    """What a perturbation does to some cells; every array has shape (n, n_genes).

    Attributes
    ----------
    lognorm
        Change of log1p of counts per 10,000.
    scale, center
        Factor on the spread of the gene, and the level it spreads around.
    log_ratio
        Log of the factor on the negative binomial's mean.
    mean0
        The negative binomial's mean before, in counts.
    """

    lognorm: np.ndarray
    scale: np.ndarray
    center: np.ndarray
    log_ratio: np.ndarray
    mean0: np.ndarray


def expected_counts(
    x: np.ndarray,
    library: np.ndarray,
    change: np.ndarray,
    scale: np.ndarray,
    center: np.ndarray,
    highest: np.ndarray,
) -> np.ndarray:
    r"""Counts of a cell after a change of its log1p counts per 10,000, at its own library size :math:`L`.

    .. math:: y' = \operatorname{clip}\left(y + \Delta + (k - 1)(y - m),\; 0,\; \max(y, h)\right), \qquad
              y = \log(1 + 10^4 x / L)

    solved for the counts as :math:`x' = x + (x + L / 10^4)(e^{y' - y} - 1)`, so that :math:`\Delta = 0, k = 1`
    returns :math:`x` to the bit.

    Parameters
    ----------
    x
        Observed counts, shape (n, n_genes).
    library
        Library sizes, shape (n,).
    change
        :math:`\Delta`, shape (n, n_genes).
    scale, center
        :math:`k`, the factor on the spread of the gene, and :math:`m`, the level it spreads around; shape (n, n_genes).
    highest
        :math:`h`, the highest level of the gene in the training cells, which no change exceeds; shape (n_genes,).
    """
    y = lognorm_expression(x, library)
    delta = np.clip(change + (scale - 1.0) * (y - center), -y, np.maximum(highest - y, 0.0))
    moved = x + (x + library[:, None] / 1e4) * np.expm1(delta)
    return np.maximum(moved, 0.0).astype(np.float32)


def lognorm_expression(x: np.ndarray, library: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000, shape (n, n_genes), float32."""
    return np.log1p(x / library[:, None] * 1e4).astype(np.float32)


def drawn_counts(
    x: np.ndarray, change: CellChange, theta: np.ndarray, generators: list[np.random.Generator]
) -> sparse.csr_matrix:
    """Counterfactual counts, one generator per cell; CSR (n, n_genes) of float32 whole numbers.

    Raises
    ------
    ValueError
        When the cells hold values that are not counts.
    """
    if (x != np.floor(x)).any():
        raise ValueError(
            "`return_type='counts'` takes from or adds to the observed counts, and these cells have fractional values: "
            "choose 'mean', 'lognorm' or 'latent'."
        )
    rows = [
        sparse.csr_matrix(draw_counterfactual(*arrays, theta, rng).astype(np.float32))
        for *arrays, rng in zip(x, change.mean0, change.log_ratio, generators, strict=True)
    ]
    return sparse.vstack(rows, format="csr")


def cell_generators(names: list[str], seed: int, *purpose: object) -> list[np.random.Generator]:
    """One random generator per cell, fixed by the cell's name, the seed and the purpose alone.

    Draws for a cell are then the same whichever other cells are in the call and in whatever order. A name that
    occurs again gets a stream of its own.
    """
    seen: dict[str, int] = {}
    generators = []
    for name in names:
        occurrence = seen.get(name, 0)
        seen[name] = occurrence + 1
        digest = hashlib.blake2b(repr((name, occurrence, seed, *purpose)).encode(), digest_size=16).digest()
        key = np.frombuffer(digest, dtype=np.uint64)
        generators.append(np.random.Generator(np.random.Philox(key=key)))
    return generators
