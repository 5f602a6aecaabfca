"""A held-out evaluation as one HTML page."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import norm

from cfmvc_scvi import metrics, pl
from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.model.effects import EffectMixin
from cfmvc_scvi.pl._page import Page
from cfmvc_scvi.prediction.predict import PredictionMixin
from cfmvc_scvi.registration.spelling import number_text
from cfmvc_scvi.registration.vocabulary import Condition, UnknownPerturbationError

#: Training contexts with fewer cells do not enter the baselines; conditions with fewer real cells are skipped.
_MIN_CELLS = 10
_FEW_CELLS, _FEW_CONTEXTS = 30, 3
_MODEL = "CFMVC"


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


class ReportMixin(PredictionMixin, EffectMixin):
    """Reports of :class:`~cfmvc_scvi.CFMVC`.

    Relies on predictions, their support and the intervals of effects.
    """

    def report(
        self,
        path: str | Path,
        real: AnnData,
        *,
        title: str = "Held-out evaluation",
        n_de: int = 100,
        max_plots: int = 6,
        seed: int = 0,
    ) -> Path:
        """Write a held-out evaluation as one self-contained HTML page.

        Every perturbation is predicted, in every cell type of ``real``, from the control cells of that type in the
        registered data, and compared with the real cells beside the baselines and the split-half ceiling
        (:func:`cfmvc_scvi.metrics.evaluate`). The page says what the data and the split were, shows the training
        curves, the scores and pictures, and warns where a figure rests on little.

        Parameters
        ----------
        path
            File to write; its folder must exist.
        real
            Real perturbed cells that were not trained on: raw counts, with the columns of the training data. Control
            cells in it are left out; so are conditions of fewer than 10 cells, which the page says.
        title
            Title of the page.
        n_de
            Genes that count as differentially expressed.
        max_plots
            Conditions that get plots, those with the most real cells first; all of them are in the tables.
        seed
            Of the ceiling's splits and of the choice of cells drawn.

        Returns
        -------
        The path.

        Raises
        ------
        ValueError
            When no condition of ``real`` can be evaluated, with the reason for each.
        RuntimeError
            When the flow is not trained, or the model was loaded without data.
        """
        self._require_flow("write a report")
        self._require_adata("write a report")
        skipped: list[str] = []
        conditions = []
        for held in self._held_out(real, skipped):
            held.table = metrics.evaluate(
                {_MODEL: held.predicted},
                held.real,
                held.control,
                training=held.training or None,
                gene_names=self._var_names,
                top_n=n_de,
                min_cells=_MIN_CELLS,
                seed=seed,
            )
            held.coverage = self._held_out_coverage(held)
            conditions.append(held)
        if not conditions:
            raise ValueError(
                f"No condition of `real` can be evaluated: {'; '.join(skipped) or 'it has only controls'}."
            )
        page = Page(title)
        page.text(f"{self._model_summary_string}. Written by cfmvc_scvi {version('cfmvc_scvi')}.", note=True)
        self._write_warnings(page, real, conditions, skipped)
        self._write_scores(page, conditions)
        self._write_data(page, real)
        for held in sorted(conditions, key=lambda one: -len(one.real))[:max_plots]:
            _write_condition(page, held, pd.Index(self._var_names), n_de, seed)
        path = Path(path)
        path.write_text(page.render(), encoding="utf-8")
        return path

    # ---- the evaluation ---------------------------------------------------------------------------------------

    def _held_out(self, real: AnnData, skipped: list[str]) -> Iterator[HeldOut]:
        """Every condition and cell type of the real cells, predicted."""
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
        if min(n_real, n_control) < _MIN_CELLS:
            return f"{n_real} real and {n_control} control cells, at least {_MIN_CELLS} needed"
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
            if other != label and condition > 0 and min(map(len, pair)) >= _MIN_CELLS:
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

    # ---- the page ---------------------------------------------------------------------------------------------

    def _write_warnings(self, page: Page, real: AnnData, conditions: list[HeldOut], skipped: list[str]) -> None:
        page.heading("Warnings")
        found = []
        used = self._require_adata("write a report").obs_names[np.r_[self._split.train, self._split.validation]]
        known = int(real.obs_names.isin(used).sum())
        if known:
            found.append(
                f"{known} of the {real.n_obs} real cells have names of cells the model was trained on: what follows "
                "may be no held-out evaluation."
            )
        found += _rising_losses(self.history_ or {})
        for held in conditions:
            found += _doubts(held)
        found += [f"Left out. {reason}." for reason in skipped]
        page.warnings(found, "None: every prediction is of a condition with enough cells and contexts behind it.")

    def _write_scores(self, page: Page, conditions: list[HeldOut]) -> None:
        page.heading("Scores")
        tables = [held.table for held in conditions]
        mean = pd.concat(tables).groupby(level=0, sort=False).mean()
        page.text(
            "Scores are on log1p of counts per 10,000, deltas from the real control cells. no change: the control "
            "cells; mean perturbed: the perturbed cells of the other cell types; mean shift: control plus the mean "
            "change of the other cell types, the baseline to beat; ceiling: one half of the real cells against the "
            "other.",
            note=True,
        )
        title = conditions[0].name if len(conditions) == 1 else f"mean over {len(conditions)} conditions"
        page.figures((pl.benchmark(mean, title=title, show=False), "Prediction beside baselines and ceiling."))
        rows = {
            held.name: {
                "support": held.support,
                "distance": held.distance,
                "real": len(held.real),
                "control": len(held.control),
                "contexts": len(held.training),
                "95 % intervals hold": f"{held.coverage:.0%}" if np.isfinite(held.coverage) else "–",
                **held.table["raw"].loc[_MODEL].reindex(metrics.overview_metrics()).to_dict(),
            }
            for held in conditions
        }
        overview = pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")
        if overview["distance"].isna().all():
            overview = overview.drop(columns="distance")
        page.table(overview.rename(columns=lambda name: name.replace("_", " ")))
        page.text(
            "contexts: cell types that the perturbation was seen in, beside this one. 95 % intervals hold: fraction of "
            "genes whose real mean change lies in the interval of get_perturbation_effect, widened by the sampling "
            "error of the real cells.",
            note=True,
        )

    def _write_data(self, page: Page, real: AnnData) -> None:
        page.heading("Data and split")
        sizes = [len(part) for part in (self._split.train, self._split.validation, self._split.test)]
        adata = self._require_adata("write a report")
        shape = f"{adata.n_obs} cells x {adata.n_vars} genes"
        page.text(
            f"Registered: {shape}; {len(self.vocabulary.names)} perturbations, {len(self.cell_types)} cell types, "
            f"{len(self.batches)} batches. Split: {sizes[0]} training, {sizes[1]} validation, {sizes[2]} test cells. "
            f"Held out: {real.n_obs} cells that were given to this report."
        )
        page.figures((pl.training_curves(self, show=False), "Training curves of both stages."))
        page.figures((pl.support(self.support(), show=False), "Training cells; white: never trained on."))


def _dose_text(model: ReportMixin, condition: Condition) -> str:
    """Doses of a condition's members as a user writes them."""
    delimiter = model.vocabulary.combination_delimiter or "+"
    return delimiter.join(number_text(dose) for dose in condition.doses)


def _rising_losses(history: Mapping[str, pd.DataFrame]) -> list[str]:
    """Stages whose validation loss has lost a quarter of what it had gained, or more, by the end."""
    found = []
    for stage, key in (("Stage 1", "elbo_validation"), ("Stage 2", "flow_loss_validation")):
        if key not in history:
            continue
        values = pd.to_numeric(history[key].iloc[:, 0]).to_numpy(dtype=float)
        best = int(np.argmin(values))
        if values[-1] - values[best] > 0.25 * (values[0] - values[best]):
            found.append(
                f"{stage}: the validation loss was lowest in epoch {best + 1} of {len(values)} ({values[best]:.4g}) "
                f"and ended at {values[-1]:.4g}: it fits training cells better than others."
            )
    return found


def _doubts(held: HeldOut) -> list[str]:
    """What speaks for caution about one condition."""
    found = []
    if held.support in ("new combination", "new perturbation"):
        found.append(f"{held.name}: {held.support}, an extrapolation from others.")
    elif held.support == "seen":
        found.append(f"{held.name}: trained on in this cell type; what is compared are other cells of it.")
    if held.support != "seen" and len(held.training) < _FEW_CONTEXTS:
        found.append(f"{held.name}: seen in only {len(held.training)} other cell types; their effect says little.")
    few = {"real": len(held.real), "control": len(held.control)}
    if min(few.values()) < _FEW_CELLS:
        found.append(f"{held.name}: {few['real']} real and {few['control']} control cells; the scores are noisy.")
    raw = held.table["raw"]
    baseline = _baseline(held.table)
    if baseline in raw.index and raw.loc[_MODEL, "mse_mean"] > raw.loc[baseline, "mse_mean"]:
        found.append(f"{held.name}: the mean squared error is larger than that of the baseline ({baseline}).")
    return found


def _baseline(table: pd.DataFrame) -> str:
    """Name of the baseline that a table of :func:`cfmvc_scvi.metrics.evaluate` is scaled by."""
    return table.attrs.get("baseline", "mean shift")


def _write_condition(page: Page, held: HeldOut, genes: pd.Index, n_de: int, seed: int) -> None:
    page.heading(held.name)
    page.text(f"{len(held.real)} real and {len(held.control)} control cells; support: {held.support}.", note=True)
    cells, names = (held.predicted, held.real, held.control), cast(Sequence[str], genes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is undefined.*", category=RuntimeWarning)
        page.figures(
            (
                pl.delta(*cells, n_de=n_de, gene_names=names, show=False),
                "Change of every gene's mean from control, predicted against real; the line is equality.",
            ),
            (
                pl.mean_expression(*cells, n_de=n_de, gene_names=names, show=False),
                "Mean of every gene, predicted against real.",
            ),
        )
    populations = (held.predicted, held.control, held.real)
    page.figures(
        (
            pl.embedding(*populations, seed=seed, show=False),
            "Cells on principal components of control and real cells; crosses are means.",
        ),
        (
            pl.gene_distributions(*populations, gene_names=names, show=False),
            "Genes that change most (by t); dots are means.",
        ),
    )
