"""Tables as pictures: what was trained on, and how predictions score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from cfmvc_scvi._messages import close_matches, shortened
from cfmvc_scvi.metrics import METRICS
from cfmvc_scvi.pl._style import DIVERGING, SEQUENTIAL, Drawn, axes_for, finish, plain, root_figure, tick_step


def support(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Training cells of each perturbation in each cell type.

    Parameters
    ----------
    table
        Result of ``model.support()``.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes. Colour is the number of training cells, on a log scale; combinations that were not trained on are white.
    Numbers are written where there is room.
    """
    if not isinstance(table, pd.DataFrame) or not {"perturbation", "n_train"} <= set(table.columns):
        raise ValueError("`table` must be the result of `model.support()`, with columns 'perturbation' and 'n_train'.")
    if "cell_type" not in table:
        table = table.assign(cell_type="all cells")
    counts = table.pivot_table(index="perturbation", columns="cell_type", values="n_train", aggfunc="sum", fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    n_rows, n_columns = counts.shape
    longest = max(len(str(name)) for name in counts.columns) if n_columns > 3 else 0
    width = float(np.clip(0.6 * n_columns + 2.4, 4.0, 14.0))
    drawn = axes_for(ax, (width, float(np.clip(0.22 * n_rows + 1.6 + 0.07 * longest, 2.2, 16.0))))
    values = counts.to_numpy(dtype=float)
    top = max(values.max(), 2.0)
    shown = np.ma.masked_less_equal(values, 0)
    image = drawn.imshow(shown, norm=LogNorm(1, top), cmap=SEQUENTIAL, aspect="auto", interpolation="nearest")
    drawn.set_facecolor("white")
    figure = root_figure(drawn)
    figure.colorbar(image, ax=drawn).set_label("training cells", fontsize=8)
    drawn.set_xticks(
        range(n_columns), list(map(plain, counts.columns)), rotation=90 if n_columns > 3 else 0, fontsize=8
    )
    figure.draw_without_rendering()
    frame = drawn.get_window_extent()
    places = np.arange(0, n_rows, tick_step(n_rows, frame.height / figure.dpi))
    drawn.set_yticks(places, list(map(plain, counts.index[places])), fontsize=8)
    drawn.spines[:].set_visible(False)
    room = frame.width / figure.dpi / n_columns > 0.4 and tick_step(n_rows, frame.height / figure.dpi) == 1
    if room:
        for i, j in np.ndindex(values.shape):
            dark = values[i, j] > 0 and np.log(max(values[i, j], 1.0)) < 0.6 * np.log(top)
            drawn.text(
                j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
            )
    drawn.set_title(title or "", fontsize=10)
    return finish(drawn, show, save, return_fig, own=ax is None)


def benchmark(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Table of scores, coloured from the baseline (0, white) to the ceiling (1, blue); red is worse than the baseline.

    Parameters
    ----------
    table
        Result of :func:`~cfmvc_scvi.metrics.evaluate`, or the mean of several: columns ``raw`` and ``scaled``.
    metrics
        Columns to draw; ``None`` is all.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes. Numbers are the raw scores, an arrow after a metric's name says which direction is better; grey has no
    value.
    """
    if not isinstance(table, pd.DataFrame) or table.columns.nlevels != 2 or "raw" not in table:
        raise ValueError("`table` must be the result of `metrics.evaluate`, with the columns 'raw' and 'scaled'.")
    raw, scaled = table["raw"], table["scaled"]
    if metrics is not None:
        missing = [metric for metric in metrics if metric not in raw]
        if missing or not len(metrics):
            raise ValueError(
                f"`metrics` {shortened(missing)} are not in the table: give at least one of {shortened(raw, 30)}."
                f"{close_matches(missing, raw)}"
            )
        raw, scaled = raw[list(metrics)], scaled[list(metrics)]
    n_rows, n_columns = raw.shape
    numbers = raw.to_numpy(dtype=float)
    longest = max(len(str(name)) for name in raw.index)
    drawn = axes_for(ax, (0.82 * n_columns + 0.085 * longest + 1.0, 0.34 * n_rows + 1.5))
    colors = np.ma.masked_invalid(-np.clip(scaled.to_numpy(dtype=float), -1.0, 1.0))
    drawn.imshow(colors, cmap=DIVERGING, vmin=-1.6, vmax=1.6, aspect="auto", interpolation="nearest")
    drawn.set_facecolor("#ececec")
    for i, j in np.ndindex(raw.shape):
        value = float(numbers[i, j])
        text = "–" if not np.isfinite(value) else f"{value:.3g}"
        drawn.text(j, i, text, ha="center", va="center", fontsize=8, color="black")  # on light colours in every style
    drawn.set_xticks(range(n_columns), [_head(metric) for metric in raw.columns], rotation=40, ha="left", fontsize=8)
    drawn.set_yticks(range(n_rows), list(map(plain, raw.index)), fontsize=8.5)
    drawn.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    drawn.spines[:].set_visible(False)
    drawn.set_xlabel("colour: 0 = baseline (white), 1 = split-half ceiling (blue), below the baseline red", fontsize=8)
    drawn.set_title(title or "", fontsize=10)
    return finish(drawn, show, save, return_fig, own=ax is None)


def _head(metric: object) -> str:
    """Name of a metric with the direction that is better; a column that is no metric of the table has no arrow."""
    arrow = METRICS[str(metric)].arrow if metric in METRICS else ""
    return f"{plain(metric).replace('_', ' ')} {arrow}".strip()
