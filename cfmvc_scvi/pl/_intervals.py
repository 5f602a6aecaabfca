"""Effects on genes with their uncertainty: volcano, and forest with intervals and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from cfmvc_scvi._messages import close_matches, shortened
from cfmvc_scvi.pl._style import (
    CONTROL,
    EXPRESSION_UNIT,
    FAINT,
    PALETTE,
    Drawn,
    axes_for,
    background,
    finish,
    ink,
    label_points,
    plain,
    point_size,
    tidy,
)

_NEEDED = ("log_fold_change", "lower", "upper", "lfsr", "significant")
#: False sign rates below this are drawn at it.
_LEAST = 1e-12
_RISES, _FALLS = PALETTE[1], PALETTE[0]
_UNIT = f"log fold change, Δ {EXPRESSION_UNIT}"
#: Genes beyond which a forest is no longer read.
_MOST_GENES = 100


def volcano(
    table: pd.DataFrame,
    *,
    n_names: int = 12,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Effect of a perturbation on every gene against how sure its sign is.

    Parameters
    ----------
    table
        A result of ``get_perturbation_effect``.
    n_names
        Genes with names, the largest ``significant`` effects first; a name that would cover another one or a point is
        left out.
    title
        Title of the axes; ``None`` is the perturbation and the cell types.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes: log fold change against -log10 of the local false sign rate, at most 12. The dashed line is the rate up to
    which genes are called ``significant``.

    Raises
    ------
    ValueError
        For another table, or a negative number of names.
    """
    _check_effects(table)
    if n_names < 0:
        raise ValueError(f"`n_names` is {n_names}; it must not be negative.")
    effect = table["log_fold_change"].to_numpy(dtype=float)
    sure = -np.log10(np.clip(table["lfsr"].to_numpy(dtype=float), _LEAST, 1.0))
    called = table["significant"].to_numpy(dtype=bool)
    drawn = axes_for(ax, (5.4, 4.6))
    size = point_size(len(table))
    groups = (
        ("other genes", ~called, CONTROL, 0.4),
        ("falls", called & (effect < 0), _FALLS, 0.85),
        ("rises", called & (effect >= 0), _RISES, 0.85),
    )
    for name, rows, color, alpha in groups:
        label = f"{name} ({rows.sum()})"
        drawn.scatter(effect[rows], sure[rows], s=size, color=color, alpha=alpha, lw=0, label=label, rasterized=True)
    fdr = table.attrs.get("fdr")
    if fdr is not None:
        drawn.axhline(-np.log10(fdr), color=FAINT, lw=1, ls="--", zorder=0)
    drawn.axvline(0, color=FAINT, lw=0.8, zorder=0)
    reach = 1.15 * max(np.abs(effect).max(), 1e-3)
    drawn.set(xlim=(-reach, reach), ylim=(-0.02 * sure.max(), 1.1 * max(sure.max(), 0.5)))
    drawn.set(xlabel=_UNIT, ylabel="−log10 of the local false sign rate")
    drawn.set_title(_title(table) if title is None else title, fontsize=10)
    legend = drawn.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for handle in legend.legend_handles:
        cast(Artist, handle).set(sizes=[24], alpha=1)
    tidy(drawn)
    order = np.argsort(-np.abs(effect) - 1e6 * called, kind="stable")
    names = [str(name) for name in table.index[order[: min(n_names, int(called.sum()))]]]
    label_points(drawn, effect[order], sure[order], names)
    return finish(drawn, show, save, return_fig, own=ax is None)


def forest(
    table: pd.DataFrame | Mapping[str, pd.DataFrame],
    genes: Sequence[str] | None = None,
    *,
    samples: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    n_genes: int = 15,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Effects on some genes with their intervals, and the samples behind them as points.

    Parameters
    ----------
    table
        A result of ``get_perturbation_effect``, or several by name, such as cell types or perturbations.
    genes
        Genes from top to bottom; ``None`` takes the largest effects of any table, ``significant`` ones first.
    samples
        Result of ``get_sample_effects``, or several by the names of ``table``: the change measured in every donor,
        a point each.
    n_genes
        Number of genes where ``genes`` is ``None``.
    title
        Title of the axes; ``None`` is the perturbation and the cell types of a single table.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes: estimates with intervals, filled where they are ``significant``.

    Raises
    ------
    ValueError
        For other tables, and genes or names that are not there.
    """
    tables = {"": table} if isinstance(table, pd.DataFrame) else dict(table)
    if not tables:
        raise ValueError("`table` is empty: give the effects of at least one perturbation or cell type.")
    for one in tables.values():
        _check_effects(one)
    points = {"": samples} if isinstance(samples, pd.DataFrame) and "" in tables else samples
    points = {} if points is None else points
    if not isinstance(points, Mapping) or not set(points) <= set(tables):
        raise ValueError(
            f"`samples` must be the result of `get_sample_effects` for one table, or a mapping with the names of "
            f"`table`, {shortened(tables)}."
        )
    chosen = _strongest(tables, n_genes) if genes is None else _asked(tables, genes)
    drawn = axes_for(ax, (5.2, float(np.clip(len(chosen) * (0.16 + 0.09 * len(tables)) + 1.2, 2.2, 16.0))))
    rows = np.arange(len(chosen))
    step = 0.7 / len(tables)
    drawn.axvline(0, color=FAINT, lw=0.8, zorder=0)
    for i, (name, one) in enumerate(tables.items()):
        color = PALETTE[i % len(PALETTE)]
        y = rows + step * (i - (len(tables) - 1) / 2)
        part = one.loc[chosen]
        effect = part["log_fold_change"].to_numpy(dtype=float)
        ends = np.abs(part[["lower", "upper"]].to_numpy(dtype=float).T - effect)
        label = plain(name) if name else f"estimate, {one.attrs.get('level', 0.95):.0%} interval"
        drawn.errorbar(effect, y, xerr=ends, fmt="none", ecolor=color, elinewidth=1.6, zorder=2)
        fills = np.where(part["significant"].to_numpy(dtype=bool), color, background())
        drawn.scatter(effect, y, s=26, c=fills, edgecolors=color, lw=1.2, zorder=3)
        drawn.scatter([], [], s=26, color=color, label=label)
        if name in points:
            _draw_samples(drawn, points[name], chosen, y + 0.34 * step)
    if points:
        drawn.scatter([], [], s=10, color=ink(), alpha=0.5, lw=0, label="a sample")
    if not all(one.loc[chosen, "significant"].all() for one in tables.values()):
        drawn.scatter([], [], s=26, facecolors="none", edgecolors=ink(), lw=1.2, label="sign not sure")
    drawn.set_yticks(rows, [plain(gene) for gene in chosen], fontsize=8)
    drawn.set(xlabel=_UNIT, ylim=(len(chosen) - 0.4, -0.6))
    title = _title(tables[""]) if title is None and "" in tables else title
    drawn.set_title(title or "", fontsize=10)
    drawn.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    tidy(drawn)
    return finish(drawn, show, save, return_fig, own=ax is None)


def _draw_samples(ax: Axes, samples: pd.DataFrame, genes: list[str], y: np.ndarray) -> None:
    missing = [gene for gene in genes if gene not in samples.columns]
    if missing:
        raise ValueError(f"`samples` has no genes {shortened(missing, 5)}: give the result of `get_sample_effects`.")
    values = samples[genes].to_numpy(dtype=float)
    places = np.broadcast_to(y, values.shape)
    ax.scatter(values, places, s=10, color=ink(), alpha=0.5, lw=0, zorder=1)


def _strongest(tables: Mapping[str, pd.DataFrame], n: int) -> list[str]:
    """Genes with the largest effect of any table, called ones first, from the highest effect to the lowest."""
    if n < 1:
        raise ValueError(f"`n_genes` is {n}; draw at least one gene.")
    effects = pd.DataFrame({name: one["log_fold_change"] for name, one in tables.items()})
    called = pd.DataFrame({name: one["significant"] for name, one in tables.items()}).any(axis=1)
    rank = effects.abs().max(axis=1) + 1e6 * called
    chosen = rank.sort_values(ascending=False, kind="stable").index[:n]
    return list(effects.loc[chosen].mean(axis=1).sort_values(ascending=False, kind="stable").index)


def _asked(tables: Mapping[str, pd.DataFrame], genes: Sequence[str]) -> list[str]:
    asked = [genes] if isinstance(genes, str) else list(genes)
    for one in tables.values():
        missing = [gene for gene in asked if gene not in one.index]
        if missing or not asked:
            raise ValueError(
                f"`genes` {shortened(missing, 5)} are not in the table, which has {shortened(one.index, 5)}: give at "
                f"least one of these names.{close_matches(missing, one.index)}"
            )
    if len(asked) > _MOST_GENES:
        raise ValueError(f"`genes` has {len(asked)} names; at most {_MOST_GENES} can be read in one forest.")
    return asked


def _check_effects(table: object) -> None:
    if not isinstance(table, pd.DataFrame) or not set(_NEEDED) <= set(table.columns) or table.empty:
        raise ValueError(
            f"`table` must be the result of `get_perturbation_effect`, with the columns {list(_NEEDED)}; it is a "
            f"{type(table).__name__}{f' with {shortened(table.columns)}' if isinstance(table, pd.DataFrame) else ''}."
        )


def _title(table: pd.DataFrame) -> str:
    """Perturbation and cell types, as far as the table says them."""
    name, types = table.attrs.get("perturbation"), table.attrs.get("labels", [])
    parts = [str(name)] if name else []
    parts += [", ".join(map(str, types)) if len(types) <= 3 else f"{len(types)} cell types"] if types else []
    return plain(" in ".join(parts))
