"""Many populations of few features: the process solved in the space of its weights, linear in the populations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cfmvc_scvi.registration.members import Members


@dataclass(frozen=True)
class WeightSpace:
    r"""Features of populations in which the kernel of the process is an inner product.

    With the features :math:`\Phi` of a gene, :math:`K = \Phi \Phi^\top`, and the noise N, which is diagonal,

    .. math:: (K + N)^{-1} = N^{-1} - N^{-1} \Phi \left(1 + \Phi^\top N^{-1} \Phi\right)^{-1} \Phi^\top N^{-1}

    (Woodbury's identity). The cost is that of q² products per population, q the number of features, and q³ / 3.

    Attributes
    ----------
    p
        Perturbation vectors in r coordinates, shape (n, r).
    pairs
        Pairs within conditions, symmetric tensors laid out so that their products are those of
        :func:`~cfmvc_scvi.registration.members.pair_overlap`; shape (n, 0) without combinations.
    context
        Place of every population's context among those that occur, shape (n,).
    contexts
        Codes of the contexts that occur.
    """

    p: np.ndarray
    pairs: np.ndarray
    context: np.ndarray
    contexts: np.ndarray

    @staticmethod
    def serves(members: Members, context: np.ndarray, rows: np.ndarray) -> bool:
        """Whether these populations have fewer than half as many features; unit vectors have blocks instead."""
        if members.table is None:
            return False
        members = members.take(rows).compact()
        assert members.table is not None  # as before
        r = min(members.table.shape)
        q = r * len(np.unique(context[rows])) + (r * (r + 1) // 2 if members.combined().any() else 0)
        return 2 * q < len(rows)

    @classmethod
    def of(cls, members: Members, context: np.ndarray) -> WeightSpace:
        """Features of populations; members with a table of vectors."""
        members = members.compact()
        assert members.table is not None  # see serves()
        table = members.table.astype(np.float64)
        if table.shape[0] < table.shape[1]:
            table = np.linalg.qr(table.T)[1].T  # the same inner products in fewer coordinates
        reduced = Members(members.index, members.weight, table, table.shape[1])
        contexts, place = np.unique(context, return_inverse=True)
        pairs = _pair_features(reduced) if members.combined().any() else np.zeros((len(members), 0))
        return cls(np.asarray(reduced.sums()), pairs, place.ravel(), contexts)

    def features(self, hyper: Mapping[str, float], distance: np.ndarray, amplitude: float, x: np.ndarray) -> Tensor:
        r"""Features :math:`\Phi` of a gene, shape (n, q).

        Parameters
        ----------
        hyper
            Hyperparameters of the process.
        distance
            Distances of all contexts, shape (n_contexts, n_contexts).
        amplitude
            Mean squared effect of the gene.
        x
            Centred control level of the gene in all contexts, shape (n_contexts,).
        """
        shared = hyper["common"] + hyper["context"] * np.exp(-distance / (2 * hyper["length"]))
        here = np.ix_(self.contexts, self.contexts)
        between = amplitude * shared[here] + hyper["slope"] * np.outer(x[self.contexts], x[self.contexts])
        values, vectors = np.linalg.eigh(between)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        linear = (self.p[:, :, None] * root[self.context][:, None, :]).reshape(len(self.p), -1)
        return torch.from_numpy(np.concatenate([linear, np.sqrt(amplitude * hyper["pair"]) * self.pairs], axis=1))


def solve_weight_space(features: Tensor, noise: Tensor, right: Tensor) -> Tensor:
    """Solution (n, k) of kernel plus noise, for features (n, q), noise (n,) and right sides (n, k)."""
    scaled = features / noise[:, None]
    inner = features.mT @ scaled
    inner.diagonal().add_(1.0)
    return right / noise[:, None] - scaled @ torch.cholesky_solve(scaled.mT @ right, torch.linalg.cholesky(inner))


def _pair_features(members: Members) -> np.ndarray:
    """Symmetric parts of the sums over k < l of outer products, off-diagonal places once, times the root of two."""
    vectors = np.asarray(members.dense(), dtype=np.float64).transpose(1, 0, 2)
    row, column = np.triu_indices(vectors.shape[2])
    scale = np.where(row == column, 1.0, np.sqrt(2.0))
    total = vectors.sum(axis=0)
    out = total[:, row] * total[:, column]
    for member in vectors:
        out -= member[:, row] * member[:, column]
    return 0.5 * scale * out
