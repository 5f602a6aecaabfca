"""Predicted against real expression: means, changes, distributions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from cfmvc_scvi._types import obs_of
from cfmvc_scvi.metrics import pearson_delta, r2_mean, top_de_genes
from cfmvc_scvi.pl._read_cells import Cells, PlottedCells, read_cells
from cfmvc_scvi.pl._style import (
    COLORS,
    CONTROL,
    EXPRESSION_UNIT,
    FAINT,
    PREDICTED,
    Drawn,
    axes_for,
    finish,
    label_beside,
    plain,
    tidy,
)


def mean_expression(
    predicted: Cells,
    real: Cells,
    control: Cells,
    *,
    n_de: int = 100,
    n_names: int = 10,
    library_key: str | None = None,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Predicted against real mean expression of every gene, with R² of all and of the differentially expressed genes.

    Parameters
    ----------
    predicted, real, control
        Cells of one condition: AnnData of counts (as predictions are), or arrays of log1p CP10k, cells x genes. Genes
        are matched by name to the prediction; several conditions in one of them are refused.
    n_de
        Genes with the largest ``|t|`` of real against control that count as differentially expressed
        (:func:`~cfmvc_scvi.metrics.top_de_genes`).
    n_names
        Number of differentially expressed genes whose names are written.
    library_key
        Column of ``obs`` with library sizes. ``None`` takes the row sum; for a predicted cell, the row sum of the
        control cell that it was made from.
    layer
        Layer of ``real`` and ``control`` that holds their counts. ``None`` takes the one the model was set up with,
        where they have it, else ``X``. Values that are no counts are refused.
    gene_names
        Names of the genes, for arrays.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes. Lines mark equality; R² is of the means (:func:`~cfmvc_scvi.metrics.r2_mean`). The title says where the
    condition was trained on for all cells, by ``obs["support"]`` of the prediction and that of batch and sample.
    """
    cells = read_cells(predicted, control, real, library_key=library_key, gene_names=gene_names, layer=layer)
    de = top_de_genes(cells.values["real"], cells.values["control"], n_de)
    x, y = cells.means["real"], cells.means["predicted"]
    drawn = axes_for(ax, (4.8, 4.8))
    every = r2_mean(cells.values["predicted"], cells.values["real"])
    top = r2_mean(cells.values["predicted"], cells.values["real"], genes=de) if len(de) > 1 else np.nan
    reach = 1.05 * max(x.max(), y.max(), 1e-3)
    drawn.set(xlim=(-0.02 * reach, reach), ylim=(-0.02 * reach, reach))
    _scatter(drawn, cells, x, y, de, n_names)
    drawn.set(xlabel=f"real mean, {EXPRESSION_UNIT}", ylabel=f"predicted mean, {EXPRESSION_UNIT}")
    head = f"R² {every:.3f} all genes, {top:.3f} top {len(de)} DE{_trained_on(predicted)}"
    drawn.set_title(head if title is None else f"{title}\n{head}", fontsize=10)
    return finish(drawn, show, save, return_fig, own=ax is None)


def delta(
    predicted: Cells,
    real: Cells,
    control: Cells,
    *,
    n_de: int = 100,
    n_names: int = 10,
    library_key: str | None = None,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Predicted against real change of every gene's mean from the real control, with Pearson-Δ.

    The parameters are those of :func:`mean_expression`.

    Returns
    -------
    The axes. Pearson-Δ is the correlation over genes (:func:`~cfmvc_scvi.metrics.pearson_delta`).
    """
    cells = read_cells(predicted, control, real, library_key=library_key, gene_names=gene_names, layer=layer)
    values = cells.values
    de = top_de_genes(values["real"], values["control"], n_de)
    x = cells.means["real"] - cells.means["control"]
    y = cells.means["predicted"] - cells.means["control"]
    drawn = axes_for(ax, (4.8, 4.8))
    every = pearson_delta(values["predicted"], values["real"], values["control"])
    top = pearson_delta(values["predicted"], values["real"], values["control"], genes=de) if len(de) > 1 else np.nan
    low, high = min(x.min(), y.min(), -1e-3), max(x.max(), y.max(), 1e-3)
    limits = low - 0.06 * (high - low), high + 0.06 * (high - low)
    drawn.set(xlim=limits, ylim=limits)
    drawn.axhline(0, color=FAINT, lw=0.6, zorder=0)
    drawn.axvline(0, color=FAINT, lw=0.6, zorder=0)
    _scatter(drawn, cells, x, y, de, n_names)
    drawn.set(xlabel=f"real change, Δ {EXPRESSION_UNIT}", ylabel=f"predicted change, Δ {EXPRESSION_UNIT}")
    head = f"Pearson-Δ {every:.3f} all genes, {top:.3f} top {len(de)} DE{_trained_on(predicted)}"
    drawn.set_title(head if title is None else f"{title}\n{head}", fontsize=10)
    return finish(drawn, show, save, return_fig, own=ax is None)


def _trained_on(predicted: Cells) -> str:
    """What the title adds where the condition was trained on: the score is then not that of a held-out one."""
    if not isinstance(predicted, AnnData) or "support" not in predicted.obs or not predicted.n_obs:
        return ""
    obs = obs_of(predicted)
    seen = [(obs[name] == "seen").to_numpy() for name in ("support", "support_batch", "support_sample") if name in obs]
    return "\nof a condition that was trained on" if np.logical_and.reduce(seen).all() else ""


def _scatter(ax: Axes, cells: PlottedCells, x: np.ndarray, y: np.ndarray, de: np.ndarray, n_names: int) -> None:
    """Draw the line of equality and all genes: genes of ``de`` in colour, the first ``n_names`` of them with names."""
    if n_names < 0:
        raise ValueError(f"`n_names` is {n_names}; it must not be negative.")
    others = np.setdiff1d(np.arange(len(x)), de)
    ax.set_aspect("equal")
    ax.axline((0, 0), slope=1, color=FAINT, lw=1, zorder=0)
    ax.scatter(x[others], y[others], s=9, color=CONTROL, alpha=0.5, lw=0, label="other genes", rasterized=True)
    ax.scatter(x[de], y[de], s=13, color=PREDICTED, alpha=0.8, lw=0, label=f"top {len(de)} DE genes")
    named = de[:n_names]
    label_beside(ax, x[named], y[named], [str(name) for name in cells.genes[named]])
    tidy(ax)


def gene_distributions(
    predicted: Cells,
    control: Cells,
    real: Cells | None = None,
    genes: Sequence[str] | None = None,
    *,
    n_genes: int = 6,
    library_key: str | None = None,
    layer: str | None = None,
    gene_names: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Distribution of genes over control, predicted and real cells.

    Parameters
    ----------
    predicted, control, real
        As for :func:`mean_expression`; without real cells there are two violins for each gene.
    genes
        Names of the genes; ``None`` takes the genes that change most, by ``|t|`` of real cells (without real cells:
        predicted cells) against control.
    n_genes
        Number of genes drawn where ``genes`` is ``None``.
    library_key, layer, gene_names, title, ax, show, save, return_fig
        As for :func:`mean_expression`.

    Returns
    -------
    The axes: a violin for each gene and population, a dot at the mean.
    """
    cells = read_cells(predicted, control, real, library_key=library_key, gene_names=gene_names, layer=layer)
    target = cells.values.get("real", cells.values["predicted"])
    if genes is None:
        chosen = top_de_genes(target, cells.values["control"], n_genes)
    else:
        chosen = cells.positions(genes)
    drawn = axes_for(ax, (max(4.0, 1.3 * len(chosen) + 1.0), 3.6))
    width = 0.8 / len(cells.values)
    for i, (name, values) in enumerate(cells.values.items()):
        places = np.arange(len(chosen)) + width * (i - (len(cells.values) - 1) / 2)
        _violins(drawn, values[:, chosen], places, 0.92 * width, COLORS[name])
        drawn.scatter(
            places, values[:, chosen].mean(axis=0), s=24, color=COLORS[name], edgecolor="white", zorder=3, label=name
        )
    drawn.set_xticks(np.arange(len(chosen)), [plain(gene) for gene in cells.genes[chosen]])
    if len(chosen) > 8:
        drawn.tick_params("x", rotation=60)
    drawn.set(ylabel=EXPRESSION_UNIT, xlim=(-0.6, len(chosen) - 0.4), ylim=(0, None))
    drawn.set_title(title or "", fontsize=10)
    drawn.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), handletextpad=0.1)
    if title:
        drawn.set_title(title, fontsize=10, pad=24)
    tidy(drawn)
    return finish(drawn, show, save, return_fig, own=ax is None)


def _violins(ax: Axes, values: np.ndarray, places: np.ndarray, width: float, color: str) -> None:
    """One violin per column; a column that does not vary is a line at its value."""
    varies = (values.min(axis=0) < values.max(axis=0)) & (len(values) > 1)
    if varies.any():
        columns = [values[:, j] for j in np.flatnonzero(varies)]
        parts = ax.violinplot(columns, places[varies], widths=width, showextrema=False)
        for body in cast("list[Artist]", parts["bodies"]):
            body.set(facecolor=color, alpha=0.55, edgecolor="none")
    still = np.flatnonzero(~varies)
    ax.hlines(values[0, still], places[still] - width / 2, places[still] + width / 2, color=color, lw=2)
