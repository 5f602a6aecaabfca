"""Conditions that the process is asked for, and the weights of the populations in their estimates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cfmvc_scvi.calibration.covariance import JITTER, covariance, kernel
from cfmvc_scvi.calibration.process import DENSE, EffectGP, MeanEffects
from cfmvc_scvi.calibration.weight_space import WeightSpace, solve_weight_space
from cfmvc_scvi.registration.members import numbered, pair_overlap


@dataclass(frozen=True)
class Conditions:
    """Perturbations in contexts, a few at a time.

    Attributes
    ----------
    members
        Weighted vectors of the perturbations given together, shape (n, most members, n_features); rows of zeros where
        there are fewer.
    context
        Index of the context of each, shape (n,).
    """

    members: np.ndarray
    context: np.ndarray

    @property
    def p(self) -> np.ndarray:
        """Perturbation vectors, shape (n, n_features)."""
        return self.members.sum(axis=1, dtype=np.float64)

    @property
    def combined(self) -> np.ndarray:
        """Whether each is a combination of several perturbations, shape (n,)."""
        return (self.members != 0).any(axis=2).sum(axis=1) > 1

    @property
    def length(self) -> np.ndarray:
        """Lengths of the perturbation vectors, shape (n,)."""
        return np.linalg.norm(self.p, axis=1)

    def after(self, data: MeanEffects) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of populations and then these conditions: number of the vector, context, length and whether combined."""
        known = data.members.sums()
        if isinstance(known, np.ndarray):
            kind = numbered(np.concatenate([known, self.p]))
        else:
            kind = numbered(sparse.csr_matrix(sparse.vstack([known, sparse.csr_matrix(self.p)])))
        context = np.concatenate([data.context, self.context])
        length = np.concatenate([data.members.length(), self.length])
        return kind, context, length, np.concatenate([data.members.combined(), self.combined])


def related(data: MeanEffects, queries: Conditions) -> MeanEffects:
    """The populations that tell of some conditions: those in components that share features with them."""
    products = data.members.products(queries.members.reshape(-1, queries.members.shape[2]))
    touched = np.unique(data.component[(products != 0).any(axis=(1, 2))])
    return data.take(np.flatnonzero(np.isin(data.component, touched)))


class QuerySolver:
    """Weights of populations in the estimates of some conditions.

    Parameters
    ----------
    gp
        The fitted process.
    data
        Populations that tell of the conditions.
    queries
        The conditions.

    Attributes
    ----------
    space
        Features of the populations, where they are many and their features few; else ``None``.
    """

    def __init__(self, gp: EffectGP, data: MeanEffects, queries: Conditions) -> None:
        n, (k, most, n_features) = len(data.effect), queries.members.shape
        self._gp, self._data, self._queries = gp, data, queries
        self._rows = np.arange(n)[None]
        vectors = queries.members.reshape(k * most, n_features)
        cross = data.members.products(vectors).reshape(n, data.members.index.shape[1], k, most).transpose(0, 2, 1, 3)
        own = np.einsum("iaf,jbf->ijab", *[queries.members.astype(np.float64)] * 2, optimize=True)
        distance, asked = gp.state["distance"], queries.context
        self._cross = _inner(cross, distance[np.ix_(data.context, asked)])
        self._own = _inner(own, distance[np.ix_(asked, asked)])
        small = n <= DENSE or not WeightSpace.serves(data.members, data.context, self._rows[0])
        self.space = None if small else WeightSpace.of(data.members, data.context)
        self._geometry = gp.geometry(data, self._rows) if small else None
        self._length = data.members.length()

    def variance(self, genes: slice) -> Tensor:
        """Sampling variances of the populations, shape (n_genes, n)."""
        return torch.from_numpy(self._data.variance[:, genes].T.astype(np.float64))

    def means(self, genes: slice) -> tuple[Tensor, Tensor]:
        """Prior means of the conditions (n_genes, k), and residuals of the populations from theirs (n_genes, n)."""
        slope, x = self._gp.hyper["mean_slope"], self._gp.state["x"][:, genes].T
        means = slope * x[:, self._queries.context] * self._queries.length
        residual = self._data.effect[:, genes].T - slope * x[:, self._data.context] * self._length
        return torch.from_numpy(means), torch.from_numpy(residual)

    def solve(self, theta: Tensor, genes: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Kernel of the conditions (n_genes, k, k), and with the populations (n_genes, n, k); weights, that shape."""
        gp, data = self._gp, self._data
        x, amplitude = gp.state["x"][:, genes].T, torch.from_numpy(gp.state["amplitude"][genes])
        known, asked = (torch.from_numpy(x[:, context]) for context in (data.context, self._queries.context))
        own = kernel(theta, *self._own, amplitude, asked, asked)
        shared = kernel(theta, *self._cross, amplitude, known, asked)
        if self._geometry is not None:
            matrix, _ = covariance(theta, *gp.terms(data, self._geometry, genes, self._rows))
            return own, shared, torch.linalg.solve(matrix[:, 0], shared)
        assert self.space is not None  # one of the two ways
        noise = gp.hyper["noise"] * self.variance(genes) + JITTER
        noise += torch.from_numpy(self.space.alone(gp.hyper, gp.state["amplitude"][genes]))
        weights = torch.empty_like(shared)
        for i in range(len(shared)):
            features = self.space.features(gp.hyper, gp.state["distance"], float(amplitude[i]), x[i])
            weights[i] = solve_weight_space(features, noise[i], shared[i])
        return own, shared, weights


def _inner(products: np.ndarray, distance: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, overlap of the pairs, and distance, from products of members (n, m, n_members, n_members')."""
    overlap, pairs = products.sum(axis=(2, 3)), pair_overlap(products)
    return torch.from_numpy(overlap), torch.from_numpy(pairs), torch.from_numpy(distance)
