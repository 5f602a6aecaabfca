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

    Combinations of unit vectors have a feature for every member and context, and one for every pair that several
    populations share. A pair of a single population tells of no other: its part of the kernel is diagonal, and goes to
    the noise (:meth:`alone`).

    Attributes
    ----------
    p
        Perturbation vectors in r coordinates, shape (n, r).
    pairs
        Pairs within conditions, symmetric tensors laid out so that their products are those of
        :func:`~cfmvc_scvi.registration.members.pair_overlap`; shape (n, 0) without combinations.
    own
        What pairs of a single population add to the products of each with itself, shape (n,).
    context
        Place of every population's context among those that occur, shape (n,).
    contexts
        Codes of the contexts that occur.
    """

    p: np.ndarray
    pairs: np.ndarray
    own: np.ndarray
    context: np.ndarray
    contexts: np.ndarray

    @staticmethod
    def serves(members: Members, context: np.ndarray, rows: np.ndarray) -> bool:
        """Whether these populations have fewer than half as many features; single unit vectors have blocks instead."""
        members = members.take(rows).compact()
        combined = members.combined().any()
        if members.table is not None:
            r = min(members.table.shape)
            n_pairs = r * (r + 1) // 2 if combined else 0
        elif combined and not _repeat_members(members):
            r = len(_used(members))
            n_pairs = int((np.bincount(_unit_pairs(members)[1]) > 1).sum())
        else:
            return False
        return 2 * (r * len(np.unique(context[rows])) + n_pairs) < len(rows)

    @classmethod
    def of(cls, members: Members, context: np.ndarray) -> WeightSpace:
        """Features of populations for which :meth:`serves` holds."""
        members = members.compact()
        contexts, place = np.unique(context, return_inverse=True)
        if members.table is None:
            return cls(_unit_sums(members), *_unit_pair_features(members), place.ravel(), contexts)
        table = members.table.astype(np.float64)
        if table.shape[0] < table.shape[1]:
            table = np.linalg.qr(table.T)[1].T  # the same inner products in fewer coordinates
        reduced = Members(members.index, members.weight, table, table.shape[1])
        pairs = _pair_features(reduced) if members.combined().any() else np.zeros((len(members), 0))
        return cls(np.asarray(reduced.sums()), pairs, np.zeros(len(members)), place.ravel(), contexts)

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

    def alone(self, hyper: Mapping[str, float], amplitude: float | np.ndarray) -> np.ndarray:
        """Diagonal part of the kernel, which the features leave out: shape (n,), or (n_genes, n) of several genes."""
        return np.multiply.outer(np.asarray(amplitude) * hyper["pair"], self.own)


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


# ---- combinations of unit vectors ---------------------------------------------------------------------------------


def _used(members: Members) -> np.ndarray:
    """Features that occur, in order."""
    return np.unique(members.index[(members.index >= 0) & (members.weight != 0)])


def _repeat_members(members: Members) -> bool:
    """Whether a condition has one perturbation twice."""
    ordered = np.sort(members.index, axis=1)
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())


def _unit_sums(members: Members) -> np.ndarray:
    """Sums over members in the features that occur, shape (n, n_used)."""
    row, member = np.nonzero((members.index >= 0) & (members.weight != 0))
    used = _used(members)
    out = np.zeros((len(members), len(used)))
    out[row, np.searchsorted(used, members.index[row, member])] = members.weight[row, member]
    return out


def _unit_pairs(members: Members) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs within conditions: row of the condition, number of the pair, and its feature."""
    weight = np.where(members.index >= 0, members.weight, 0.0).astype(np.float64)
    rows, keys, values = [], [], []
    for first in range(members.index.shape[1]):
        for second in range(first):
            row = np.flatnonzero((weight[:, first] != 0) & (weight[:, second] != 0))
            ends = np.sort(members.index[row][:, [first, second]].astype(np.int64), axis=1)
            rows.append(row)
            keys.append(ends[:, 0] * members.n_features + ends[:, 1])
            values.append(weight[row, first] * weight[row, second] / np.sqrt(2.0))
    _, number = np.unique(np.concatenate(keys), return_inverse=True)
    return np.concatenate(rows), number.ravel(), np.concatenate(values)


def _unit_pair_features(members: Members) -> tuple[np.ndarray, np.ndarray]:
    """Features of the pairs that several populations share, and squares of the others, summed by population."""
    row, number, value = _unit_pairs(members)
    shared = np.bincount(number) > 1
    is_shared = shared[number]
    features = np.zeros((len(members), int(shared.sum())))
    features[row[is_shared], (np.cumsum(shared) - 1)[number[is_shared]]] = value[is_shared]
    own = np.bincount(row[~is_shared], weights=value[~is_shared] ** 2, minlength=len(members))
    return features, own
