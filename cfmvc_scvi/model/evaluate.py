"""Predictions of held-out cells, scored beside baselines."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import norm
from scvi.utils import track

from cfmvc_scvi import metrics
from cfmvc_scvi._arguments import cells_of
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.model.effects import EffectMixin
from cfmvc_scvi.model.verdict import Verdict, judge
from cfmvc_scvi.prediction.predict import PredictionMixin
from cfmvc_scvi.registration.registration import CellConditions
from cfmvc_scvi.registration.spelling import number_text, texts_of
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
        What the baselines are made of, (control, perturbed): other cell types, or other samples of this one.
    support
        What the prediction rests on.
    place
        What was trained on in the samples of the real cells, without samples in their batches: the least of
        :data:`~cfmvc_scvi.prediction.places.PLACE_LEVELS`; empty where the model has neither.
    n_known
        Real cells with names of cells that were trained on.
    own_controls
        Whether the control cells are of the samples (batches) of the real cells.
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
    place: str = ""
    n_known: int = 0
    own_controls: bool = True
    distance: float = float("nan")
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    coverage: float = float("nan")

    @property
    def trained_on(self) -> bool:
        """Whether the condition was trained on in this cell type and in the samples of the real cells."""
        return self.support == "seen" and self.place in ("", "seen")

    @property
    def verdict(self) -> Verdict:
        """What the scores and the coverage say together."""
        return judge(self.table, MODEL, self.coverage)


@dataclass(frozen=True)
class _Asked:
    """Real cells of one condition and cell type, by their rows."""

    condition: Condition
    cell_type: str
    rows: np.ndarray


class EvaluationMixin(PredictionMixin, EffectMixin):
    """Evaluation of :class:`~cfmvc_scvi.CFMVC` on held-out cells.

    Relies on predictions, their support and the intervals of effects.
    """

    def evaluate(
        self, real: AnnData, *, n_de: int = 100, seed: int = 0, show_progress: bool | None = None
    ) -> pd.DataFrame:
        """Scores and verdict of every condition of held-out cells, as :meth:`report` shows them.

        Parameters
        ----------
        real, n_de, seed, show_progress
            As in :meth:`report`.

        Returns
        -------
        DataFrame ((condition, method) x scores): the raw scores of :func:`cfmvc_scvi.metrics.evaluate` for the model,
        the baselines and the ceiling, and, in the model's rows, ``verdict`` (``"ahead"``, ``"mixed"`` or ``"behind"``),
        ``coverage`` (share of genes in their 95 % intervals), ``support``, ``support_place`` (what was trained on in
        the samples, or batches, of the real cells), ``trained_on`` (the scores are then not of a held-out condition),
        ``n_real``, ``n_known`` (real cells that were trained on, by their names) and ``n_control``. Control cells are
        those of the same samples (batches) where there are enough. What was left out, and why, is in
        ``attrs["skipped"]``.

        Raises
        ------
        ValueError
            When no condition of ``real`` can be evaluated, with the reason for each.
        RuntimeError
            When the flow is not trained, or the model was loaded without data.
        """
        self._require_flow("evaluate predictions")
        self._require_adata("evaluate predictions")
        conditions, skipped = self._evaluated(real, n_de, seed, show_progress)
        tables = {}
        for held in conditions:
            table = held.table["raw"].copy()
            told = {
                "verdict": held.verdict.level,
                "coverage": held.coverage,
                "support": held.support,
                "support_place": held.place,
                "trained_on": held.trained_on,
                "n_real": len(held.real),
                "n_known": held.n_known,
                "n_control": len(held.control),
            }
            for name, value in told.items():
                table[name] = pd.Series({MODEL: value}).reindex(table.index)
            tables[held.name] = table
        result = pd.concat(tables, names=["condition", "method"])
        result.attrs["skipped"] = skipped
        return result

    # ---- the evaluation ---------------------------------------------------------------------------------------

    def _evaluated(
        self, real: AnnData, n_de: int, seed: int, show_progress: bool | None
    ) -> tuple[list[HeldOut], list[str]]:
        """Conditions with their scores, and what was left out and why."""
        skipped: list[str] = []
        conditions = []
        asked = self._asked_of(real)
        hidden = len(asked) < 2 if show_progress is None else not show_progress
        for one in track(asked, description="Evaluating conditions", disable=hidden):
            held = self._held_out(real, one, skipped)
            if held is None:
                continue
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

    def _asked_of(self, real: AnnData) -> list[_Asked]:
        """Every condition and cell type of the real cells."""
        keys = self.setup_keys
        found = self._conditions_of(cells_of("real", real))
        types = np.full(real.n_obs, self.cell_types[0]) if keys.labels_key is None else real.obs[keys.labels_key]
        types = np.asarray(types).astype(str)
        pairs = sorted(set(zip(found.code.tolist(), types.tolist(), strict=True)))
        return [
            _Asked(found.conditions[code], kind, np.flatnonzero((found.code == code) & (types == kind)))
            for code, kind in pairs
            if not found.conditions[code].is_control
        ]

    def _held_out(self, real: AnnData, asked: _Asked, skipped: list[str]) -> HeldOut | None:
        """A condition in a cell type, predicted; ``None`` where it cannot be."""
        condition, kind = asked.condition, asked.cell_type
        adata = self._require_adata("evaluate predictions")
        own = self._conditions_of(adata)
        of_type = self._cells(None).context.labels.numpy()
        dosage = None if self.setup_keys.dosage_key is None else _dose_text(self, condition)
        name = f"{condition.label}{'' if dosage is None else f' at {dosage}'} in {kind}"
        label = self.cell_types.index(kind) if kind in self.cell_types else -1
        control = np.flatnonzero((own.code == 0) & (of_type == label))
        reason = self._why_not(condition, kind, len(asked.rows), len(control))
        if reason is not None:
            skipped.append(f"{name}: {reason}")
            return None
        cells = real[asked.rows].copy()
        place = self._place_of(condition, cells)
        control, own_controls = self._controls_beside(cells, control)
        source = adata[control].copy()
        predicted = self.predict_perturbation(source, condition.label, dosage=dosage, return_type="lognorm")
        obs = predicted.obs
        return HeldOut(
            name=name,
            condition=condition,
            cell_type=kind,
            control=self._lognorm_of(source),
            predicted=np.asarray(predicted.X, dtype=np.float64),
            real=self._lognorm_of(cells),
            training=self._contexts(cells, own, of_type, condition, label),
            support=str(obs["support"].iloc[0]),
            place=place,
            n_known=int(cells.obs_names.isin(adata.obs_names[self._fitted_rows]).sum()),
            own_controls=own_controls,
            distance=float(obs["support_distance"].mean()) if "support_distance" in obs else float("nan"),
        )

    def _place_of(self, condition: Condition, cells: AnnData) -> str:
        """What was trained on in the samples (without samples: batches) of some cells of one type: the least of it."""
        read = self._cells(cells)
        places = {"batch": read.context.batch.numpy()} | ({} if read.sample is None else {"sample": read.sample})
        found = self._grounds(condition, read.context.labels.numpy(), places, None)
        levels = found.get("support_sample", found.get("support_batch"))
        return "" if levels is None else str(levels.categories[int(levels.codes.max())])

    def _place_key(self, cells: AnnData) -> str | None:
        """Column that says which cells belong together: samples, or batches where the cells have none."""
        keys = self.setup_keys
        return next((key for key in (keys.sample_key, keys.batch_key) if key is not None and key in cells.obs), None)

    def _controls_beside(self, cells: AnnData, control: np.ndarray) -> tuple[np.ndarray, bool]:
        """Rows of the control cells of the cells' samples (batches), where there are enough; and whether there are."""
        key = self._place_key(cells)
        if key is None:
            return control, True
        own = texts_of(obs_of(self._require_adata("evaluate predictions"))[key])[control]
        beside = control[np.isin(own, np.unique(texts_of(obs_of(cells)[key])))]
        return (beside, True) if len(beside) >= MIN_CELLS else (control, False)

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

    def _contexts(
        self, cells: AnnData, own: CellConditions, of_type: np.ndarray, condition: Condition, label: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Control and perturbed training cells that baselines are made of, where there are enough of both.

        They are the same cell type in other samples (batches), where the condition was trained on in these alone; else
        other cell types.
        """
        adata = self._require_adata("evaluate predictions")
        code = next((i for i, other in enumerate(own.conditions) if other.key == condition.key), -1)
        if code < 1:
            return {}
        trained = np.zeros(adata.n_obs, dtype=bool)
        trained[self._fitted_rows] = True
        key = self._place_key(cells)
        groups = {name: of_type == i for i, name in enumerate(self.cell_types) if i != label}
        if key is not None:
            place = texts_of(obs_of(adata)[key])
            measured = set(place[trained & (of_type == label) & (own.code == code)])
            if measured and not measured & set(texts_of(obs_of(cells)[key])):
                groups = {f"{key} {name}": (of_type == label) & (place == name) for name in sorted(measured)}
        contexts = {}
        for name, here in groups.items():
            control, perturbed = (np.flatnonzero(trained & here & (own.code == of)) for of in (0, code))
            if min(len(control), len(perturbed)) >= MIN_CELLS:
                contexts[name] = (self._lognorm_of(adata[control].copy()), self._lognorm_of(adata[perturbed].copy()))
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
