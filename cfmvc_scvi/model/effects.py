"""What a perturbation does to every gene: estimate, interval, sign probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pandas as pd
from scipy.stats import t as student

from cfmvc_scvi._base import single_precision
from cfmvc_scvi._messages import shortened
from cfmvc_scvi.calibration import ObservedEffects
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process_error import find_misfit
from cfmvc_scvi.cells.latents import CellPosterior, LatentCache
from cfmvc_scvi.cells.reader import unknown_level_message
from cfmvc_scvi.prediction.request import RequestMixin, default_solver
from cfmvc_scvi.prediction.support import SupportMixin
from cfmvc_scvi.registration.spelling import as_list, known_spelling
from cfmvc_scvi.registration.vocabulary import Condition

#: Unit of effects.
EFFECT_UNITS = "change of mean log1p of counts per 10,000 (natural log)"


class EffectMixin(RequestMixin, SupportMixin):
    """Gene effects of :class:`~cfmvc_scvi.CFMVC`.

    Relies on the reading of requests, on the support of conditions and on the model's calibration.
    """

    @single_precision
    def get_perturbation_effect(
        self,
        perturbation: str,
        labels: str | Sequence[str] | None = None,
        *,
        dosage: float | str | None = None,
        level: float = 0.95,
        min_change: float = 0.0,
        fdr: float = 0.05,
    ) -> pd.DataFrame:
        r"""Mean log fold change of every gene under a perturbation, with its uncertainty.

        The estimate is the mean effect that predictions are calibrated to: over the control cells of a cell type, the
        mean change of log1p of counts per 10,000 (a natural-log fold change with a pseudocount of one count in
        10,000). It averages the latent path's and the Gaussian process's estimates. The interval is about the effect on
        the population, not on single cells. Its variance is

        .. math:: V_{process} + V_{noise} + (\hat w - \hat w_{GP})^2

        where the V are the two parts of :func:`~cfmvc_scvi.calibration.process_error.effect_error`, with the misfit
        that left-out training populations show: the expected squared error of the estimate when the process is right.

        With samples (``sample_key``), noise is that between samples, whose variance is estimated; intervals and
        probabilities are then those of Student's t, with the degrees of freedom of
        :meth:`~cfmvc_scvi.calibration.process_error.EffectError.averaged`.

        Signs follow Stephens (2017): the local false sign rate (``lfsr``) of a gene is the posterior probability that
        its effect is not in the direction of the estimate (or not beyond ``min_change`` in it), and its s-value is the
        mean of that rate over all genes at least as sure. ``significant`` are the genes with a local rate up to
        ``fdr``, so that the expected fraction of false signs among them is below ``fdr`` too. Calling by the s-value
        is less strict, and leans on genes that are rather unsure.

        Parameters
        ----------
        perturbation
            A perturbation or combination.
        labels
            Cell type, or several; ``None`` is all that have control cells. Several are averaged in proportion to their
            control cells.
        dosage
            Dose of the perturbation.
        level
            Probability of the interval, between 0 and 1.
        min_change
            Smallest effect of interest, in the units of the estimate.
        fdr
            Local false sign rate up to which a gene is called ``significant``.

        Returns
        -------
        DataFrame, one row per gene: ``log_fold_change``, ``lower`` and ``upper``, ``sd``, ``sign_probability``
        (that the effect is beyond ``min_change`` in the direction of the estimate), ``lfsr``, ``s_value`` and
        ``significant``; ``attrs`` has the condition, the cell types, their ``support``, the ``reach`` of the vector of
        a perturbation that was not measured (``support_reach`` of :meth:`predict_perturbation`, else 1), the weights of
        the estimators that it is ``carried_by``, in which batches and samples the perturbation was ``measured_in``
        these types beside controls, whether it is ``confounded_with_batch`` (measured only in batches without control
        cells) and the units.

        Raises
        ------
        ValueError
            For an unknown perturbation or cell type, a cell type without control cells, or a probability out of range.
        RuntimeError
            When the flow is not trained, no perturbation was trained on beside control cells of its cell type, or the
            training data are needed and not there.

        References
        ----------
        Stephens M (2017). False discovery rates: a new deal. Biostatistics 18(2), 275-294.
        """
        self._require_flow("give perturbation effects")
        check_probabilities(level=level, fdr=fdr)
        if not min_change >= 0:
            raise ValueError(f"`min_change` is {min_change}; it must not be negative.")
        requests = self._requests(perturbation, dosage, None)
        if len(requests) > 1:
            raise ValueError(f"Effects are given for one condition at a time; {len(requests)} were asked for.")
        [request] = requests
        condition = request.condition
        codes, weights = self._codes_and_weights(labels)
        mean, variance, freedom = self._effect_moments(condition, codes, weights)
        floor = -(weights @ self._calibration.state.profiles[codes])
        self._warn_of_little_reach([condition])
        table = effect_table(mean, np.sqrt(variance), floor, freedom, level=level, min_change=min_change, fdr=fdr)
        table.index = pd.Index(self.get_var_names(), name="gene")
        table.attrs = {
            "perturbation": condition.label,
            "labels": [self.cell_types[code] for code in codes],
            "support": [str(value) for value in self._support(condition, codes)],
            "reach": self._reach(condition),
            "carried_by": self._calibration.carried_by(condition),
            "measured_in": self._measured_in(condition, codes.tolist()),
            "confounded_with_batch": bool(self._confounded([condition])),
            "units": EFFECT_UNITS,
            "level": level,
            "min_change": min_change,
            "fdr": fdr,
        }
        return table

    # ---- parts ------------------------------------------------------------------------------------------------

    def _codes_and_weights(self, labels: str | Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Codes of the cell types asked for, and their shares of the control cells."""
        codes = self._codes_with_controls(labels)
        n_control = self._observed_effects().n_control[codes]
        return codes, n_control / n_control.sum() if n_control.any() else np.full(len(codes), 1.0 / len(codes))

    def _effect_moments(
        self, condition: Condition, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, variance and its degrees of freedom (n_genes,) of the effect averaged over cell types."""
        if condition.is_control:
            zero = np.zeros(self._calibration.state.profiles.shape[1])
            return zero, zero, np.full_like(zero, np.inf)
        estimate = weights @ self._calibration.mean_effects(condition, codes, default_solver())
        return estimate, *self._effect_variance(condition, codes, weights, estimate)

    def _effect_variance(
        self, condition: Condition, codes: np.ndarray, weights: np.ndarray, estimate: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Variance and its degrees of freedom (n_genes,) of an estimate, averaged over cell types."""
        error = self._calibration.effect_error(condition, codes)
        variance, freedom = error.averaged(weights)
        return variance + (estimate - weights @ error.mean) ** 2, freedom

    def _codes_with_controls(self, labels: str | Sequence[str] | None) -> np.ndarray:
        """Codes of the cell types asked for, which must have control cells in training; ``None`` is all that have."""
        if labels is None:
            return self._types_with_controls()
        codes = self._label_codes(labels)
        lacking = [self.cell_types[code] for code in codes if code not in self._types_with_controls()]
        if lacking:
            there = [self.cell_types[code] for code in self._types_with_controls()]
            raise ValueError(
                f"{shortened(lacking)} has no control cells among the training cells, so there is nothing that an "
                f"effect could be measured from. Cell types with controls: {shortened(there, 30)}."
            )
        return codes

    def _label_codes(self, labels: str | Sequence[str] | None) -> np.ndarray:
        if labels is None:
            return np.arange(len(self.cell_types))
        wanted = [known_spelling(label, self.cell_types) for label in as_list(labels)]
        unknown = [label for label in wanted if label not in self.cell_types]
        if unknown or not wanted:
            raise ValueError(unknown_level_message("cell type", "`labels`", unknown, self.cell_types))
        return np.array([self.cell_types.index(label) for label in wanted])

    def _observed_effects(self) -> ObservedEffects:
        """Observed effects of the training populations and the misfit of the process; kept with the calibration."""
        state = self._calibration.state
        if state.observed is None:
            if state.process is None:
                raise RuntimeError(
                    "No perturbation was trained on in a cell type with control cells, so nothing is known about the "
                    "uncertainty of its effect."
                )
            adata = self._require_adata("give perturbation effects for the first time")
            cells, rows, found = self._cells(None), self._fitted_rows, self._conditions_of(adata)
            no_latents = cast("CellPosterior", None)  # the populations are of counts
            cache = LatentCache(cells, no_latents, found.code, found.conditions)
            populations = Populations.of(cache, rows, len(self.cell_types))
            members = self.vocabulary.members(found.conditions).take(populations.condition)
            effects = populations.observed(members)
            effects = effects if state.composition is None else state.composition.split(effects)
            labels = cells.context.labels.numpy()[rows]
            n_control = np.bincount(labels[found.code[rows] == 0], minlength=len(self.cell_types))
            observed = ObservedEffects(effects, n_control, find_misfit(state.process, effects))
            self._calibration.observe(observed)
            return observed
        return state.observed


def effect_table(
    mean: np.ndarray,
    sd: np.ndarray,
    floor: np.ndarray,
    freedom: np.ndarray | float = np.inf,
    *,
    level: float,
    min_change: float,
    fdr: float,
) -> pd.DataFrame:
    """Interval, sign probability, local false sign rate and s-value of Student's t posteriors; one row per gene.

    ``floor`` is the lowest effect possible, that which takes the gene to zero; with infinite ``freedom`` the
    posteriors are normal.
    """
    reach = student.ppf(0.5 + level / 2, freedom) * sd
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(sd > 0, (np.abs(mean) - min_change) / sd, np.where(np.abs(mean) > min_change, np.inf, -np.inf))
    z = np.where((sd == 0) & (mean == 0), 0.0 if min_change == 0 else -np.inf, z)
    lfsr = student.sf(z, freedom)
    s_value = mean_of_smaller(lfsr)
    return pd.DataFrame(
        {
            "log_fold_change": mean,
            "lower": np.maximum(mean - reach, np.minimum(floor, mean)),
            "upper": mean + reach,
            "sd": sd,
            "sign_probability": student.cdf(z, freedom),
            "lfsr": lfsr,
            "s_value": s_value,
            "significant": lfsr <= fdr,
        }
    )


def mean_of_smaller(rates: np.ndarray) -> np.ndarray:
    """Mean of all rates that are not larger than each, shape (n,): the s-values of local false sign rates."""
    order = np.argsort(rates, kind="stable")
    running = np.cumsum(rates[order]) / np.arange(1, len(rates) + 1)
    ordered = rates[order]
    last = np.searchsorted(ordered, ordered, side="right") - 1  # equal rates share the value of the last of them
    out = np.empty_like(running)
    out[order] = running[last]
    return out


def check_probabilities(**values: float) -> None:
    """Raise for values that are not between 0 and 1, naming the argument."""
    for name, value in values.items():
        if not 0.0 < value < 1.0:
            raise ValueError(f"`{name}` is {value}; it must lie between 0 and 1, as 0.95.")
