"""A held-out evaluation as one HTML page."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from anndata import AnnData

from cfmvc_scvi import metrics, pl
from cfmvc_scvi.model.criticism import PredictiveCheckMixin
from cfmvc_scvi.model.evaluate import MODEL, EvaluationMixin, HeldOut
from cfmvc_scvi.pl._page import Page

#: Below these a page says how little there is.
_FEW_CELLS, _FEW_CONTEXTS = 30, 3
#: Cells of the posterior predictive check.
_CHECKED_CELLS = 2000


class ReportMixin(EvaluationMixin, PredictiveCheckMixin):
    """Reports of :class:`~cfmvc_scvi.CFMVC`.

    Relies on the evaluation of predictions, their support, the posterior predictive check and the training's history.
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
        show_progress: bool | None = None,
    ) -> Path:
        """Write a held-out evaluation as one self-contained HTML page.

        Every perturbation is predicted, in every cell type of ``real``, from the control cells of that type in the
        registered data (of the same samples or batches, where there are enough), and compared with the real cells
        beside the baselines and the split-half ceiling (:func:`cfmvc_scvi.metrics.evaluate`). The page says what the
        data and the split were, shows the training curves, the scores and pictures, and warns where a figure rests on
        little.

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
        show_progress
            Show a bar over conditions; ``None`` does when there are several.

        Returns
        -------
        The path.

        Raises
        ------
        ValueError
            When no condition of ``real`` can be evaluated, with the reason for each.
        RuntimeError
            When the flow is not trained, or the model was loaded without data.
        FileNotFoundError
            When the folder does not exist.
        PermissionError, IsADirectoryError
            When the file cannot be written. Nothing has been worked out by then.
        """
        self._require_flow("write a report")
        self._require_adata("write a report")
        path = writable(Path(path))
        conditions, skipped = self._evaluated(real, n_de, seed, show_progress)
        page = Page(title)
        page.text(
            f"{self._model_summary_string}. Written on {date.today().isoformat()} by cfmvc_scvi "
            f"{version('cfmvc_scvi')} with scvi-tools {version('scvi-tools')} and torch {version('torch')}; "
            f"seed {seed}.",
            note=True,
        )
        self._write_verdicts(page, conditions)
        self._write_warnings(page, real, conditions, skipped)
        self._write_scores(page, conditions)
        self._write_data(page, real, seed)
        for held in sorted(conditions, key=lambda one: -len(one.real))[:max_plots]:
            _write_condition(page, held, pd.Index(self._var_names), n_de, seed)
        path.write_text(page.render(), encoding="utf-8")
        return path

    # ---- the page ---------------------------------------------------------------------------------------------

    def _write_verdicts(self, page: Page, conditions: list[HeldOut]) -> None:
        page.heading("Verdict")
        rows = {
            held.name: {
                "verdict": held.verdict.level + (", trained on" if held.trained_on else ""),
                **{
                    f"wins : losses against {name}": f"{held.verdict.wins[name]} : {held.verdict.losses[name]}"
                    for name in held.verdict.wins
                },
                "95 % intervals hold": f"{held.coverage:.0%}" if np.isfinite(held.coverage) else "–",
                "in words": held.verdict.text(),
            }
            for held in conditions
        }
        page.table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition").fillna("–"))
        page.text(
            "ahead: better than every baseline by most scores, and by all errors. mixed: by most, not by all. behind: "
            "a baseline is better by as many scores or more. Every score counts once; equal and undefined ones for "
            "neither side.",
            note=True,
        )

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
        page.warnings(
            found, "None: every prediction has enough cells and contexts behind it, and is better than the baselines."
        )

    def _write_scores(self, page: Page, conditions: list[HeldOut]) -> None:
        page.heading("Scores")
        tables = [held.table for held in conditions]
        mean = pd.concat(tables).groupby(level=0, sort=False).mean()
        page.text(
            "Scores are on log1p of counts per 10,000, deltas from the real control cells. no change: the control "
            "cells; mean perturbed: the perturbed cells of the other contexts; mean shift: control plus the mean "
            "change of the other contexts, the baseline to beat; ceiling: one half of the real cells against the "
            "other.",
            note=True,
        )
        title = conditions[0].name if len(conditions) == 1 else f"mean over {len(conditions)} conditions"
        page.figures((pl.benchmark(mean, title=title, show=False), "Prediction beside baselines and ceiling."))
        rows = {
            held.name: {
                "support": held.support,
                "in its samples": held.place or "–",
                "distance": held.distance,
                "real": len(held.real),
                "control": len(held.control),
                "contexts": len(held.training),
                "95 % intervals hold": f"{held.coverage:.0%}" if np.isfinite(held.coverage) else "–",
                **held.table["raw"].loc[MODEL].reindex(metrics.overview_metrics()).to_dict(),
            }
            for held in conditions
        }
        overview = pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")
        if overview["distance"].isna().all():
            overview = overview.drop(columns="distance")
        page.table(overview.rename(columns=lambda name: name.replace("_", " ")))
        page.text(
            "in its samples: what was trained on in the samples (without samples: batches) of the real cells. "
            "contexts: training populations that the baselines are made of: other cell types that the perturbation was "
            "seen in, or, where it was seen in this cell type but in other samples, those. 95 % intervals hold: "
            "fraction of genes whose real mean change lies in the interval of get_perturbation_effect, widened by the "
            "sampling error of the real cells.",
            note=True,
        )

    def _write_data(self, page: Page, real: AnnData, seed: int) -> None:
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
        rows = self._split.validation if len(self._split.validation) else self._split.train
        check = self.posterior_predictive_check(indices=rows[:_CHECKED_CELLS], seed=seed)
        page.figures(
            (
                pl.posterior_predictive_check(check, show=False),
                "Mean, variance and zeros of every gene, of cells drawn by stage 1 against "
                f"{'validation' if len(self._split.validation) else 'training'} cells.",
            )
        )
        page.figures((pl.support(self.support(), show=False), "Training cells; white: never trained on."))


def writable(path: Path) -> Path:
    """The path of a file that can be written; else an error, before anything is worked out."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write the report into: make it first.")
    if path.is_dir():
        raise IsADirectoryError(
            f"`path` {str(path)!r} is a folder: give the name of a file in it, such as 'report.html'."
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(
            f"The report cannot be written to {str(path)!r}: choose a folder that you may write into."
        )
    return path


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
    elif held.trained_on:
        found.append(f"{held.name}: trained on in this cell type; what is compared are other cells of it.")
    elif held.support == "seen":
        found.append(f"{held.name}: trained on in this cell type, but not in the sample or batch of these cells.")
    if not held.trained_on and len(held.training) < _FEW_CONTEXTS:
        found.append(f"{held.name}: the baselines rest on {len(held.training)} training populations; they say little.")
    if held.n_known:
        found.append(f"{held.name}: {held.n_known} of the {len(held.real)} real cells were trained on, by their names.")
    if not held.own_controls:
        found.append(
            f"{held.name}: too few control cells of the same samples or batches, so it is compared with those of "
            "others; differences between them count as change."
        )
    few = {"real": len(held.real), "control": len(held.control)}
    if min(few.values()) < _FEW_CELLS:
        found.append(f"{held.name}: {few['real']} real and {few['control']} control cells; the scores are noisy.")
    if held.verdict.level != "ahead" or held.verdict.too_narrow:
        found.append(f"{held.name}: {held.verdict.text()}")
    return found


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
