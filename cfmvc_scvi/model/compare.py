"""Perturbations beside each other: how alike they are, where they act differently, how they act together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy.stats import norm

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._base import single_precision
from cfmvc_scvi._messages import shortened
from cfmvc_scvi.model.effects import EFFECT_UNITS, check_probabilities, effect_table
from cfmvc_scvi.model.sample_effects import SampleEffectMixin
from cfmvc_scvi.prediction.request import Request, default_solver
from cfmvc_scvi.registration.spelling import number_text
from cfmvc_scvi.registration.vocabulary import Condition

#: Largest cosine that is drawn, so that its inverse hyperbolic tangent is finite.
_MOST = 1.0 - 1e-6


class ComparisonMixin(SampleEffectMixin):
    """Comparisons of perturbations of :class:`~cfmvc_scvi.CFMVC`.

    Relies on calibrated effects and the covariance of their errors, and on the registered data for what was measured.
    """

    @single_precision
    def get_perturbation_similarity(
        self,
        perturbation: str | Sequence[str] | pd.DataFrame | None = None,
        labels: str | Sequence[str] | None = None,
        *,
        dosage: float | str | None = None,
        as_pairs: bool = False,
        level: float = 0.95,
        n_draws: int = 100,
        seed: int = 0,
    ) -> pd.DataFrame:
        r"""How alike the effects of perturbations on genes are: the cosine of their calibrated mean effects.

        .. math:: s_{pq} = \frac{\sum_g w_{pg} w_{qg}}{\lVert w_p \rVert \, \lVert w_q \rVert}

        with the estimates :math:`w` of :meth:`get_perturbation_effect`: 1 for the same kind of effect, whatever its
        strength, 0 for nothing in common, -1 for the opposite. The intervals are about the cosine of the estimates,
        by Fisher's transformation, as wide as cosines of effects vary that are drawn from their errors. Errors are
        drawn for every gene and perturbation apart; in truth those of genes go together, and so do those of
        perturbations that were compared with the same control cells. The intervals are too narrow for that: on
        simulated screens those of a nominal 95 % held the truth for three of four pairs.

        Parameters
        ----------
        perturbation, dosage
            The conditions, as in :meth:`predict_perturbation`; ``None`` is every one seen in training.
        labels
            Cell type, or several, averaged in proportion to their control cells; ``None`` is all that have some.
        as_pairs
            Return one row for each pair, with intervals, in place of a square table.
        level
            Probability of the intervals.
        n_draws
            Draws of the effects, of pairs.
        seed
            Of the draws.

        Returns
        -------
        DataFrame (perturbation x perturbation) of cosines, 1 on the diagonal; ``NaN`` where an effect is zero. With
        ``as_pairs`` one row for each pair: ``first``, ``second``, ``similarity``, ``lower`` and ``upper``, ``sd``.
        ``attrs`` has the cell types and ``norm``, the length of every effect.

        Raises
        ------
        ValueError
            For unknown conditions and cell types, fewer than two conditions, and probabilities out of range.
        RuntimeError
            When the flow is not trained, or the training data are needed and not there.
        """
        self._require_flow("compare perturbations")
        check_probabilities(level=level)
        whole_number("n_draws", n_draws, least=2)
        requests = [one for one in self._requests(perturbation, dosage, None) if not one.condition.is_control]
        if len(requests) < 2:
            raise ValueError(f"{len(requests)} perturbations were asked for; likeness takes at least two.")
        codes, weights = self._codes_and_weights(labels)
        moments = [self._effect_moments(one.condition, codes, weights)[:2] for one in requests]
        mean, variance = (np.stack(values).astype(np.float32) for values in zip(*moments, strict=True))
        names = pd.Index(condition_names(requests), name="perturbation")
        cosine = cosines(mean)
        norms = np.linalg.norm(mean, axis=1).tolist()
        attrs: dict[Hashable | None, Any] = {"labels": [self.cell_types[code] for code in codes]}
        attrs["norm"] = dict(zip(names, norms, strict=True))
        if not as_pairs:
            square = pd.DataFrame(cosine, index=names, columns=names.rename(None))
            square.attrs = attrs
            return square
        spread = _drawn_spread(mean, np.sqrt(variance), n_draws, seed)
        first, second = np.triu_indices(len(names), 1)
        reach = norm.ppf(0.5 + level / 2) * spread[first, second]
        at = np.arctanh(np.clip(cosine[first, second], -_MOST, _MOST))
        pairs = pd.DataFrame(
            {
                "first": names[first],
                "second": names[second],
                "similarity": cosine[first, second],
                "lower": np.tanh(at - reach),
                "upper": np.tanh(at + reach),
                "sd": spread[first, second] * (1.0 - np.tanh(at) ** 2),
            }
        )
        pairs.attrs = attrs | {"level": level}
        return pairs

    @single_precision
    def get_context_differences(
        self,
        perturbation: str,
        labels: Sequence[str] | None = None,
        *,
        dosage: float | str | None = None,
        level: float = 0.95,
        min_change: float = 0.0,
        fdr: float = 0.05,
    ) -> pd.DataFrame:
        r"""Where a perturbation acts differently: every cell type's effect against the mean over cell types.

        .. math:: d_{cg} = w_{cg} - \frac{1}{C} \sum_{c'} w_{c'g}

        Its variance is that of this contrast under the joint covariance of the errors in all cell types, so what they
        have in common, such as whether the perturbation is stronger than estimated, does not count; plus the squared
        contrast of the two estimates that are averaged. A change in log1p of counts per 10,000 can differ between cell
        types because a gene's level does: a gene that is not expressed in a type cannot fall there.

        Parameters
        ----------
        perturbation, dosage
            A perturbation or combination, and its dose.
        labels
            Cell types to compare, at least two; ``None`` is all that have control cells.
        level, min_change, fdr
            As in :meth:`get_perturbation_effect`.

        Returns
        -------
        DataFrame, one row per gene and cell type: ``gene``, ``cell_type``, ``log_fold_change`` (the effect in this
        type), ``difference`` from the mean, its ``lower`` and ``upper``, ``sd``, ``sign_probability``, ``lfsr``,
        ``s_value`` and ``significant``. ``attrs`` has the condition, its ``support`` in every type, and the units.

        Raises
        ------
        ValueError
            For an unknown perturbation or cell type, fewer than two cell types with control cells, and probabilities
            out of range.
        RuntimeError
            When the flow is not trained, or the training data are needed and not there.
        """
        self._require_flow("compare cell types")
        check_probabilities(level=level, fdr=fdr)
        condition = self._one_condition(perturbation, dosage)
        codes, _ = self._codes_and_weights(labels)
        if len(codes) < 2:
            raise ValueError(
                "Effects are compared between cell types, and there is "
                f"{shortened(self.cell_types[code] for code in codes)}: give at least two that have control cells."
            )
        estimate = self._calibration.mean_effects(condition, codes, default_solver())
        error = self._calibration.effect_error(condition, codes)
        contrasts, parts = np.eye(len(codes)) - 1.0 / len(codes), []
        lowest = np.full(estimate.shape[1], -np.inf)
        for i, contrast in enumerate(contrasts):
            variance, freedom = error.averaged(contrast)
            variance = np.maximum(variance, 0.0) + (contrast @ (estimate - error.mean)) ** 2
            table = effect_table(
                contrast @ estimate, np.sqrt(variance), lowest, freedom, level=level, min_change=min_change, fdr=fdr
            )
            table = table.rename(columns={"log_fold_change": "difference"})
            table.insert(0, "log_fold_change", estimate[i])
            table.insert(0, "cell_type", self.cell_types[codes[i]])
            table.insert(0, "gene", self.get_var_names())
            parts.append(table)
        found = pd.concat(parts, ignore_index=True)
        found.attrs = {
            "perturbation": condition.label,
            "labels": [self.cell_types[code] for code in codes],
            "support": [str(value) for value in self._support(condition, codes)],
            "units": EFFECT_UNITS,
            "level": level,
        }
        return found

    @single_precision
    def get_interactions(
        self,
        combination: str,
        labels: str | Sequence[str] | None = None,
        *,
        dosage: float | str | None = None,
        level: float = 0.95,
        min_change: float = 0.0,
        fdr: float = 0.05,
    ) -> pd.DataFrame:
        r"""What perturbations do together beyond the sum of what each does alone.

        The interaction is :math:`w_{AB} - (w_A + w_B)` of the estimates of :meth:`get_perturbation_effect`, on the
        scale of log1p of counts per 10,000. Its variance is that of this contrast under the joint covariance of the
        three errors, plus the squared contrast of the two estimates that are averaged.

        Parameters
        ----------
        combination
            Perturbations given together, such as ``"A+B"``; it need not have been measured.
        labels
            Cell type, or several, averaged in proportion to their control cells; ``None`` is all that have some.
        dosage
            Dose, or one for each member.
        level, min_change, fdr
            As in :meth:`get_perturbation_effect`, of the interaction.

        Returns
        -------
        DataFrame, one row per gene: ``observed`` (the change that was measured in the cells that were not held out,
        in the cell types that have some; ``NaN`` where the combination was not measured or the model has no data),
        ``additive`` (sum of the effects of the members), ``predicted`` (effect of the combination) and ``interaction``
        with ``lower``, ``upper``, ``sd``, ``sign_probability``, ``lfsr``, ``s_value`` and ``significant``. ``attrs``
        has the members, the cell types, ``support``, ``n_observed`` (cells) and the units.

        Raises
        ------
        ValueError
            For a condition that is no combination, unknown perturbations and cell types.
        RuntimeError
            When the flow is not trained, or the training data are needed and not there.
        """
        self._require_flow("give interactions")
        check_probabilities(level=level, fdr=fdr)
        condition = self._one_condition(combination, dosage)
        parts = condition.parts()
        if len(parts) < 2:
            raise ValueError(
                f"{condition.label!r} is no combination: give several perturbations, split by the "
                f"`combination_delimiter` of the setup, {self.vocabulary.combination_delimiter!r}."
            )
        codes, weights = self._codes_and_weights(labels)
        every, sign = [condition, *parts], np.r_[1.0, -np.ones(len(parts))]
        effects = np.stack([self._calibration.mean_effects(one, codes, default_solver()) for one in every])
        by_condition = np.einsum("c,pcg->pg", weights, effects)
        error, contrast = self._calibration.effect_error(every, codes), np.kron(sign, weights)
        variance, freedom = error.averaged(contrast)
        off = contrast @ (effects.reshape(len(contrast), -1) - error.mean)
        interaction, lowest = sign @ by_condition, np.full(effects.shape[2], -np.inf)
        sd = np.sqrt(np.maximum(variance, 0.0) + off**2)
        table = effect_table(interaction, sd, lowest, freedom, level=level, min_change=min_change, fdr=fdr)
        table = table.rename(columns={"log_fold_change": "interaction"})
        observed, n_observed = self._observed_change(condition, codes)
        for place, (name, values) in enumerate(
            {"observed": observed, "additive": by_condition[1:].sum(axis=0), "predicted": by_condition[0]}.items()
        ):
            table.insert(place, name, values)
        table.index = pd.Index(self.get_var_names(), name="gene")
        table.attrs = {
            "combination": condition.label,
            "members": list(condition.members),
            "labels": [self.cell_types[code] for code in codes],
            "support": [str(value) for value in self._support(condition, codes)],
            "n_observed": n_observed,
            "units": EFFECT_UNITS,
            "level": level,
        }
        return table

    # ---- parts ------------------------------------------------------------------------------------------------

    def _one_condition(self, perturbation: str, dosage: float | str | None) -> Condition:
        requests = self._requests(perturbation, dosage, None)
        if len(requests) > 1:
            raise ValueError(f"One condition at a time is compared; {len(requests)} were asked for.")
        if requests[0].condition.is_control:
            raise ValueError(f"{perturbation!r} is the control, which has no effect.")
        return requests[0].condition

    def _observed_change(self, condition: Condition, codes: np.ndarray) -> tuple[np.ndarray, int]:
        """Measured change (n_genes,) of the mean over cell types with such cells, and the number of these cells."""
        nothing = np.full(len(self._var_names), np.nan)
        if self._registered is None:
            return nothing, 0
        found, rows = self._conditions_of(self._registered), self._fitted_rows
        known = [code for code, one in enumerate(found.conditions) if one.key == condition.key]
        types = self._cells(None).context.labels.numpy()
        rows = rows[np.isin(types[rows], codes) & np.isin(found.code[rows], [0, *known])]
        measured = found.code[rows] > 0
        if not measured.any():
            return nothing, 0
        ordered = np.sort(codes)
        means, sizes = self._means(rows, types[rows], measured, np.full(len(rows), ""), ordered, [""])
        there = (sizes[:, :, 0] > 0).all(axis=1)
        if not there.any():
            return nothing, 0
        change = means[there, 1, 0] - means[there, 0, 0]
        return np.average(change, axis=0, weights=sizes[there, 0, 0]), int(sizes[there, 1, 0].sum())


def condition_names(requests: Sequence[Request]) -> list[str]:
    """Labels of conditions, with their doses where they have some."""
    names = []
    for one in requests:
        dose = one.dosage if isinstance(one.dosage, str) or one.dosage is None else number_text(one.dosage)
        names.append(one.condition.label if dose is None else f"{one.condition.label}@{dose}")
    return list(make_index_unique(pd.Index(names, dtype=object)))


def cosines(effects: np.ndarray) -> np.ndarray:
    """Cosines of the rows, (n, n), float64; ``NaN`` for rows of zeros."""
    length = np.linalg.norm(effects.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(effects, length, out=np.full(effects.shape, np.nan), where=length > 0)
    cosine = np.clip(unit @ unit.T, -1.0, 1.0)
    np.fill_diagonal(cosine, np.where(length[:, 0] > 0, 1.0, np.nan))
    return cosine


def _drawn_spread(mean: np.ndarray, sd: np.ndarray, n_draws: int, seed: int) -> np.ndarray:
    """Standard deviation (n, n) of the inverse hyperbolic tangent of the cosines of drawn effects."""
    rng, n = np.random.default_rng(seed), len(mean)
    total, squared = np.zeros((n, n)), np.zeros((n, n))
    for _ in range(n_draws):
        drawn = mean + sd * rng.standard_normal(mean.shape, dtype=np.float32)
        drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-12)
        z = np.arctanh(np.clip(drawn @ drawn.T, -_MOST, _MOST, dtype=np.float64))
        total += z
        squared += z**2
    center = total / n_draws
    return np.sqrt(np.maximum(squared / n_draws - center**2, 0.0) * n_draws / (n_draws - 1))
