r"""The part of an effect that all genes share: counts per 10,000 have one sum, and what rises pushes the rest down.

With :math:`m_{cg}` the control level of a gene in a context, the mean of log1p of counts per 10,000, a factor
:math:`e^{\delta}` on the shares of all genes changes the levels by about :math:`\delta h_{cg}`, where
:math:`h_{cg} = 1 - e^{-m_{cg}}`. For every population :math:`\delta` is found by weighted least squares,

.. math:: \hat\delta_i = \frac{\sum_g w_{ig} h_g y_{ig}}{\sum_g w_{ig} h_g^2}, \qquad w_{ig} = \frac{1}{a_g + v_{ig}}

with :math:`v` the sampling variances and :math:`a_g` the mean squared effect of the gene beside the offset, less those
variances: genes that respond count for little. What the others' effects :math:`r_g` push all genes by is

.. math:: \delta(r) = -\log \frac{\sum_g (e^{m_g + r_g} - 1)}{\sum_g (e^{m_g} - 1)} .

:math:`\hat\delta - \beta\, \delta(r)` is one more column beside the effects :math:`y - \hat\delta h` for a model that
goes gene by gene and is linear in the perturbation's vector, as the offset is not: any genes that rise push the others
down, whatever the vector's sign. In each gene the offset is small beside the sampling error; all together know it well.
:math:`\beta` is found by least squares. It is near 1 where library sizes are the sums of the genes at hand, and near 0
for a panel of few genes with library sizes of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cfmvc_scvi.calibration.process import BLOCK, MeanEffects
from cfmvc_scvi.calibration.process_error import EffectError

#: Rounds of finding the offsets, and what of the effects is left beside them.
_N_ROUNDS = 4
#: Least mean squared effect of a gene beside the offset.
_FLOOR = 1e-4
#: Largest part of the offset that follows from the effects; mean levels tell shares with some error.
_MOST = 1.5


@dataclass(frozen=True)
class Composition:
    r"""Takes effects apart into those of single genes and an offset, and puts them together.

    Attributes
    ----------
    profiles
        Mean log1p CP10k of the controls of every context, shape (n_contexts, n_genes).
    excess
        Mean squared effect of every gene beside the offset, less its sampling variance, shape (n_genes,).
    closure
        Part of the offset that follows from the effects of the genes, :math:`\\beta`.
    """

    profiles: np.ndarray
    excess: np.ndarray
    closure: float = 0.0

    @classmethod
    def fit(cls, effects: MeanEffects, profiles: np.ndarray) -> Composition:
        """Learn from the observed effects of training populations."""
        own = cls(profiles.astype(np.float64), effects.amplitudes[1])
        for _ in range(_N_ROUNDS):
            parts = own.split(effects)
            own = replace(own, excess=parts.amplitudes[1][:-1])
        parts = own.split(effects)
        pushed = np.concatenate([own._pushed_by_noisy(parts, rows) for rows in _chunks(parts)])
        slope = float((parts.effect[:, -1:] * pushed).sum() / max(float((pushed**2).sum()), 1e-12))
        return replace(own, closure=float(np.clip(slope, 0.0, _MOST)))

    @cached_property
    def slope(self) -> np.ndarray:
        """Change of every gene's level per unit of the offset, shape (n_contexts, n_genes)."""
        return -np.expm1(-self.profiles)

    @property
    def with_column(self) -> np.ndarray:
        """The profiles with a column of zeros for the offset, shape (n_contexts, n_genes + 1)."""
        return np.pad(self.profiles, ((0, 0), (0, 1)))

    def split(self, effects: MeanEffects) -> MeanEffects:
        """Effects (n, n_genes) as those beside the offset and, in one more column, what is left of the offset."""
        n, n_genes = effects.effect.shape
        effect, variance = (np.empty((n, n_genes + 1), dtype=np.float32) for _ in range(2))
        variance[:, :-1] = effects.variance
        parts = replace(effects, effect=effect, variance=variance, freedom=None)
        for rows in _chunks(effects):
            y, v = effects.effect[rows].astype(np.float64), effects.variance[rows].astype(np.float64)
            slope = self.slope[effects.context[rows]]
            weighted = slope / (self.excess + _FLOOR + v)
            information = np.maximum((weighted * slope).sum(axis=1), 1e-9)
            offset = (weighted * y).sum(axis=1) / information
            effect[rows, :-1] = y - offset[:, None] * slope
            effect[rows, -1], variance[rows, -1] = offset, 1.0 / information
            if self.closure:
                effect[rows, -1:] -= self.closure * self._pushed_by_noisy(parts, rows)
        if effects.freedom is None:
            return parts
        typical = np.median(effects.freedom, axis=1, keepdims=True)
        return replace(parts, freedom=np.concatenate([effects.freedom, typical], axis=1))

    def join(
        self, parts: Float[np.ndarray, "*n n_parts"], context: int | np.integer | Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "*n n_genes"]:
        """Effects of what :meth:`split` made of them, in a context or one for each row."""
        left = parts[..., :-1]
        return left + (parts[..., -1:] + self.closure * self._pushed(left, context)) * self.slope[context]

    def join_error(self, error: EffectError, context: Int[np.ndarray, " n"]) -> EffectError:
        """The same of estimates in contexts with the covariance of their errors, those of different genes apart."""
        left, slope = error.mean[:, :-1], self.slope[context]
        after = np.where(self.profiles[context] + left > 0, np.exp(self.profiles[context] + left), 0.0)
        pull = self.closure * after / _total(self.profiles[context] + left)

        def joined(parts: np.ndarray) -> np.ndarray:
            offset = parts[-1] + np.einsum("cg,gcd,dg->cd", pull, parts[:-1], pull, optimize=True)
            return parts[:-1] + np.einsum("cg,cd,dg->gcd", slope, offset, slope)

        freedom = None if error.freedom is None else error.freedom[:, :-1]
        mean = self.join(error.mean, context)
        return EffectError(mean, joined(error.process), joined(error.noise), freedom)

    def to_saved(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_saved` reads back."""
        return {"profiles": self.profiles, "excess": self.excess, "closure": self.closure}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> Composition:
        """Counterpart of :meth:`to_saved`."""
        return cls(**saved)

    def _pushed(self, left: np.ndarray, context: Any) -> np.ndarray:
        """Offset that effects (..., n_genes) beside it push all genes by, shape (..., 1)."""
        before = self.profiles[context]
        return np.log(_total(before)) - np.log(_total(before + left))

    def _pushed_by_noisy(self, parts: MeanEffects, rows: slice) -> np.ndarray:
        """The same of observed effects, each drawn towards zero as far as it may be noise."""
        signal = self.excess / (self.excess + parts.variance[rows, :-1] + 1e-12)
        return self._pushed(signal * parts.effect[rows, :-1], parts.context[rows])


def _total(level: np.ndarray) -> np.ndarray:
    """Counts per 10,000 at these levels (..., n_genes), but for a factor, summed over genes; shape (..., 1)."""
    return np.maximum(np.expm1(np.maximum(level, 0.0)).sum(axis=-1, keepdims=True), 1e-9)


def _chunks(effects: MeanEffects) -> Iterator[slice]:
    """Some populations at a time."""
    n, n_genes = effects.effect.shape
    size = max(1, BLOCK // (4 * n_genes))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
