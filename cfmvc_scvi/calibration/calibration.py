"""The calibration of a trained model: what decoded changes are corrected to, and how far the estimate may be off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cfmvc_scvi.calibration.change import LevelChange, decoded_change, expected_counts
from cfmvc_scvi.calibration.composition import Composition
from cfmvc_scvi.calibration.correction import (
    GeneCorrection,
    count_scale,
    shallowness,
    solve_log_ratio,
    solve_shift,
    spread_factor,
)
from cfmvc_scvi.calibration.estimate import EffectQuery, get_estimator
from cfmvc_scvi.calibration.latent_shift import latent_shift
from cfmvc_scvi.calibration.moments import highest_lognorm
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process import EffectGP
from cfmvc_scvi.calibration.process_error import EffectError, effect_error
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.calibration.reach import VectorReach
from cfmvc_scvi.calibration.reference import ReferenceCells, StoredReference
from cfmvc_scvi.calibration.state import CalibrationState, ObservedEffects
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.flow import Solver
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.registration.vocabulary import Condition, PerturbationVocabulary

#: Vectors nearer to each other than this share of their length are the same.
_SAME = 1e-4
#: Values kept between calls.
_MOST_REMEMBERED = 1000

Value = TypeVar("Value")


class Calibration:
    """Corrects decoded changes, gene by gene, to a mean effect that is estimated over the training populations.

    The latent path says how the cells of a type differ in their response; its mean over a cell type is biased on
    genes that the latent does not hold. So the mean is set to that of an estimator
    (:mod:`~cfmvc_scvi.calibration.estimate`), and the spread of every gene over cells changes by what was seen in
    the training populations.

    Parameters
    ----------
    state
        What was learned.
    module, vocabulary
        Networks and perturbations of the model. What is worked out from them is kept with this object, by device.
    """

    def __init__(self, state: CalibrationState, module: CFMVCModule, vocabulary: PerturbationVocabulary) -> None:
        self.state = state
        self.module = module
        self.vocabulary = vocabulary
        self._remembered: dict[Any, Any] = {}

    @classmethod
    def fit(
        cls,
        cache: LatentCache,
        rows: np.ndarray,
        populations: Populations,
        module: CFMVCModule,
        vocabulary: PerturbationVocabulary,
        *,
        estimator: str | None = "average",
        spread: bool = True,
        seed: int = 0,
    ) -> Calibration:
        """Learn from the training cells, and keep control cells that stand for their cell types.

        Parameters
        ----------
        cache
            All registered cells with their latents.
        rows
            Cells to learn from.
        populations
            Control and perturbed populations of these cells.
        module, vocabulary
            Networks and perturbations of the model.
        estimator
            Name of the estimator of the mean effect; ``None`` corrects nothing (:class:`Uncalibrated`).
        spread
            Whether the spread of every gene over cells changes as it did in the training populations.
        seed
            Of the choice of control cells.
        """
        members = vocabulary.members(cache.conditions).take(populations.condition)
        effects = populations.observed(members)
        chosen = None if estimator is None else get_estimator(estimator).fit(effects, populations.mean0)
        composition = process = reach = None
        if len(populations) and vocabulary.has_embedding:
            composition = Composition.fit(effects, populations.mean0)
            process = EffectGP(composition.with_column).fit(composition.split(effects))
            reach = VectorReach.fit(process, effects, seed=seed)
        elif len(populations):
            process = EffectGP(populations.mean0).fit(effects)
        rng = np.random.default_rng(seed)
        spread_effect = populations.spread_effect(members)
        state = CalibrationState(
            profiles=populations.mean0.astype(np.float32),
            variance=populations.spread0.astype(np.float32),
            highest=highest_lognorm(cache.cells, rows),
            spread_effect=spread_effect if spread else np.zeros_like(spread_effect),
            latent_shift=latent_shift(cache, rows, populations, members),
            reference=[StoredReference.sample(cache, cells, rng) for cells in populations.control],
            process=process,
            composition=composition,
            reach=reach,
            estimator=chosen,
        )
        return make_calibration(state, module, vocabulary)

    # ---- what predictions ask ---------------------------------------------------------------------------------

    def reach(self, condition: Condition) -> np.ndarray:
        """Part that is kept of what every member's vector tells, (n_members,): 1 for those that were measured."""
        found, reach = np.ones(len(condition.members)), self.state.reach
        if reach is not None:
            for place in np.flatnonzero(~self.vocabulary.measured(condition)):
                vector = self.vocabulary.encode_members([condition])[0, place]
                found[place] = self._remember(("reach", vector.tobytes()), lambda: reach.of(vector))  # noqa: B023
        return found

    def encode(self, condition: Condition) -> np.ndarray:
        """Vector (n_features,) of a condition, float32, as far as its members' vectors reach."""
        return self._members(condition).sum(axis=0)

    def _members(self, condition: Condition) -> np.ndarray:
        """The same of every member, shape (n_members, n_features)."""
        members = self.vocabulary.encode_members([condition])[0]
        if self.state.reach is None or condition.is_control:
            return members
        return members * self.reach(condition)[:, None].astype(np.float32)

    def correct(
        self, condition: Condition, labels: np.ndarray, solver: Solver, *, rates: bool = True
    ) -> GeneCorrection:
        """Corrections of a condition.

        Parameters
        ----------
        condition
            What is done to the cells; of control nothing is corrected.
        labels
            Codes of the cell types at hand; the other cell types stay neutral.
        solver
            Integrator of the flow.
        rates
            Whether ``log_ratio`` is needed, which takes most of the time; without it that stays zero in cells that
            are not shallow.
        """
        result = GeneCorrection.neutral(self.state.profiles)
        if condition.is_control:
            return result
        for label in np.unique(labels):
            key = ("correction", condition.key, int(label), solver.key, rates)
            found = self._remember(key, lambda: self._correct(condition, int(label), solver, rates))  # noqa: B023
            result.lognorm[label], result.scale[label], result.log_ratio[label], result.count_scale[label] = found
        return result

    def _correct(self, condition: Condition, label: int, solver: Solver, rates: bool) -> tuple[np.ndarray, ...]:
        """Corrections (n_genes,) of a condition in a cell type, from the cells that stand for it."""
        state, cells = self.state, self.reference(label, solver)
        p = self.encode(condition)
        log_share = self._decoded(condition, label, solver)
        effect = self._mean_effect(condition, label, solver, log_share)
        profile = state.profiles[label]
        scale = spread_factor(state.variance[label], p @ state.spread_effect)
        decoded = decoded_change(cells.log_share.exp(), log_share.exp()).numpy()
        y = cells.lognorm
        lognorm = solve_shift(y + decoded + (scale - 1.0) * (y - profile), y.mean(axis=0) + effect, state.highest)
        log_ratio, factor, weight = np.zeros_like(effect), np.ones_like(effect), shallowness(cells.library)
        if rates or weight > 0:
            likelihood = self.module.likelihood.in_batches(cells.context.batch)
            log_ratio = solve_log_ratio(log_share.numpy(), likelihood, cells.library, cells.level + effect)
        if weight > 0:
            parts = (torch.as_tensor(part, dtype=torch.float32) for part in (decoded + lognorm, scale, profile))
            expected = expected_counts(cells.counts, cells.library, LevelChange(*parts), state.highest)
            shares = cells.log_share.numpy(), log_share.numpy() + log_ratio
            before, after = (np.exp(share) * cells.library[:, None] for share in shares)
            factor = count_scale(cells.counts, expected, before, after) ** weight
        return tuple(x.astype(np.float32) for x in (lognorm, scale, log_ratio, factor))

    def batch_shift(self, labels: np.ndarray, batch: int, solver: Solver) -> np.ndarray:
        """Shift of log1p CP10k (n_labels, n_genes) that takes cells, on the mean, to what is expected in a batch."""
        shifts = np.zeros_like(self.state.profiles)
        for label in np.unique(labels):
            key = ("batch", int(label), batch, solver.key)
            shifts[label] = self._remember(key, lambda: self._batch_shift(int(label), batch, solver))  # noqa: B023
        return shifts

    @torch.inference_mode()
    def _batch_shift(self, label: int, batch: int, solver: Solver) -> np.ndarray:
        """The shift (n_genes,) in a cell type: as for perturbations, the mean is that of the likelihood."""
        cells = self.reference(label, solver)
        others = cells.context.batch != batch
        if not others.any():
            return np.zeros(cells.counts.shape[1], dtype=np.float32)
        source, z, technical = cells.context.batch[others], cells.z[others], cells.technical[others]
        target = torch.full_like(source, batch)
        after = self.module.decoder(z, self.module.move_batch(technical, source, target), target).cpu()
        before, rows = cells.log_share[others.cpu()], others.cpu().numpy()
        library, y = cells.library[rows], cells.lognorm[rows]
        levels = [
            self.module.likelihood.in_batches(codes).expected_lognorm(np.exp(share.numpy()) * library[:, None], library)
            for codes, share in ((source, before), (target, after))
        ]
        moved = y + decoded_change(before.exp(), after.exp()).numpy()
        level = y.mean(axis=0) + (levels[1] - levels[0]).mean(axis=0)
        return solve_shift(moved, level, self.state.highest).astype(np.float32)

    def reference(self, label: int, solver: Solver) -> ReferenceCells:
        """The cells that stand for a cell type, as they are without a perturbation."""
        key = ("reference", label, solver.key)
        return self._remember(key, lambda: ReferenceCells.of(self.state.reference[label], self.module, solver))

    # ---- the mean effect --------------------------------------------------------------------------------------

    def mean_effects(self, condition: Condition, labels: Sequence[int] | np.ndarray, solver: Solver) -> np.ndarray:
        """Mean effect of a condition in cell types, shape (n_labels, n_genes).

        Change of the mean of log1p of counts per 10,000; no gene is taken below zero.
        """
        effects = []
        for label in map(int, labels):
            log_share = self._decoded(condition, label, solver)
            effects.append(self._mean_effect(condition, label, solver, log_share))
        return np.stack(effects)

    def _mean_effect(self, condition: Condition, label: int, solver: Solver, log_share: Tensor) -> np.ndarray:
        """Mean effect (n_genes,) by the estimator; ``log_share`` as :meth:`_decoded` gives it."""
        cells = self.reference(label, solver)
        members, (n_contexts, summed) = self._members(condition), self._contexts(condition)
        parts = condition.parts()
        shares = [self._decoded(part, label, solver) for part in parts] if summed else [log_share]
        latent = np.sum([cells.effect(share, self.module) for share in shares], axis=0)
        shift = self._shifted(members.sum(axis=0), cells) if n_contexts else None
        process = None if self.state.process is None else self.state.process.predict(members, label)
        if process is not None and self.state.composition is not None:
            process = self.state.composition.join(process, label)
        estimator = self.state.estimator
        query = EffectQuery(members, label, latent, shift, process, n_contexts, summed)
        effect = latent if estimator is None else estimator.estimate(query)
        return np.maximum(effect, -self.state.profiles[label])

    def carried_by(self, condition: Condition) -> dict[str, float]:
        """Estimators of the mean effect of a condition, and the weight of each; none for control."""
        estimator = self.state.estimator
        if condition.is_control:
            return {}
        if estimator is None:
            return {"latent": 1.0}
        return estimator.weights(*self._contexts(condition), self.state.process is not None)

    def _contexts(self, condition: Condition) -> tuple[int, bool]:
        """Cell types that a condition was seen in; where in none, the least of its members, and whether it is that."""
        parts, n_contexts = condition.parts(), self._times_seen(condition)
        if n_contexts or len(parts) < 2:
            return n_contexts, False
        n_contexts = min(map(self._times_seen, parts))
        return n_contexts, n_contexts > 0

    def _times_seen(self, condition: Condition) -> int:
        """Training populations, one for each cell type, with this perturbation vector."""
        process, vector = self.state.process, self.vocabulary.encode([condition])[0]
        if process is None or process.members is None:
            return 0
        return int((process.members.distances(vector) <= _SAME * float(np.linalg.norm(vector))).sum())

    def _shifted(self, p: np.ndarray, cells: ReferenceCells) -> np.ndarray:
        """Effect (n_genes,) of the constant latent shift of a perturbation vector."""
        shift = torch.from_numpy(p.astype(np.float32) @ self.state.latent_shift).to(cells.z.device)
        return cells.effect(cells.decoded(cells.z + shift, self.module), self.module)

    def _decoded(self, condition: Condition, label: int, solver: Solver) -> Tensor:
        """Log share of every gene of the reference cells after the perturbation, (n, n_genes), on the CPU."""
        cells = self.reference(label, solver)
        moved = cells.moved(self.encode(condition), self.module, solver)
        return cells.decoded(moved, self.module)

    def effect_error(self, condition: Condition | Sequence[Condition], labels: Sequence | np.ndarray) -> EffectError:
        """Mean effects of a condition (or several, one after the other) in cell types by the process, and their errors.

        Of perturbations that were not measured, as if their vectors told all: where less is kept of the answer
        (:meth:`reach`), it differs from this one by what it may be off.

        Raises
        ------
        RuntimeError
            Where there were no populations, or :meth:`observe` was not called.
        """
        process, composition, observed = self.state.process, self.state.composition, self.state.observed
        if process is None or observed is None:
            raise RuntimeError("The training populations are needed for the errors of effects, and there are none.")
        conditions = [condition] if isinstance(condition, Condition) else list(condition)
        members = np.repeat(self.vocabulary.encode_members(conditions), len(labels), axis=0)
        labels = np.tile(np.asarray(labels), len(conditions))
        error = effect_error(process, observed.effects, Conditions(members, labels), observed.misfit)
        return error if composition is None else composition.join_error(error, labels)

    def observe(self, observed: ObservedEffects | None) -> None:
        """Keep what intervals rest on; ``None`` forgets it."""
        self.state = replace(self.state, observed=observed)

    # ---- what is kept -----------------------------------------------------------------------------------------

    def _remember(self, key: tuple, compute: Callable[[], Value]) -> Value:
        """Value of an earlier call with this key, with the networks on the same device, or a new one."""
        key = (*key, str(self.module.device))
        if key not in self._remembered:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = compute()
        return self._remembered[key]


class Uncalibrated(Calibration):
    """Leaves decoded changes as they are."""

    def reach(self, condition: Condition) -> np.ndarray:
        """See :meth:`Calibration.reach`; 1."""
        return np.ones(len(condition.members))

    def correct(
        self, condition: Condition, labels: np.ndarray, solver: Solver, *, rates: bool = True
    ) -> GeneCorrection:
        """See :meth:`Calibration.correct`; the correction is neutral."""
        return GeneCorrection.neutral(self.state.profiles)

    def batch_shift(self, labels: np.ndarray, batch: int, solver: Solver) -> np.ndarray:
        """See :meth:`Calibration.batch_shift`; zero."""
        return np.zeros_like(self.state.profiles)


def make_calibration(state: CalibrationState, module: CFMVCModule, vocabulary: PerturbationVocabulary) -> Calibration:
    """Calibration of a state: :class:`Uncalibrated` where it has no estimator."""
    kind = Uncalibrated if state.estimator is None else Calibration
    return kind(state, module, vocabulary)
