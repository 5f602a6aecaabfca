"""What a calibration has learned, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cfmvc_scvi.calibration.composition import Composition
from cfmvc_scvi.calibration.estimate import EffectEstimator, get_estimator
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import Misfit
from cfmvc_scvi.calibration.reach import VectorReach
from cfmvc_scvi.calibration.reference import StoredReference


@dataclass(frozen=True)
class ObservedEffects:
    """What intervals rest on: the training populations, and what the process lacks of them.

    Attributes
    ----------
    effects
        Observed mean effects, as the process takes them.
    n_control
        Control cells of every cell type, shape (n_labels,).
    misfit
        What the kernel of the process does not hold.
    """

    effects: MeanEffects
    n_control: np.ndarray
    misfit: Misfit

    def to_saved(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_saved` reads back."""
        return {"effects": self.effects.to_saved(), "n_control": self.n_control, "kappa": self.misfit.kappa}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> ObservedEffects:
        """Counterpart of :meth:`to_saved`."""
        return cls(MeanEffects.from_saved(saved["effects"]), saved["n_control"], Misfit(saved["kappa"]))


@dataclass(frozen=True)
class CalibrationState:
    """What a calibration has learned, as it is saved.

    Attributes
    ----------
    profiles, variance
        Mean and variance of log1p CP10k over the control cells of every cell type, shape (n_labels, n_genes), float32.
    highest
        Highest log1p CP10k of every gene in the training cells, shape (n_genes,).
    spread_effect
        Change of every gene's variance per unit of the perturbation vector, shape (n_features, n_genes).
    latent_shift
        Change of the mean intrinsic latent per unit of the perturbation vector, shape (n_features, n_latent).
    reference
        Control cells that stand for each cell type.
    process
        Gaussian process over the training populations; ``None`` where there were none.
    composition
        What takes effects apart for the process, and puts its estimates together, where perturbations have vectors that
        tell of each other; ``None`` where each has its own, and the process takes effects as they are.
    reach
        How far vectors tell of perturbations that were not measured; ``None`` where each has its own.
    estimator
        Estimator of the mean effect; ``None`` leaves decoded changes as they are.
    observed
        What intervals rest on, made when they are first asked for.
    """

    profiles: np.ndarray
    variance: np.ndarray
    highest: np.ndarray
    spread_effect: np.ndarray
    latent_shift: np.ndarray
    reference: Sequence[StoredReference]
    process: EffectGP | None
    composition: Composition | None
    reach: VectorReach | None
    estimator: EffectEstimator | None
    observed: ObservedEffects | None = None

    def to_saved(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_saved` reads back."""
        estimator = self.estimator
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "reference": [cells.to_saved() for cells in self.reference],
            "process": None if self.process is None else self.process.to_dict(),
            "composition": None if self.composition is None else self.composition.to_saved(),
            "reach": None if self.reach is None else self.reach.to_saved(),
            "estimator": None if estimator is None else {"name": estimator.name, "state": estimator.to_saved()},
            "observed": None if self.observed is None else self.observed.to_saved(),
        }

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> CalibrationState:
        """Counterpart of :meth:`to_saved`."""
        process, estimator, observed = saved["process"], saved["estimator"], saved["observed"]
        composition, reach = saved["composition"], saved["reach"]
        made = {
            "reference": [StoredReference.from_saved(cells) for cells in saved["reference"]],
            "process": None if process is None else EffectGP.from_dict(process),
            "composition": None if composition is None else Composition.from_saved(composition),
            "reach": None if reach is None else VectorReach.from_saved(reach),
            "estimator": None if estimator is None else get_estimator(estimator["name"]).from_saved(estimator["state"]),
            "observed": None if observed is None else ObservedEffects.from_saved(observed),
        }
        return cls(**{**saved, **made})
