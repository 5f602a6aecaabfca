"""Perturbations: their effects on genes, their coefficients, and how near they are to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from cfmvc_scvi._messages import close_matches, shortened, unknown_choice
from cfmvc_scvi.pl._style import (
    DIVERGING,
    EXPRESSION_UNIT,
    FAINT,
    PREDICTED,
    Drawn,
    axes_for,
    finish,
    group_styles,
    ink,
    label_points,
    plain,
    root_figure,
    symmetric_limit,
    tick_step,
    tidy,
)


def effects(
    table: pd.DataFrame | Mapping[str, pd.DataFrame],
    genes: Sequence[str] | None = None,
    *,
    n_genes: int = 40,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Heat map of perturbations x genes.

    Parameters
    ----------
    table
        A result of ``get_perturbation_effect``, a mapping of perturbation to such results, or a DataFrame
        (perturbation x genes) of log fold changes. Of results, a dot marks effects that are ``significant``.
    genes
        Genes to draw; ``None`` takes those with the largest effect of any perturbation.
    n_genes
        Number of genes drawn where ``genes`` is ``None``.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes. Rows and columns are ordered by average-linkage clustering; where there is no room for all names, some of
    them are left out.
    """
    called = None
    if isinstance(table, pd.DataFrame) and {"log_fold_change", "significant"} <= set(table.columns):
        table = {str(table.attrs.get("perturbation", "effect")): table}
    if isinstance(table, Mapping):
        if not table:
            raise ValueError("`table` is empty: give the effects of at least one perturbation.")
        called = pd.DataFrame({name: frame["significant"] for name, frame in table.items()}).T
        table = pd.DataFrame({name: frame["log_fold_change"] for name, frame in table.items()}).T
    _check_frame(table, "perturbation x genes")
    if genes is None:
        strongest = np.argsort(-table.abs().max().to_numpy(), kind="stable")[:n_genes]
        table = table.iloc[:, np.sort(strongest)]
    else:
        missing = [gene for gene in genes if gene not in table]
        if missing or not len(genes):
            raise ValueError(
                f"`genes` {shortened(missing, 5)} are not in the table, which has {shortened(table, 5)}: give at least "
                f"one of these names.{close_matches(missing, table)}"
            )
        table = table[list(genes)]
    table = table.iloc[_leaves(table.to_numpy()), _leaves(table.to_numpy().T)]
    drawn = _heat_map(table, f"log fold change, Δ {EXPRESSION_UNIT}", ax, title)
    if called is not None and table.size <= 4000:
        marks = called.loc[table.index, table.columns].to_numpy(dtype=bool)
        rows, columns = np.nonzero(marks)
        color = np.where(np.abs(table.to_numpy()[marks]) > 0.6 * drawn.images[0].get_clim()[1], "white", "black")
        drawn.scatter(columns, rows, s=3, c=color, lw=0)
    return finish(drawn, show, save, return_fig, own=ax is None)


def coefficients(
    table: pd.DataFrame,
    *,
    labels: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Heat map of the effect coefficients α.

    Parameters
    ----------
    table
        Result of ``get_effect_coefficients``, (perturbation, cell type) x basis.
    labels
        Cell type; ``None`` draws all, in one row for each perturbation where the cell types have the same coefficients.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes. Perturbations are ordered by average-linkage clustering, control is left out: its coefficients are zero.
    """
    if not isinstance(table, pd.DataFrame) or table.index.nlevels != 2:
        raise ValueError("`table` must be the result of `get_effect_coefficients`, (perturbation, cell type) x basis.")
    types = table.index.get_level_values(1)
    if labels is not None:
        if labels not in types:
            raise ValueError(unknown_choice("labels", labels, sorted(set(types))))
        table = table[types == labels].droplevel(1)
    else:
        by_perturbation = table.groupby(level=0, sort=False)
        if ((by_perturbation.max() - by_perturbation.min()) == 0).all(axis=None):
            table = by_perturbation.first()
    table = table[(table != 0).any(axis=1)]
    _check_frame(table, "perturbation x basis, not all zero")
    if table.index.nlevels == 2:
        mean = table.groupby(level=0, sort=False).mean()
        table = table.loc[mean.index[_leaves(mean.to_numpy())]]
        table = table.set_axis([f"{perturbation} | {kind}" for perturbation, kind in table.index])
    else:
        table = table.iloc[_leaves(table.to_numpy())]
    table = table.set_axis([str(name).replace("basis_", "") for name in table.columns], axis=1)
    drawn = _heat_map(table, "coefficient α", ax, title)
    drawn.set_xlabel("basis field")
    drawn.tick_params("x", rotation=0)
    return finish(drawn, show, save, return_fig, own=ax is None)


def perturbation_map(
    table: pd.DataFrame,
    *,
    control: str | None = None,
    groups: Mapping[str, str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Perturbations in two dimensions.

    Parameters
    ----------
    table
        Result of ``get_perturbation_embedding``, perturbation x dims; or a table perturbation x genes of effects.
    control
        Row that is marked as control; ``None`` takes a row of zeros.
    groups
        A group for some or all perturbations, for colours.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes: the two leading singular directions of the table, uncentred, so that control lies at the origin and
    distance from it is strength; the axes say how much of the squared length they hold. Names that would cover another
    name or a point are left out, those of the weakest perturbations first.
    """
    _check_frame(table, "perturbation x dims")
    values = table.to_numpy(dtype=float)
    if control is not None and control not in table.index:
        raise ValueError(
            f"`control` {control!r} is not in the table, which has {shortened(table.index)}."
            f"{close_matches(control, table.index)}"
        )
    is_control = table.index == control if control is not None else (values == 0).all(axis=1)
    left, strength, _ = np.linalg.svd(values, full_matrices=False)
    points = np.zeros((len(values), 2))
    points[:, : min(2, len(strength))] = (left * strength)[:, :2]
    share = np.zeros(2)
    share[: min(2, len(strength))] = (strength**2 / max((strength**2).sum(), 1e-30))[:2]
    drawn = axes_for(ax, (5.6, 5.0))
    size = 30 if len(table) <= 60 else 16
    for level, color, marker, chosen in _groups(table.index, groups, ~is_control):
        drawn.scatter(
            *points[chosen].T,
            s=size,
            color=color,
            marker=marker,
            alpha=0.85,
            lw=0,
            label=None if level is None else plain(level),
        )
    drawn.scatter(
        *points[is_control].T, s=80, marker="P", color=ink(), lw=0, label="control" if is_control.any() else None
    )
    reach = 1.15 * np.abs(points).max() or 1.0
    spread = np.c_[points.min(axis=0), points.max(axis=0)]
    margin = 0.12 * max(np.ptp(spread, axis=1).max(), 0.1 * reach)
    drawn.set(xlim=spread[0] + [-margin, margin], ylim=spread[1] + [-margin, margin])
    drawn.axhline(0, color=FAINT, lw=0.6, zorder=0)
    drawn.axvline(0, color=FAINT, lw=0.6, zorder=0)
    drawn.set(xlabel=f"direction 1 ({share[0]:.0%} of squared length)", ylabel=f"direction 2 ({share[1]:.0%})")
    drawn.set_title(title or "", fontsize=10)
    if groups is not None or is_control.any():
        drawn.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(drawn)
    order = np.argsort(-np.linalg.norm(points, axis=1), kind="stable")
    order = order[~is_control[order]]
    label_points(drawn, *_first(points, order), [str(table.index[i]) for i in order])
    return finish(drawn, show, save, return_fig, own=ax is None)


def _first(points: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates with the points of ``order`` first, and the remaining points after them."""
    rest = np.setdiff1d(np.arange(len(points)), order)
    both = points[np.r_[order, rest]]
    return both[:, 0], both[:, 1]


def _groups(index: pd.Index, groups: Mapping[str, str] | None, rows: np.ndarray):
    """Name, colour, marker and rows of every group; perturbations without a group come last, in grey."""
    if groups is None:
        yield None, PREDICTED, "o", rows
        return
    unknown = [name for name in groups if name not in index]
    if unknown:
        raise ValueError(
            f"`groups` names {shortened(unknown, 5)}, which are not in the table.{close_matches(unknown, index)}"
        )
    of_row = np.array([groups.get(name, "") for name in index])
    levels = sorted(set(of_row[rows]) - {""})
    for level, (color, marker) in zip(levels, group_styles(len(levels)), strict=True):
        yield level, color, marker, rows & (of_row == level)
    if (rows & (of_row == "")).any():
        yield "other", FAINT, "o", rows & (of_row == "")


def _check_frame(table: pd.DataFrame, expected: str) -> None:
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"`table` is a {type(table).__name__}; expected a DataFrame, {expected}.")
    if table.empty:
        raise ValueError(f"`table` has shape {table.shape}; expected {expected}.")
    if not np.isfinite(table.to_numpy(dtype=float)).all():
        raise ValueError("`table` has values that are missing or not finite.")


def _leaves(values: np.ndarray) -> np.ndarray:
    """Order of the rows by average linkage of their Euclidean distances."""
    if len(values) < 3:
        return np.arange(len(values))
    return leaves_list(linkage(pdist(values), method="average", optimal_ordering=len(values) <= 300))


def _heat_map(table: pd.DataFrame, label: str, ax: Axes | None, title: str | None) -> Axes:
    """Draw signed values as colours, and the names of rows and columns that have room."""
    n_rows, n_columns = table.shape
    width = float(np.clip(0.17 * n_columns + 2.6, 4.5, 16.0))
    longest = max(len(str(name)) for name in table.columns)
    height = float(np.clip(0.17 * n_rows + 1.6 + 0.05 * longest, 2.8, 18.0))
    drawn = axes_for(ax, (width, height))
    values = table.to_numpy(dtype=float)
    limit = symmetric_limit(values)
    image = drawn.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    bar = root_figure(drawn).colorbar(image, ax=drawn, shrink=min(1.0, 2.5 / height + 0.2))
    bar.set_label(label, fontsize=8 if height > 4 else 7)
    figure = root_figure(drawn)
    figure.draw_without_rendering()
    frame = drawn.get_window_extent()
    for which, names, inches in (
        ("x", table.columns, frame.width / figure.dpi),
        ("y", table.index, frame.height / figure.dpi),
    ):
        places = np.arange(0, len(names), tick_step(len(names), inches))
        setter = drawn.set_xticks if which == "x" else drawn.set_yticks
        setter(places, [plain(names[i]) for i in places.tolist()], fontsize=8, rotation=90 if which == "x" else 0)
    drawn.set_title(title or "", fontsize=10)
    drawn.spines[:].set_visible(False)
    return drawn
