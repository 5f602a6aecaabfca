"""Perturbations beside each other: how alike they are, and what pairs do beyond their sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from cfmvc_scvi._messages import shortened
from cfmvc_scvi.pl._style import (
    CONTROL,
    DIVERGING,
    EXPRESSION_UNIT,
    FAINT,
    PALETTE,
    SMALL,
    Drawn,
    axes_for,
    finish,
    label_points,
    plain,
    point_size,
    root_figure,
    tick_step,
    tidy,
)


def similarity(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Heat map of how alike perturbations are, those that are alike beside each other.

    Parameters
    ----------
    table
        Square result of ``get_perturbation_similarity``.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes. The order is that of average-linkage clustering of 1 - cosine; where there is no room for all names, some
    are left out.
    """
    if not isinstance(table, pd.DataFrame) or list(table.index) != list(table.columns) or not len(table):
        raise ValueError("`table` must be the square result of `get_perturbation_similarity`, not its pairs.")
    values = table.to_numpy(dtype=float)
    if not np.isfinite(values).all():
        empty = table.index[np.flatnonzero(np.isnan(values.diagonal()))]
        raise ValueError(f"`table` has no cosines of {shortened(empty, 5)}, whose effects are zero: leave them out.")
    order = np.arange(len(table))
    if len(table) > 2:
        apart = squareform(np.clip(1.0 - (values + values.T) / 2, 0.0, 2.0), checks=False)
        order = leaves_list(linkage(apart, method="average", optimal_ordering=len(table) <= 300))
    side = float(np.clip(0.17 * len(table) + 2.0, 3.2, 14.0))
    drawn = axes_for(ax, (side + 1.0, side))
    image = drawn.imshow(values[np.ix_(order, order)], cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    bar = root_figure(drawn).colorbar(image, ax=drawn, shrink=0.6)
    bar.set_label("cosine of effects", fontsize=SMALL)
    places = np.arange(0, len(table), tick_step(len(table), side - 1.6))
    names = [plain(table.index[order[i]]) for i in places]
    drawn.set_xticks(places, names, fontsize=8, rotation=90)
    drawn.set_yticks(places, names, fontsize=8)
    drawn.set_title(title or "", fontsize=10)
    drawn.spines[:].set_visible(False)
    return finish(drawn, show, save, return_fig, own=ax is None)


def interaction(
    table: pd.DataFrame,
    *,
    n_names: int = 12,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Effect of perturbations given together against the sum of their effects.

    Parameters
    ----------
    table
        Result of ``get_interactions``.
    n_names
        Genes with names: the ``significant`` interactions, largest first.
    title
        Title of the axes; ``None`` is the combination.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes: genes on the line are additive; coloured are those whose interaction has a sure sign, and crosses are what
    was measured of these.
    """
    needed = ["observed", "additive", "predicted", "interaction", "significant"]
    if not isinstance(table, pd.DataFrame) or not set(needed) <= set(table.columns) or table.empty:
        raise ValueError(f"`table` must be the result of `get_interactions`, with the columns {needed}.")
    drawn = axes_for(ax, (4.8, 4.6))
    called = table["significant"].to_numpy(dtype=bool)
    x, y = table["additive"].to_numpy(dtype=float), table["predicted"].to_numpy(dtype=float)
    measured = table["observed"].to_numpy(dtype=float)
    colors = np.where(table["interaction"] > 0, PALETTE[1], PALETTE[0])
    drawn.axline((0, 0), slope=1, color=FAINT, lw=0.8, zorder=0)
    drawn.scatter(
        x[~called], y[~called], s=point_size(len(x)), color=CONTROL, alpha=0.5, lw=0, label="additive or unsure"
    )
    for color, name in ((PALETTE[1], "more than the sum"), (PALETTE[0], "less than the sum")):
        here = called & (colors == color)
        drawn.scatter(
            x[here], y[here], s=1.5 * point_size(len(x)), color=color, lw=0, label=name if here.any() else None
        )
    if np.isfinite(measured[called]).any():
        drawn.scatter(x[called], measured[called], s=14, marker="x", c=colors[called], lw=0.7, label="measured")
    members = [plain(name) for name in table.attrs.get("members", [])]
    unit = f"Δ {EXPRESSION_UNIT}"
    drawn.set(xlabel=f"sum of {' and '.join(members) or 'members'}, {unit}", ylabel=f"together, {unit}")
    drawn.set_title(plain(table.attrs.get("combination", "")) if title is None else title, fontsize=10)
    drawn.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(drawn)
    reach = np.where(called, np.abs(table["interaction"].to_numpy(dtype=float)), -1.0)
    order = np.argsort(-reach, kind="stable")
    named = [str(table.index[i]) for i in order[: min(n_names, int(called.sum()))]]
    label_points(drawn, x[order], y[order], named)
    return finish(drawn, show, save, return_fig, own=ax is None)
