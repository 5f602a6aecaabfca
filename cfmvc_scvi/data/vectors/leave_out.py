r"""Effects of perturbations that are left out, predicted from vectors, in closed form.

With a kernel :math:`K` over the vectors, ridge strength :math:`\lambda` and an intercept that is not penalised, the
prediction of every perturbation from all others has the residual

.. math:: r_i = \frac{(P Y)_i}{P_{ii}}, \qquad P = A - \frac{A 1 1^\top A}{1^\top A 1}, \quad A = (K + \lambda I)^{-1}

(Dubrule, 1983), so no model is fitted anew. With :math:`\lambda = \infty` it is the mean of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

import numpy as np
import pandas as pd

from cfmvc_scvi._messages import close_matches, shortened, unknown_choice

#: Ridge strengths that are tried, for kernels whose centred mean squared length is 1.
STRENGTHS: Final = (*np.geomspace(0.01, 100.0, 9).tolist(), np.inf)
#: Perturbations that a left-out prediction needs at least.
FEWEST = 5


def matched(vectors: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    """Names that have a vector and an effect, in the order of the effects.

    Raises
    ------
    ValueError
        Where these are too few, and for repeated names or values that are not finite.
    TypeError
        For anything that is no table.
    """
    for argument, table in (("vectors", vectors), ("effects", effects)):
        if not isinstance(table, pd.DataFrame):
            raise TypeError(f"`{argument}` is a {type(table).__name__}; give a DataFrame with a row per perturbation.")
        if not table.index.is_unique:
            raise ValueError(f"`{argument}` has repeated names: {shortened(table.index[table.index.duplicated()])}.")
        bad = np.flatnonzero(~np.isfinite(table.to_numpy(dtype=float)).all(axis=1))
        if len(bad):
            raise ValueError(f"`{argument}` has values that are not finite, in {shortened(table.index[bad])}.")
    names = [name for name in effects.index if name in vectors.index]
    if len(names) < FEWEST:
        raise ValueError(
            f"{len(names)} perturbations have a vector and an effect; leaving out takes at least {FEWEST}. `vectors` "
            f"has {shortened(vectors.index, 5)}, `effects` {shortened(effects.index, 5)}."
            f"{close_matches(list(effects.index)[:5], vectors.index)}"
        )
    return names


def gram(vectors: np.ndarray, kernel: str = "linear") -> np.ndarray:
    r"""Kernel of vectors (n, d) about their mean, with a mean diagonal of 1; (n, n).

    ``"linear"`` is :math:`p \cdot p'`, what the model's process takes; ``"rbf"`` is :math:`e^{-d^2 / 2 l^2}` with
    :math:`l` the median distance.
    """
    x = vectors - vectors.mean(axis=0)
    if kernel not in ("linear", "rbf"):
        raise ValueError(unknown_choice("kernel", kernel, ("linear", "rbf")))
    inner = x @ x.T
    if kernel == "rbf":
        length = np.diag(inner)
        squared = np.maximum(length[:, None] + length - 2 * inner, 0.0)
        inner = np.exp(-squared / (2 * max(np.median(squared[~np.eye(len(x), dtype=bool)]), 1e-12)))
        inner = inner - inner.mean(axis=0) - inner.mean(axis=1)[:, None] + inner.mean()
    size = np.trace(inner) / len(inner)
    return inner / size if size > 1e-12 else np.zeros_like(inner)


def mixtures(n_sources: int) -> np.ndarray:
    """Weights of sources that are tried, (n_mixtures, n_sources), each row of sum 1: in quarters, or halves of many."""
    steps = 4 if n_sources <= 4 else 2
    rows = [row for row in product(range(steps + 1), repeat=n_sources) if sum(row) == steps]
    even = [[steps / n_sources] * n_sources]
    return np.array(sorted({tuple(np.array(row) / steps) for row in [*rows, *map(tuple, even)]}, reverse=True))


def compressed(effects: np.ndarray) -> np.ndarray:
    """Effects (n, n_genes) in the fewest columns that keep all their inner products, at most n."""
    if effects.shape[1] <= len(effects):
        return effects
    values, vectors = np.linalg.eigh(effects @ effects.T)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def left_out_operators(kernel: np.ndarray) -> Iterator[np.ndarray]:
    """For every strength the matrix (n, n) that takes effects to the residuals of their left-out predictions."""
    n = len(kernel)
    values, vectors = np.linalg.eigh(kernel)
    for strength in STRENGTHS:
        if np.isinf(strength):
            inner = np.eye(n)
        else:
            inner = (vectors / (np.maximum(values, 0.0) + strength)) @ vectors.T
        column = inner.sum(axis=1)
        inner = inner - np.outer(column, column) / column.sum()
        yield inner / np.diag(inner)[:, None]


def left_out_errors(kernels: list[np.ndarray], weights: np.ndarray, effects: list[np.ndarray]) -> np.ndarray:
    """Squared errors of left-out predictions, (n_candidates, len(effects), n).

    Parameters
    ----------
    kernels
        One (n, n) for each source.
    weights
        Mixtures of the sources, shape (n_mixtures, n_sources); every one is tried with every strength.
    effects
        Effects (n, k), or several orders of them.
    """
    out = np.empty((len(weights), len(STRENGTHS), len(effects), len(kernels[0])), dtype=np.float32)
    for i, mixture in enumerate(weights):
        kernel = np.einsum("s,sij->ij", mixture, np.stack(kernels))
        for j, operator in enumerate(left_out_operators(kernel)):
            for k, one in enumerate(effects):  # the operator knows nothing of the effects: shuffles share it
                out[i, j, k] = ((operator @ one) ** 2).sum(axis=1)
    return out.reshape(-1, len(effects), len(kernels[0]))


def cross_fitted(errors: np.ndarray) -> np.ndarray:
    """Errors (n,) where the candidate is chosen for each perturbation by all others; from (n_candidates, n).

    The error that is reported for a perturbation so had no say in what it was predicted with.
    """
    others = errors.sum(axis=1, keepdims=True, dtype=np.float64) - errors
    return errors[np.argmin(others, axis=0), np.arange(errors.shape[1])].astype(np.float64)
