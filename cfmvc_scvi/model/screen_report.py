"""All conditions of a screen as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy import sparse
from scvi.utils import track

from cfmvc_scvi import pl
from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._base import single_precision
from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.model.compare import ComparisonMixin, condition_names, cosines
from cfmvc_scvi.model.effects import EFFECT_UNITS, effect_table
from cfmvc_scvi.model.report import writable
from cfmvc_scvi.pl._page import Page
from cfmvc_scvi.prediction.request import Request

#: Cells that are made dense together.
_CHUNK = 4096
#: Conditions in heat maps, genes in them.
_DRAWN, _GENES = 60, 40
#: Below this split-half correlation of the measured effect a condition is said not to be reproduced.
_REPRODUCED = 0.3


class ScreenReportMixin(ComparisonMixin):
    """Report of a whole screen, of :class:`~cfmvc_scvi.CFMVC`.

    Relies on calibrated effects with their errors, on their likeness, and on the registered data for reliability.
    """

    @single_precision
    def report_screen(
        self,
        path: str | Path,
        perturbation: str | Sequence[str] | pd.DataFrame | None = None,
        labels: str | Sequence[str] | None = None,
        *,
        dosage: float | str | None = None,
        title: str = "Screen",
        n_genes: int = 8,
        fdr: float = 0.05,
        seed: int = 0,
        show_progress: bool | None = None,
    ) -> Path:
        """Write all conditions of a screen into one HTML page that needs nothing else to be opened.

        A table that can be sorted and searched has one row for each condition: its training cells, its support (with
        the ``reach`` of the vector of a perturbation that was not measured), the size of its effect on genes, the
        number of genes whose sign is sure, how well its measured effect is reproduced by halves of its cells, and the
        genes that move most. Drawings show effect against cells, reliability, and the strongest conditions and how
        alike they are. What was hidden from training is scored by :meth:`report`.

        Parameters
        ----------
        path
            File to write; its folder must exist.
        perturbation, dosage
            The conditions, as in :meth:`predict_perturbation`; ``None`` is every one seen in training.
        labels
            Cell type, or several, averaged in proportion to their control cells; ``None`` is all that have some.
        title
            Title of the page.
        n_genes
            Genes named for each condition.
        fdr
            Local false sign rate up to which the sign of a gene is sure.
        seed
            Of the halves.
        show_progress
            Show a bar over conditions; ``None`` does when there are several.

        Returns
        -------
        The path.

        Raises
        ------
        ValueError
            For unknown conditions or cell types, and where there is no condition beside the control.
        RuntimeError
            When the flow is not trained, or the training data are needed and not there.
        FileNotFoundError
            When the folder does not exist.
        PermissionError, IsADirectoryError
            When the file cannot be written. Nothing has been worked out by then.
        """
        self._require_flow("report a screen")
        path = writable(Path(path))
        whole_number("n_genes", n_genes)
        requests = [one for one in self._requests(perturbation, dosage, None) if not one.condition.is_control]
        if not requests:
            raise ValueError("There is no condition beside the control to report.")
        codes, weights = self._codes_and_weights(labels)
        reliability = self._split_half(requests, codes, seed)
        names, rows, effects = condition_names(requests), [], []
        hidden = len(requests) < 2 if show_progress is None else not show_progress
        for name, one in zip(track(names, description="Reporting conditions", disable=hidden), requests, strict=True):
            row, effect = self._screen_row(one, codes, weights, n_genes, fdr)
            rows.append(row | {"split-half r": reliability.get(name, np.nan)})
            effects.append(effect)
        order = ["cells", "support", "effect size", "sure genes", "split-half r", "strongest genes"]
        table = pd.DataFrame(rows, index=pd.Index(names, name="condition"))[order]
        page = Page(title)
        self._write_screen(page, table, np.stack(effects), codes)
        path.write_text(page.render(), encoding="utf-8")
        return path

    # ---- parts ------------------------------------------------------------------------------------------------

    def _screen_row(
        self, request: Request, codes: np.ndarray, weights: np.ndarray, n_genes: int, fdr: float
    ) -> tuple[dict[str, object], np.ndarray]:
        """Row of the table, and the effect (n_genes,)."""
        condition = request.condition
        mean, variance, freedom = self._effect_moments(condition, codes, weights)
        floor = -(weights @ self._calibration.state.profiles[codes])
        table = effect_table(mean, np.sqrt(variance), floor, freedom, level=0.95, min_change=0.0, fdr=fdr)
        sure = table["significant"].to_numpy()
        counted = self._n_support(condition, codes)
        strongest = np.lexsort((-np.abs(mean), ~sure))[:n_genes]
        genes = [f"{self._var_names[i]} {mean[i]:+.2f}{'' if sure[i] else '?'}" for i in strongest]
        support = [str(value) for value in self._support(condition, codes)]
        reach = self._reach(condition)
        row: dict[str, object] = {
            "cells": np.nan if counted is None else int(counted.sum()),
            "support": ", ".join(f"{n} {value}" if len(codes) > 1 else value for value, n in _counted(support))
            + ("" if reach == 1.0 else f", reach {reach:.2f}"),
            "effect size": float(np.sqrt((mean**2).mean())),
            "sure genes": int(sure.sum()),
            "strongest genes": ", ".join(genes),
        }
        return row, mean.astype(np.float32)

    def _split_half(self, requests: Sequence[Request], codes: np.ndarray, seed: int) -> dict[str, float]:
        """Correlation over genes of the effects measured in two halves of the cells, controls halved too, by condition.

        Within cell types, averaged in proportion to the perturbed cells; of conditions with at least ten cells. Empty
        where the model has no data.
        """
        if self._registered is None:
            return {}
        found, rows = self._conditions_of(self._registered), self._fitted_rows
        types = self._cells(None).context.labels.numpy()
        rows = rows[np.isin(types[rows], codes)]
        half = np.random.default_rng(seed).permutation(len(rows)) % 2
        place = np.stack([found.code[rows], types[rows], half])
        keys, group = np.unique(place, axis=1, return_inverse=True)
        group, sizes = group.ravel(), np.bincount(group.ravel())
        sums = np.zeros((len(sizes), len(self._var_names)), dtype=np.float32)
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            cells, n = self._cells(None, rows[part]), len(rows[part])
            of_group = sparse.csr_matrix((np.ones(n, np.float32), (group[part], np.arange(n))), (len(sums), n))
            sums += of_group @ lognorm_expression(cells.dense(slice(None)), cells.library)
        means, at = sums / sizes[:, None], {tuple(key): i for i, key in enumerate(keys.T.tolist())}
        by_key = {one.key: code for code, one in enumerate(found.conditions)}
        reliability = {}
        for name, request in zip(condition_names(requests), requests, strict=True):
            code, changes = by_key.get(request.condition.key, -1), []
            for which in (0, 1):
                both = [kind for kind in codes if {(code, kind, which), (0, kind, which)} <= at.keys()]
                there, base = ([at[one, kind, which] for kind in both] for one in (code, 0))
                if there and sizes[there].sum() >= 5:
                    changes.append(np.average(means[there] - means[base], axis=0, weights=sizes[there]))
            if len(changes) == 2 and min(change.std() for change in changes) > 0:
                reliability[name] = float(np.corrcoef(*changes)[0, 1])
        return reliability

    def _write_screen(self, page: Page, table: pd.DataFrame, effects: np.ndarray, codes: np.ndarray) -> None:
        types = [self.cell_types[code] for code in codes]
        page.text(
            f"{self._model_summary_string}. {len(table)} conditions, {effects.shape[1]} genes, cell types "
            f"{', '.join(types[:10])}{', ...' if len(types) > 10 else ''}. Written on {date.today().isoformat()} by "
            f"cfmvc_scvi {version('cfmvc_scvi')}.",
            note=True,
        )
        measured = table["split-half r"].dropna()
        poor = int((measured < _REPRODUCED).sum())
        page.warnings(
            [
                f"The measured effects of {poor} of {len(measured)} conditions have a split-half correlation below "
                f"{_REPRODUCED}: what is said of them rests on noise, or on what other conditions have in common."
            ]
            if poor
            else [],
            "The measured effects of all conditions with enough cells are reproduced by halves of their cells."
            if len(measured)
            else "Reliability is not known: the model has no data, or no condition has ten cells.",
        )
        page.heading("Overview")
        page.drawings((_overview(table), "Size of the effect against training cells; grey: reliability not known."))
        if len(measured):
            page.drawings((_histogram(measured), "Split-half correlation of the measured effects."))
        strongest = np.sort(np.argsort(-np.linalg.norm(effects, axis=1), kind="stable")[:_DRAWN])
        shown = pd.DataFrame(effects[strongest], index=table.index[strongest], columns=list(self._var_names))
        page.heading(f"The {len(shown)} strongest")
        page.drawings((pl.effects(shown, n_genes=_GENES, show=False), "Effects on the genes that move most."))
        if (shown != 0).any(axis=1).all():
            square = pd.DataFrame(cosines(shown.to_numpy()), index=shown.index, columns=shown.index)
            page.drawings((pl.similarity(square, show=False), "Cosine of effects: 1 the same kind, -1 the opposite."))
        page.heading("All conditions")
        page.text(
            f"Click on a column to sort by it. effect size: root mean square over genes, {EFFECT_UNITS}. sure genes: "
            "those whose sign is known at the local false sign rate. split-half r: correlation over genes of the "
            "effects that were measured in two halves of the cells. strongest genes: sure ones first, unsure ones "
            "with a question mark.",
            note=True,
        )
        page.searchable(table.sort_values("effect size", ascending=False, kind="stable"))


def _counted(values: Sequence[str]) -> list[tuple[str, int]]:
    """Every value once, with its number."""
    return [(value, values.count(value)) for value in dict.fromkeys(values)]


def _overview(table: pd.DataFrame) -> Figure:
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    known = table["split-half r"].notna().to_numpy()
    cells = table["cells"].astype(float).fillna(0.0).to_numpy() + 1.0
    size = table["effect size"].to_numpy()
    dot = float(np.clip(4000.0 / len(table), 4.0, 30.0))
    ax.scatter(cells[~known], size[~known], s=dot, color="#c4c8ce", lw=0)
    drawn = ax.scatter(
        cells[known], size[known], s=dot, c=table["split-half r"][known], vmin=0, vmax=1, cmap="cividis", lw=0
    )
    ax.set(xscale="log", xlabel="training cells + 1", ylabel="effect size")
    figure.colorbar(drawn, ax=ax, label="split-half r")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _histogram(values: pd.Series) -> Figure:
    figure, ax = plt.subplots(figsize=(5.0, 2.6), layout="constrained")
    ax.hist(values, bins=np.linspace(-1, 1, 41).tolist(), color="#0072B2")
    ax.axvline(_REPRODUCED, color="#D55E00", lw=1)
    ax.set(xlabel="split-half r", ylabel="conditions")
    ax.spines[["top", "right"]].set_visible(False)
    return figure
