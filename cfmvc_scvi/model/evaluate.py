"""Predictions of held-out cells, scored beside baselines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import norm

from cfmvc_scvi import metrics
from cfmvc_scvi._arguments import cells_of
from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.model.effects import EffectMixin
from cfmvc_scvi.model.verdict import Verdict, judge
from cfmvc_scvi.prediction.predict import PredictionMixin
from cfmvc_scvi.registration.spelling import number_text
from cfmvc_scvi.registration.vocabulary import Condition, UnknownPerturbationError

#: Training contexts with fewer cells do not enter the baselines; conditions with fewer real cells are skipped.
MIN_CELLS = 10
#: Name of the predictions among the baselines.
MODEL = "CFMVC"


@dataclass
class HeldOut:
    """One condition in one cell type: cells on the log1p CP10k scale, prediction and scores.

    Attributes
    ----------
    name
        Perturbation and cell type, as a title.
    control, predicted, real
        log1p CP10k, cells x genes.
    training
        Other cell types: (control, perturbed).
    support
        What the prediction rests on.
    distance
        Mean of the prediction's ``obs["support_distance"]``, where there is one.
    table, coverage
        Scores, and the fraction of genes that the intervals hold.
    """

    name: str
    condition: Condition
    cell_type: str
    control: np.ndarray
    predicted: np.ndarray
    real: np.ndarray
    training: dict[str, tuple[np.ndarray, np.ndarray]]
    support: str
    distance: float = float("nan")
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    coverage: float = float("nan")

    @property
    def verdict(self) -> Verdict:
        """What the scores and the coverage say together."""
        return judge(self.table, MODEL, self.coverage)


class EvaluationMixin(PredictionMixin, EffectMixin):
    """Evaluation of :class:`~cfmvc_scvi.CFMVC` on held-out cells.

    Relies on predictions, their support and the intervals of effects.
    """

    def evaluate(self, real: AnnData, *, n_de: int = 100, seed: int = 0) -> pd.DataFrame:
        """Scores and verdict of every condition of held-out cells, as :meth:`report` shows them.

        Parameters
        ----------
        real, n_de, seed
            As in :meth:`report`.

        Returns
        -------
        DataFrame ((condition, method) x scores): the raw scores of :func:`cfmvc_scvi.metrics.evaluate` for the model,
        the baselines and the ceiling, and, in the model's rows, ``verdict`` (``"ahead"``, ``"mixed"`` or ``"behind"``),
        ``coverage`` (share of genes in their 95 % intervals), ``support``, ``n_real`` and ``n_control``. What was left
        out, and why, is in ``attrs["skipped"]``.

        Raises
        ------
        ValueError
            When no condition of ``real`` can be evaluated, with the reason for each.
        RuntimeError
            When the flow is not trained, or the model was loaded without data.
        """
        self._require_flow("evaluate predictions")
        self._require_adata("evaluate predictions")
        conditions, skipped = self._evaluated(real, n_de, seed)
        tables = {}
        for held in conditions:
            table = held.table["raw"].copy()
            told = {
                "verdict": held.verdict.level,
                "coverage": held.coverage,
                "support": held.support,
                "n_real": len(held.real),
                "n_control": len(held.control),
            }
            for name, value in told.items():
                table[name] = pd.Series({MODEL: value}).reindex(table.index)
            tables[held.name] = table
        result = pd.concat(tables, names=["condition", "method"])
        result.attrs["skipped"] = skipped
        return result

    # ---- the evaluation ---------------------------------------------------------------------------------------

    def _evaluated(self, real: AnnData, n_de: int, seed: int) -> tuple[list[HeldOut], list[str]]:
        """Conditions with their scores, and what was left out and why."""
        skipped: list[str] = []
        conditions = []
        for held in self._held_out(real, skipped):
            with warnings.catch_warnings():  # what is undefined is shown as such
                warnings.filterwarnings("ignore", message=".*is undefined.*", category=RuntimeWarning)
                held.table = metrics.evaluate(
                    {MODEL: held.predicted},
                    held.real,
                    held.control,
                    training=held.training or None,
                    gene_names=self._var_names,
                    top_n=n_de,
                    min_cells=MIN_CELLS,
                    seed=seed,
                )
            held.coverage = self._held_out_coverage(held)
            conditions.append(held)
        if not conditions:
            raise ValueError(
                f"No condition of `real` can be evaluated: {'; '.join(skipped) or 'it has only controls'}."
            )
        return conditions, skipped

    def _held_out(self, real: AnnData, skipped: list[str]) -> Iterator[HeldOut]:
        """Every condition and cell type of the real cells, predicted."""
        cells_of("real", real)
        keys = self.setup_keys
        asked = self._conditions_of(real)
        found, conditions = asked.code, asked.conditions
        types = np.full(real.n_obs, self.cell_types[0]) if keys.labels_key is None else real.obs[keys.labels_key]
        types = np.asarray(types).astype(str)
        adata = self._require_adata("write a report")
        own = self._conditions_of(adata)
        registered, known = own.code, own.conditions
        of_type = self._cells(None).context.labels.numpy()
        for code, kind in sorted(set(zip(found.tolist(), types.tolist(), strict=True))):
            condition = conditions[code]
            if condition.is_control:
                continue
            dosage = None if keys.dosage_key is None else _dose_text(self, condition)
            name = f"{condition.label}{'' if dosage is None else f' at {dosage}'} in {kind}"
            rows = np.flatnonzero((found == code) & (types == kind))
            label = self.cell_types.index(kind) if kind in self.cell_types else -1
            control = np.flatnonzero((registered == 0) & (of_type == label))
            reason = self._why_not(condition, kind, len(rows), len(control))
            if reason is not None:
                skipped.append(f"{name}: {reason}")
                continue
            source = adata[control].copy()
            predicted = self.predict_perturbation(source, condition.label, dosage=dosage, return_type="lognorm")
            same = next((i for i, other in enumerate(known) if other.key == condition.key), -1)
            yield HeldOut(
                name=name,
                condition=condition,
                cell_type=kind,
                control=self._lognorm_of(source),
                predicted=np.asarray(predicted.X, dtype=np.float64),
                real=self._lognorm_of(real[rows].copy()),
                training=self._other_contexts(registered, of_type, same, label),
                support=str(predicted.obs["support"].iloc[0]),
                distance=float(predicted.obs["support_distance"].mean())
                if "support_distance" in predicted.obs
                else float("nan"),
            )

    def _why_not(self, condition: Condition, kind: str, n_real: int, n_control: int) -> str | None:
        """Why a condition cannot be evaluated, if so."""
        if kind not in self.cell_types:
            return "the model does not know this cell type"
        if min(n_real, n_control) < MIN_CELLS:
            return f"{n_real} real and {n_control} control cells, at least {MIN_CELLS} needed"
        try:
            self.vocabulary.members([condition])
            self._check_trained([condition])
        except UnknownPerturbationError:
            return "the model does not know this perturbation, and has no vector for it"
        return None

    def _other_contexts(
        self, registered: np.ndarray, of_type: np.ndarray, condition: int, label: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Control and perturbed training cells of the other cell types, where there are enough of both."""
        adata = self._require_adata("write a report")
        contexts = {}
        in_training = np.zeros(len(registered), dtype=bool)
        in_training[np.r_[self._split.train, self._split.validation]] = True
        for other, kind in enumerate(self.cell_types):
            here = in_training & (of_type == other)
            pair = [np.flatnonzero(here & (registered == of)) for of in (0, condition)]
            if other != label and condition > 0 and min(map(len, pair)) >= MIN_CELLS:
                control, perturbed = (self._lognorm_of(adata[rows].copy()) for rows in pair)
                contexts[kind] = (control, perturbed)
        return contexts

    def _lognorm_of(self, adata: AnnData) -> np.ndarray:
        cells = self._cells(adata)
        return lognorm_expression(cells.dense(slice(None)), cells.library).astype(np.float64)

    def _held_out_coverage(self, held: HeldOut, level: float = 0.95) -> float:
        """Fraction of genes whose real change lies in the interval, the sampling error of the real cells included."""
        if self._calibration.state.process is None:
            return float("nan")
        dosage = None if self.setup_keys.dosage_key is None else _dose_text(self, held.condition)
        effect = self.get_perturbation_effect(held.condition.label, held.cell_type, dosage=dosage)
        change = held.real.mean(axis=0) - held.control.mean(axis=0)
        sampling = held.real.var(axis=0) / (len(held.real) - 1) + held.control.var(axis=0) / (len(held.control) - 1)
        reach = norm.ppf(0.5 + level / 2) * np.sqrt(effect["sd"].to_numpy() ** 2 + sampling)
        return float((np.abs(change - effect["log_fold_change"].to_numpy()) <= reach).mean())


def _dose_text(model: EvaluationMixin, condition: Condition) -> str:
    """Doses of a condition's members as a user writes them."""
    delimiter = model.vocabulary.combination_delimiter or "+"
    return delimiter.join(number_text(dose) for dose in condition.doses)
