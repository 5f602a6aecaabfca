r"""How far vectors tell of a perturbation that was not measured, by leaving measured perturbations out.

What the process says of a perturbation from its vector is a weighted sum over the populations of training,
:math:`\hat y = \sum_i w_i y_i`. Whether it holds depends on the vectors: where they tell what perturbations do, each of
the measured ones is predicted well by the others. With :math:`r_i` the residuals of the populations of perturbation
:math:`B` when all of them are left out, :math:`\hat y_{-B} = \hat y - \sum_{i \in B} w_i r_i`, and

.. math:: J = \sum_B \left\lVert \sum_{i \in B} w_i r_i \right\rVert^2

is the jackknife's estimate of the squared error that comes from which perturbations happened to be measured (Efron and
Stein, 1981). An answer that hangs on one perturbation alone has :math:`J = \lVert \hat y \rVert^2`. The part

.. math:: s = \max\left(1 - J / \lVert \hat y \rVert^2, \; 0.05\right)

of the answer is kept: the factor of least expected squared error, with what is estimated in place of what is true (the
positive part of James and Stein, 1961). A little is always left, so that the direction of the answer can be seen.

One kernel serves all genes, that of the process without the part that follows the level of a gene, and with the mean
noise. The residuals of a group left out are in closed form (Rasmussen and Williams, 2006, section 5.4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from cfmvc_scvi.calibration.covariance import JITTER
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.registration.members import Members

#: Part of an answer that is kept in any case.
LEAST = 0.05
#: Populations that are looked at; of more, those of a random sample of perturbations.
_MOST = 2000
#: Directions of the effects that are kept.
_RANK = 64


@dataclass(frozen=True)
class VectorReach:
    """Populations of training, as far as the reach of their vectors depends on them.

    Attributes
    ----------
    members
        Perturbations of every population, n of them.
    kind
        A number for each perturbation or combination, shape (n,).
    context
        Index of the context of every population, shape (n,).
    effect
        Effects, in coordinates in which they have the same inner products as over genes, shape (n, rank).
    noise
        Variance of the noise of every population over the mean squared effect, shape (n,).
    hyper, distance
        Hyperparameters of the process, and distances of its contexts, shape (n_contexts, n_contexts).
    """

    members: Members
    kind: np.ndarray
    context: np.ndarray
    effect: np.ndarray
    noise: np.ndarray
    hyper: Mapping[str, float]
    distance: np.ndarray

    @classmethod
    def fit(cls, process: EffectGP, effects: MeanEffects, kind: np.ndarray | None = None, seed: int = 0) -> VectorReach:
        """Of a process that was fitted to populations with these effects.

        ``kind`` is a number for each perturbation; ``None``: they differ by their places in the table of vectors.
        """
        if kind is None:
            index = np.sort(effects.members.index, axis=1)
            kind = np.unique(index, axis=0, return_inverse=True)[1].ravel()
        if len(kind) > _MOST:
            order = np.random.default_rng(seed).permutation(kind.max() + 1)
            sizes = np.bincount(kind)[order]
            rows = np.flatnonzero(np.isin(kind, order[np.cumsum(sizes) <= _MOST]))
            effects, kind = effects.take(rows), kind[rows]
        y = effects.effect.astype(np.float64)
        values, directions = np.linalg.eigh(y @ y.T)
        values, directions = values[-_RANK:], directions[:, -_RANK:]
        noise = process.hyper["noise"] * effects.variance.sum(axis=1, dtype=np.float64)
        return cls(
            members=effects.members.compact(),
            kind=kind,
            context=effects.context,
            effect=directions * np.sqrt(np.maximum(values, 0.0)),
            noise=noise / max(float(effects.amplitudes[0].sum()), 1e-12),
            hyper=dict(process.hyper),
            distance=process.state["distance"],
        )

    def of(self, vector: Float[np.ndarray, " n_features"]) -> float:
        """Part, from 0.05 to 1, that is kept of an answer for a perturbation with this vector."""
        overlap = self.members.sums() @ np.asarray(vector, dtype=np.float64)
        member = self.kind[:, None] == np.arange(self.kind.max() + 1)
        error = size = 0.0
        for context in np.unique(self.context):
            weights = self._precision @ (overlap * self._shared(context))
            size += float(((weights @ self.effect) ** 2).sum())
            error += float(((member.T @ (weights[:, None] * self._left_out)) ** 2).sum())
        return max(1.0 - error / size, LEAST) if size > 0 else LEAST

    def to_saved(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_saved` reads back."""
        names = ("kind", "context", "effect", "noise", "hyper", "distance")
        return {name: getattr(self, name) for name in names} | {"members": self.members.to_saved()}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> VectorReach:
        """Counterpart of :meth:`to_saved`."""
        return cls(**{**saved, "members": Members.from_saved(saved["members"])})

    def _shared(self, context: int | np.integer) -> np.ndarray:
        """Covariance of unit effects in the populations' contexts with those in one context, shape (n,)."""
        near = np.exp(-self.distance[context][self.context] / (2 * self.hyper["length"]))
        return self.hyper["common"] + self.hyper["context"] * near

    @cached_property
    def _precision(self) -> np.ndarray:
        """Inverse covariance of the populations, shape (n, n)."""
        sums = np.asarray(self.members.sums())
        shared = np.stack([self._shared(context) for context in range(len(self.distance))])
        covariance = (sums @ sums.T) * shared[self.context][:, self.context]
        return np.linalg.inv(covariance + np.diag(self.noise + JITTER))

    @cached_property
    def _left_out(self) -> np.ndarray:
        """Residuals of every population when all of its perturbation are left out, shape (n, rank)."""
        alike = self.kind[:, None] == self.kind
        return np.linalg.solve(self._precision * alike, self._precision @ self.effect)
