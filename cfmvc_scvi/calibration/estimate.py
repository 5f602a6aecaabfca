"""Estimators of the mean effect of a condition on every gene in a cell type, and how others are added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Float

from cfmvc_scvi._messages import unknown_choice
from cfmvc_scvi.calibration.process import MeanEffects


@dataclass(frozen=True)
class EffectQuery:
    """A condition in a cell type, and what the model's own parts say of its mean effect.

    Effects are changes of the mean of log1p of counts per 10,000, arrays of shape (n_genes,).

    Attributes
    ----------
    members
        Weighted vectors of the perturbations given together, shape (n_members, n_features).
    label
        Code of the cell type.
    latent
        Effect that the flow and the decoder give, mean over the control cells that stand for the cell type; of
        perturbations that were seen alone, but not together, the sum of their effects.
    shift
        Effect of a shift of the latent that is the same in every cell type, decoded; ``None`` where the perturbations
        were not seen.
    process
        Effect by the Gaussian process over the training populations; ``None`` where there were no populations.
    n_contexts
        Cell types that the perturbation was seen in; of a sum, the least of its members.
    summed
        Whether ``latent`` is such a sum.
    """

    members: Float[np.ndarray, "n_members n_features"]
    label: int
    latent: Float[np.ndarray, " n_genes"]
    shift: Float[np.ndarray, " n_genes"] | None
    process: Float[np.ndarray, " n_genes"] | None
    n_contexts: int = 0
    summed: bool = False


class EffectEstimator(ABC):
    """Estimates the mean effect that decoded changes are corrected to.

    A further estimator is one subclass and one call of :func:`register_estimator`. ``fit`` sees the training
    populations; an estimator that learns nothing of them keeps the default.
    """

    #: Name that ``model.calibrate(estimator=...)`` takes.
    name: ClassVar[str]

    @classmethod
    def fit(cls, effects: MeanEffects, profiles: np.ndarray) -> EffectEstimator:
        """Learn from the training populations.

        Parameters
        ----------
        effects
            Observed mean effects of the populations; there may be none.
        profiles
            Mean log1p CP10k of the control cells of every cell type, shape (n_labels, n_genes).
        """
        return cls()

    def weights(self, n_contexts: int, summed: bool, with_process: bool) -> dict[str, float]:
        """What the estimate is made of, where it is a weighted mean: estimator -> weight; else its own name.

        Parameters
        ----------
        n_contexts, summed
            As in :class:`EffectQuery`.
        with_process
            Whether there is a Gaussian process: training populations, that is.
        """
        return {self.name: 1.0}

    @abstractmethod
    def estimate(self, query: EffectQuery) -> Float[np.ndarray, " n_genes"]:
        """Mean effect, shape (n_genes,)."""

    def to_saved(self) -> dict[str, Any]:
        """Plain containers of what :meth:`fit` learned."""
        return {}

    @classmethod
    def from_saved(cls, saved: dict[str, Any]) -> EffectEstimator:
        """Counterpart of :meth:`to_saved`."""
        return cls(**saved)


class LatentEstimator(EffectEstimator):
    """The latent path alone: what the flow and the decoder say."""

    name = "latent"

    def estimate(self, query: EffectQuery) -> Float[np.ndarray, " n_genes"]:
        """See :meth:`EffectEstimator.estimate`."""
        return query.latent


class ProcessEstimator(EffectEstimator):
    """The Gaussian process over the training populations alone; the latent path where there were none."""

    name = "process"

    def estimate(self, query: EffectQuery) -> Float[np.ndarray, " n_genes"]:
        """See :meth:`EffectEstimator.estimate`."""
        return query.latent if query.process is None else query.process


class ShiftEstimator(EffectEstimator):
    """The same shift of the latent in every cell type; the latent path where the perturbations were not seen."""

    name = "shift"

    def estimate(self, query: EffectQuery) -> Float[np.ndarray, " n_genes"]:
        """See :meth:`EffectEstimator.estimate`."""
        return query.latent if query.shift is None else query.shift


class AverageEstimator(EffectEstimator):
    """Half the process, half the latent: the flow, and from few cell types a constant shift beside it.

    The flow says how a cell type differs in its response, from few cell types too much; the shift says what all have
    in common, which is half of the latent's part for up to four cell types and next to nothing for ten. Both are biased
    on genes that the latent does not hold; the process knows every gene, and a context only by how similar it is to
    those of the training data, and how perturbations interact. Where the perturbations were not seen, the flow takes
    the shift's part, and where there were no populations, the latent that of the process. Of combinations that were not
    seen together the latent knows a sum alone, and the process counts three quarters.
    """

    name = "average"
    #: Weight of the process, and of combinations that were not seen together.
    WEIGHT: ClassVar[float] = 0.5
    WEIGHT_OF_SUMS: ClassVar[float] = 0.75
    #: Cell types up to which the shift is half of the latent's part; beyond, its part falls with their fourth power.
    FEW: ClassVar[int] = 4

    def weights(self, n_contexts: int, summed: bool, with_process: bool) -> dict[str, float]:
        """See :meth:`EffectEstimator.weights`."""
        shift = 0.5 * min(1.0, (self.FEW / n_contexts) ** 4) if n_contexts else 0.0
        process = (self.WEIGHT_OF_SUMS if summed else self.WEIGHT) if with_process else 0.0
        parts = {"process": process, "latent": (1.0 - process) * (1.0 - shift), "shift": (1.0 - process) * shift}
        return {name: weight for name, weight in parts.items() if weight}

    def estimate(self, query: EffectQuery) -> Float[np.ndarray, " n_genes"]:
        """See :meth:`EffectEstimator.estimate`."""
        n_contexts = 0 if query.shift is None else max(query.n_contexts, 1)
        weights = self.weights(n_contexts, query.summed, query.process is not None)
        return np.sum([weight * getattr(query, name) for name, weight in weights.items()], axis=0)


ESTIMATORS: Final[dict[str, type[EffectEstimator]]] = {}


def register_estimator(estimator: type[EffectEstimator]) -> type[EffectEstimator]:
    """Make an estimator known by its name; returns it, so that this can decorate the class."""
    ESTIMATORS[estimator.name] = estimator
    return estimator


for _estimator in (LatentEstimator, ShiftEstimator, ProcessEstimator, AverageEstimator):
    register_estimator(_estimator)


def get_estimator(name: str) -> type[EffectEstimator]:
    """Estimator of that name.

    Raises
    ------
    ValueError
        For an unknown name; lists those that are known.
    """
    if name not in ESTIMATORS:
        raise ValueError(unknown_choice("estimator", name, sorted(ESTIMATORS)))
    return ESTIMATORS[name]
