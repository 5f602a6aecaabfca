"""Colours, figures and labels that all plots share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Annotation

#: Colours of Okabe and Ito (2008), which can be told apart with every common colour vision.
CONTROL, PREDICTED, REAL = "#8a8f98", "#0072B2", "#D55E00"
COLORS: Final = {"control": CONTROL, "predicted": PREDICTED, "real": REAL}
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = ("o", "^", "s", "D", "v", "P")
FAINT = "#c4c8ce"
#: Colour maps: signed values around zero, and values from zero up.
DIVERGING, SEQUENTIAL = "RdBu_r", "cividis"
EXPRESSION_UNIT = "log1p CP10k"
SMALL = 8.0
#: Axes or Figure that was drawn on; ``None`` where it was shown.
Drawn: TypeAlias = Any

_WINDOWLESS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


def axes_for(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure."""
    if ax is not None:
        if not isinstance(ax, Axes):
            raise TypeError(f"`ax` is a {type(ax).__name__}; this plot draws on one matplotlib Axes.")
        return ax
    return plt.subplots(figsize=figsize, layout="constrained")[1]


def plain(name: object) -> str:
    """A name as matplotlib shall write it: a dollar sign in it begins no formula."""
    return str(name).replace("$", r"\$")


def ink() -> str:
    """Colour of lines and signs that must be told from the background, in light and in dark styles."""
    return str(mpl.rcParams["text.color"])


def background() -> str:
    """Colour behind what is drawn."""
    return str(mpl.rcParams["axes.facecolor"])


def tidy(ax: Axes) -> None:
    """Hide the lines of the frame that carry no scale."""
    ax.spines[["top", "right"]].set_visible(False)


def finish(
    drawn: Axes | Figure, show: bool | None, save: str | Path | None, return_fig: bool = False, *, own: bool = True
) -> Drawn:
    """Save and show what was drawn; what the plot returns.

    In a notebook that draws below its cells, an open figure is drawn there once in any case, and a returned one again
    where it is the last thing of a cell: so what is shown is not returned, and what ``return_fig`` returns is closed.

    Parameters
    ----------
    drawn
        What was drawn on.
    show, save, return_fig
        As :mod:`cfmvc_scvi.pl` says.
    own
        Whether the figure was made here.
    """
    figure = drawn if isinstance(drawn, Figure) else root_figure(drawn)
    if save is not None:
        figure.savefig(save, dpi=150, bbox_inches="tight")
    backend = mpl.get_backend().lower()
    inline = "inline" in backend
    if return_fig:
        if own and inline:
            plt.close(figure)
        return figure
    if show is None:
        show = own and (inline or (save is None and backend not in _WINDOWLESS))
    if show:
        plt.show()
        return None
    return drawn


def root_figure(ax: Axes) -> Figure:
    """The figure that an axes stands in, past subfigures."""
    figure = ax.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure


def symmetric_limit(values: np.ndarray, quantile: float = 0.995) -> float:
    """Reach of a colour scale around zero that a few extreme values do not stretch."""
    size = np.abs(values[np.isfinite(values)])
    return float(np.quantile(size, quantile)) or float(size.max(initial=0.0)) or 1.0


def group_styles(n: int) -> list[tuple[str, str]]:
    """Colour and marker of each of ``n`` groups; after all colours the next marker begins."""
    return [(PALETTE[i % len(PALETTE)], _MARKERS[i // len(PALETTE) % len(_MARKERS)]) for i in range(n)]


def point_size(n: int) -> float:
    """Area of a marker, smaller for more points."""
    return float(np.clip(6000.0 / max(n, 1), 3.0, 30.0))


def label_beside(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> list[Annotation]:
    """Names in two columns at the sides, each tied to its point by a line.

    Made for points along the diagonal, which leave the upper left and the lower right free: the upper half of the
    points is named at the left, the lower half at the right. Names do not overlap.
    """
    if not len(names):
        return []
    order = np.argsort(-y, kind="stable")
    upper, lower = order[: -(-len(order) // 2)], order[-(-len(order) // 2) :]
    line = 1.35 * SMALL / 72 / _height_in_inches(ax)
    capacity = int(0.9 / line)
    if len(upper) > capacity:
        raise ValueError(f"{len(names)} names do not fit beside this plot: at most {2 * capacity}, or a larger figure.")
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    placed = []
    for chosen, place, align, top in ((upper, 0.02, "left", 0.97), (lower, 0.98, "right", None)):
        wanted = to_axes(np.column_stack([x[chosen], y[chosen]]))[:, 1]
        bottom = 0.03 + line * (len(chosen) - 1)
        heights = _spread(np.clip(wanted, 0.03, 0.97), line, top if top is not None else max(0.5, bottom))
        for i, height in zip(chosen, heights, strict=True):
            placed.append(
                ax.annotate(
                    plain(names[i]),
                    (x[i], y[i]),
                    xytext=(place, height),
                    textcoords="axes fraction",
                    ha=align,
                    va="center",
                    fontsize=SMALL,
                    arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.7, "shrinkA": 1, "shrinkB": 2},
                )
            )
    return placed


def _spread(wanted: np.ndarray, line: float, top: float) -> np.ndarray:
    """Heights near the wanted ones, in falling order: at least ``line`` apart, between 0.03 and ``top``."""
    heights = np.empty(len(wanted))
    ceiling = top
    for i, height in enumerate(wanted):
        heights[i] = min(height, ceiling)
        ceiling = heights[i] - line
    floor = 0.03
    for i in reversed(range(len(wanted))):
        heights[i] = max(heights[i], floor)
        floor = heights[i] + line
    return heights


def label_points(ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> list[Annotation]:
    """Names close to their points, in the order given; one that would cover an earlier name or a point is left out."""
    figure = root_figure(ax)
    figure.draw_without_rendering()
    get_renderer = getattr(figure.canvas, "get_renderer", None)
    renderer = None if get_renderer is None else get_renderer()
    points = ax.transData.transform(np.column_stack([x, y]))
    frame = ax.get_window_extent(renderer)
    taken, placed = [], []
    margin = 2.5 / 72 * figure.dpi
    for i, name in enumerate(names):
        for dx, dy, ha, va in _SIDES:
            text = ax.annotate(
                plain(name),
                (x[i], y[i]),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize=SMALL,
                clip_on=False,
            )
            box = text.get_window_extent(renderer)
            around = box.padded(margin)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken) and not around.count_contains(points):
                taken.append(box)
                placed.append(text)
                break
            text.remove()
    return placed


#: Offset in points and alignment of a name, in the order in which the places around a point are tried.
_SIDES = (
    (5, 0, "left", "center"),
    (-5, 0, "right", "center"),
    (0, 5, "center", "bottom"),
    (0, -5, "center", "top"),
    (4, 4, "left", "bottom"),
    (-4, 4, "right", "bottom"),
    (4, -4, "left", "top"),
    (-4, -4, "right", "top"),
)


def _height_in_inches(ax: Axes) -> float:
    figure = root_figure(ax)
    figure.draw_without_rendering()  # settles the constrained layout and the aspect
    return ax.get_window_extent().height / figure.dpi


def tick_step(n: int, inches: float) -> int:
    """Step between the names to write, of ``n`` in a row, so that they do not overlap on this length."""
    return max(1, int(np.ceil(n * 1.25 * SMALL / 72 / max(inches, 0.1))))
