"""Gene-space calibration: what the decoded change should be on average, per perturbation and cell type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.data.perturbation import Condition
from cfmvc_scvi.model.change import lognorm_expression
from cfmvc_scvi.model.latents import LatentCache
from cfmvc_scvi.model.moments import highest_lognorm, lognorm_moments
from cfmvc_scvi.module.effect_gp import EffectGP, MeanEffects
from cfmvc_scvi.module.likelihood import expected_lognorm

#: Control cells per cell type that stand for it, and perturbed cells that make a population.
_REFERENCES, _MIN_CELLS = 128, 9
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

    def _calibrate(self, cache: LatentCache) -> None:
        """Learn from the training cells, and keep control cells that stand for their cell types."""
        rows = np.sort(np.r_[self._split.train, self._split.validation])
        populations = Populations.of(cache, rows, len(self.cell_types))
        effects = populations.effects()
        rng = np.random.default_rng(self._seed)
        self.calibration_ = {
            "profiles": populations.mean0.astype(np.float32),
            "variance": populations.spread0.astype(np.float32),
            "highest": highest_lognorm(cache.cells, rows),
            "gp": None if effects is None else EffectGP(populations.mean0).fit(effects).to_dict(),
            "spread_effect": populations.spread_effect(),
            "reference": _reference(cache, [_sample(cells, rng) for cells in populations.control]),
        }
        self._calibration_cache: dict[Any, tuple[np.ndarray, ...]] = {}

    def _calibration(self, condition: Condition, labels: np.ndarray, call: Any, *, rates: bool) -> GeneCalibration:
        """Corrections of a condition for the cell types at hand; other cell types stay neutral.

        ``rates`` says whether ``log_ratio`` is needed, which takes most of the time; without it that stays zero.
        """
        result = GeneCalibration.neutral(self.calibration_["profiles"])
        if condition.is_control:
            return result
        for label in np.unique(labels):
            key = (condition.key, int(label), call.solver_key, rates)
            cache = self.__dict__.setdefault("_calibration_cache", {})
            if key not in cache:
                cache[key] = self._calibrate_condition(condition, int(label), call, rates)
            result.lognorm[label], result.scale[label], result.log_ratio[label] = cache[key]
        return result

    @torch.inference_mode()
    def _calibrate_condition(self, condition: Condition, label: int, call: Any, rates: bool) -> tuple[np.ndarray, ...]:
        """Corrections (n_genes,) of a condition in a cell type, from the cells that stand for it."""
        saved = self.calibration_
        reference = saved["reference"][label]
        p = self.vocabulary.encode([condition])[0]
        before, after = self._reference_shares(reference, p, call)
        library, theta = reference["library"], self._theta()
        level0 = expected_lognorm(np.exp(before) * library[:, None], theta, library).mean(axis=0)
        level1 = expected_lognorm(np.exp(after) * library[:, None], theta, library).mean(axis=0)
        effect = level1 - level0
        if saved["gp"] is not None:
            effect = (1.0 - GP_WEIGHT) * effect + GP_WEIGHT * EffectGP.from_dict(saved["gp"]).predict(p, label)
        profile = saved["profiles"][label]
        effect = np.maximum(effect, -profile)
        scale = _spread_factor(saved["variance"][label], p @ saved["spread_effect"])
        decoded = np.log1p(1e4 * np.exp(after)) - np.log1p(1e4 * np.exp(before))
        y = lognorm_expression(reference["counts"].toarray(), library)
        moved = y + decoded + (scale - 1.0) * (y - profile)
        lognorm = _solve_shift(moved, y.mean(axis=0) + effect, saved["highest"])
        log_ratio = np.zeros_like(effect)
        if rates:
            log_ratio = _solve_log_ratio(after, theta, library, level0 + effect)
        return lognorm.astype(np.float32), scale.astype(np.float32), log_ratio.astype(np.float32)

    def _reference_shares(self, reference: dict[str, Any], p: np.ndarray, call: Any) -> tuple[np.ndarray, np.ndarray]:
        """Log shares of the reference cells before and after, shape (n, n_genes)."""
        z, technical = torch.from_numpy(reference["z"]), torch.from_numpy(reference["technical"])
        context = _as_context(reference).to(self._device)
        vectors = torch.from_numpy(p).expand(len(z), -1).to(self._device)
        moved = self.module.transport(z.to(self._device), vectors, context, call.solver).cpu()
        return self._log_share(z, technical).numpy(), self._log_share(moved, technical).numpy()


@dataclass(frozen=True)
class Populations:
    """Control and perturbed populations of the training cells, and their moments of log1p CP10k.

    Attributes
    ----------
    control
        Rows of the control cells of every cell type; all control cells where a type has none.
    mean0, spread0
        Mean and variance over those cells, shape (n_labels, n_genes).
    mean1, spread1
        The same of every perturbed population, shape (n, n_genes).
    n_cells, label, p
        Cells, cell type and perturbation vector of every perturbed population.
    """

    control: list[np.ndarray]
    mean0: np.ndarray
    spread0: np.ndarray
    mean1: np.ndarray
    spread1: np.ndarray
    n_cells: np.ndarray
    label: np.ndarray
    p: np.ndarray

    @classmethod
    def of(cls, cache: LatentCache, rows: np.ndarray, n_labels: int) -> Populations:
        """Populations of at least :data:`_MIN_CELLS` cells, whose cell type has as many controls."""
        labels, condition = cache.cells.context.labels.numpy()[rows], cache.condition[rows]
        everyone = rows[condition == 0]
        own = [rows[(condition == 0) & (labels == label)] for label in range(n_labels)]
        control = [cells if len(cells) else everyone for cells in own]
        moments0 = [lognorm_moments(cache.cells, cells) for cells in control]
        found = []
        for code, label in sorted(set(zip(condition.tolist(), labels.tolist(), strict=True))):
            cells = rows[(condition == code) & (labels == label)]
            if code > 0 and min(len(cells), len(own[label])) >= _MIN_CELLS:
                found.append((*lognorm_moments(cache.cells, cells), len(cells), label, cache.p[code].numpy()))
        n_genes, n_features = cache.cells.counts.shape[1], cache.p.shape[1]
        empty = (np.zeros((0, n_genes)),) * 2 + (np.zeros(0), np.zeros(0, dtype=int), np.zeros((0, n_features)))
        columns = [np.stack(column) for column in zip(*found, strict=True)] if found else empty
        return cls(control, np.stack([m for m, _ in moments0]), np.stack([v for _, v in moments0]), *columns)

    def effects(self) -> MeanEffects | None:
        """Mean effects with their sampling variance; ``None`` when no population is large enough."""
        if not len(self.label):
            return None
        n0 = np.array([len(self.control[label]) for label in self.label])[:, None]
        variance = self.spread1 / (self.n_cells[:, None] - 1) + self.spread0[self.label] / (n0 - 1) + 1e-4
        return MeanEffects(self.mean1 - self.mean0[self.label], variance, self.p, self.label)

    def spread_effect(self) -> np.ndarray:
        """Change of every gene's variance per unit of the perturbation vector, (n_features, n_genes), by ridge."""
        weights = np.sqrt(self.n_cells)[:, None]
        change = self.spread1 - self.spread0[self.label]
        gram = self.p.T @ (weights * self.p) + np.sqrt(_MIN_CELLS) * np.eye(self.p.shape[1])
        return np.linalg.solve(gram, self.p.T @ (weights * change)).astype(np.float32)


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


def _reference(cache: LatentCache, chosen: list[np.ndarray]) -> list[dict[str, Any]]:
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
