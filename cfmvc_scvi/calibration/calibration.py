"""Gene-space calibration: what the decoded change should be on average, per perturbation and cell type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.calibration.change import decoded_change, lognorm_expression
from cfmvc_scvi.calibration.moments import highest_lognorm
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.likelihood.negative_binomial import expected_lognorm
from cfmvc_scvi.module.transport import BaseFlow
from cfmvc_scvi.registration.dose import effects_of_doses, fit_dose_response
from cfmvc_scvi.registration.vocabulary import Condition

#: Control cells per cell type that stand for it.
_REFERENCES = 128
#: Corrections kept between calls.
_MOST_REMEMBERED = 1000
#: Weight of the gene-space process against the latent path.
GP_WEIGHT = 0.5


@dataclass(frozen=True)
class GeneCalibration:
    """Corrections of the decoded change, by cell type; every array has shape (n_labels, n_genes).

    Attributes
    ----------
    lognorm
        Added to the decoded change of log1p CP10k.
    scale, center
        Factor on the spread of the gene over cells, and the level it spreads around.
    log_ratio
        Added to the decoded log ratio of the negative binomial's mean.
    """

    lognorm: np.ndarray
    scale: np.ndarray
    center: np.ndarray
    log_ratio: np.ndarray

    @classmethod
    def neutral(cls, profiles: np.ndarray) -> GeneCalibration:
        """Changes nothing."""
        zeros = np.zeros_like(profiles)
        return cls(zeros, np.ones_like(profiles), profiles.copy(), zeros.copy())


class CalibrationMixin:
    """Calibration of :class:`~cfmvc_scvi.CFMVC`.

    The latent path says how the cells of a type differ in their response; its mean over a cell type is biased on
    genes that the latent does not hold. So the mean effect is set to the average of two estimates: the latent
    path's own, and that of a Gaussian process over the training populations. The spread of every gene over
    cells changes by what was seen in the training populations.
    """

    def _calibrate(self, cache: LatentCache, populations: Populations) -> None:
        """Learn from the training cells, and keep control cells that stand for their cell types."""
        members = self.vocabulary.encode_members(cache.conditions)[populations.condition]
        rng = np.random.default_rng(self._seed)
        rows = self._fitted_rows()
        self.calibration_ = {
            "profiles": populations.mean0.astype(np.float32),
            "variance": populations.spread0.astype(np.float32),
            "highest": highest_lognorm(cache.cells, rows),
            "gp": self._fit_process(populations, members),
            "spread_effect": populations.spread_effect(members.sum(axis=1)),
            "reference": _stored_reference(cache, [_sample(cells, rng) for cells in populations.control]),
        }
        self._calibration_cache: dict[Any, Any] = {}

    @staticmethod
    def _fit_process(populations: Populations, members: np.ndarray) -> dict[str, Any] | None:
        """State of the process over the populations; ``None`` when no population is large enough."""
        if not len(populations):
            return None
        data = MeanEffects(populations.effect, populations.variance, members, populations.label)
        return EffectGP(populations.mean0).fit(data).to_dict()

    def _fitted_rows(self) -> np.ndarray:
        """Rows of the training and validation cells."""
        return np.sort(np.r_[self._split.train, self._split.validation])

    def _fit_doses(self, cache: LatentCache, populations: Populations) -> None:
        """Learn the response to doses from the populations, before anything is trained on it."""
        if self.setup_keys.dosage_key is None:
            return
        keys = [cache.conditions[code].key for code in populations.condition]
        effects = effects_of_doses(keys, populations.label, populations.effect, populations.variance)
        curves = fit_dose_response(effects, self.vocabulary.reference_dose)
        self.dose_response_ = {name: curve.to_dict() for name, curve in curves.items()}

    def _calibration(self, condition: Condition, labels: np.ndarray, call: Any, *, rates: bool) -> GeneCalibration:
        """Corrections of a condition for the cell types at hand; other cell types stay neutral.

        ``rates`` says whether ``log_ratio`` is needed, which takes most of the time; without it that stays zero.
        """
        result = GeneCalibration.neutral(self.calibration_["profiles"])
        if condition.is_control:
            return result
        for label in np.unique(labels):
            key = (condition.key, int(label), call.solver_key, rates)
            found = self._remembered(key, lambda: self._calibrate_condition(condition, int(label), call, rates))  # noqa: B023
            result.lognorm[label], result.scale[label], result.log_ratio[label] = found
        return result

    def _remembered(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Value of an earlier call with this key since the last training, or a new one."""
        cache = self.__dict__.setdefault("_calibration_cache", {})
        if key not in cache:
            if len(cache) >= _MOST_REMEMBERED:
                cache.clear()
            cache[key] = compute()
        return cache[key]

    @torch.inference_mode()
    def _calibrate_condition(self, condition: Condition, label: int, call: Any, rates: bool) -> tuple[np.ndarray, ...]:
        """Corrections (n_genes,) of a condition in a cell type, from the cells that stand for it."""
        saved, theta = self.calibration_, self._theta()
        cells = self._reference_cells(label, call)
        members = self.vocabulary.encode_members([condition])[0]
        p = members.sum(axis=0)
        vectors = torch.from_numpy(p).expand(len(cells.z), -1).to(self._device)
        moved = self.module.transport(cells.z, vectors, cells.context, call.solver, cells.flow)
        log_share = self.module.decoder(moved, cells.technical).cpu()
        after = log_share.numpy()
        level1 = expected_lognorm(np.exp(after) * cells.library[:, None], theta, cells.library).mean(axis=0)
        effect = level1 - cells.level
        if saved["gp"] is not None:
            effect = (1.0 - GP_WEIGHT) * effect + GP_WEIGHT * EffectGP.from_dict(saved["gp"]).predict(members, label)
        profile = saved["profiles"][label]
        effect = np.maximum(effect, -profile)
        scale = _spread_factor(saved["variance"][label], p @ saved["spread_effect"])
        decoded = decoded_change(cells.log_share.exp(), log_share.exp()).numpy()
        y = cells.lognorm
        lognorm = _solve_shift(y + decoded + (scale - 1.0) * (y - profile), y.mean(axis=0) + effect, saved["highest"])
        log_ratio = np.zeros_like(effect)
        if rates:
            log_ratio = _solve_log_ratio(after, theta, cells.library, cells.level + effect)
        return lognorm.astype(np.float32), scale.astype(np.float32), log_ratio.astype(np.float32)

    def _reference_cells(self, label: int, call: Any) -> ReferenceCells:
        """The cells that stand for a cell type, as they are without a perturbation."""
        return self._remembered(("reference", label, call.solver_key), lambda: self._make_reference(label, call))

    @torch.inference_mode()
    def _make_reference(self, label: int, call: Any) -> ReferenceCells:
        saved = self.calibration_["reference"][label]
        z, technical = (torch.from_numpy(saved[name]).to(self._device) for name in ("z", "technical"))
        context = _as_context(saved).to(self._device)
        log_share = self.module.decoder(z, technical).cpu()
        library = saved["library"]
        mean = np.exp(log_share.numpy()) * library[:, None]
        level = expected_lognorm(mean, self._theta(), library).mean(axis=0)
        return ReferenceCells(
            z=z,
            technical=technical,
            context=context,
            flow=self.module.base_flow(z, context, call.solver),
            library=library,
            lognorm=lognorm_expression(saved["counts"].toarray(), library),
            log_share=log_share,
            level=level,
        )


@dataclass(frozen=True)
class ReferenceCells:
    """Up to 128 control cells that stand for a cell type.

    Attributes
    ----------
    z, technical, context, flow
        Latents, context and base flow, on the device of the networks.
    library
        Library sizes, shape (n,).
    lognorm, log_share
        Observed log1p CP10k and decoded log share of every gene, shape (n, n_genes), on the CPU.
    level
        Expected log1p CP10k of every gene by the model, mean over the cells, shape (n_genes,).
    """

    z: Tensor
    technical: Tensor
    context: FlowContext
    flow: BaseFlow
    library: np.ndarray
    lognorm: np.ndarray
    log_share: Tensor
    level: np.ndarray


def _spread_factor(variance: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Factor on the standard deviation of a gene whose variance changes by that much, kept within [0.5, 3]."""
    moved = np.maximum(variance + change, 0.0)
    return np.clip(np.sqrt((moved + 1e-3) / (variance + 1e-3)), 0.5, 3.0)


def _solve_shift(moved: np.ndarray, level: np.ndarray, highest: np.ndarray, n_iterations: int = 30) -> np.ndarray:
    """Shift per gene after which the mean over cells of ``moved``, kept within 0 and ``highest``, is ``level``."""
    level = np.clip(level, 0.0, highest)
    high = level - moved.min(axis=0)
    low = -moved.max(axis=0)
    for _ in range(n_iterations):
        middle = 0.5 * (low + high)
        above = np.clip(moved + middle, 0.0, highest).mean(axis=0) > level
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return 0.5 * (low + high)


def _stored_reference(cache: LatentCache, chosen: list[np.ndarray]) -> list[dict[str, Any]]:
    """Latents, context and library size of the cells that stand for each cell type."""
    out = []
    for rows in chosen:
        context = cache.cells.context[torch.from_numpy(rows)]
        out.append(
            {
                "z": cache.posterior.mean[rows].numpy(),
                "technical": cache.posterior.technical_mean[rows].numpy(),
                "categorical": context.categorical.numpy(),
                "continuous": _numpy(context.continuous),
                "spatial": _numpy(context.spatial),
                "library": cache.cells.library[rows],
                "counts": sparse.csr_matrix(cache.cells.counts[rows]),
            }
        )
    return out


def _solve_log_ratio(
    after: np.ndarray, theta: np.ndarray, library: np.ndarray, level: np.ndarray, n_iterations: int = 6
) -> np.ndarray:
    """Log factor per gene on the means ``after`` that gives this mean of log1p CP10k, by damped Newton steps."""
    ratio = np.zeros_like(level)
    level = np.maximum(level, 1e-4)
    for _ in range(n_iterations):
        now = expected_lognorm(np.exp(after + ratio) * library[:, None], theta, library).mean(axis=0)
        step = np.log(np.expm1(level) + 1e-3) - np.log(np.expm1(np.maximum(now, 0.0)) + 1e-3)
        ratio = np.clip(ratio + np.clip(step, -1.5, 1.5), -6.0, 6.0)
    return ratio


def _as_context(reference: dict[str, Any]) -> FlowContext:
    names = ("categorical", "continuous", "spatial")
    return FlowContext(*(None if reference[n] is None else torch.from_numpy(reference[n]) for n in names))


def _sample(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= _REFERENCES else np.sort(rng.choice(rows, _REFERENCES, replace=False))


def _numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()
