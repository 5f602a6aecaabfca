"""Cells in two dimensions: populations on an embedding, velocities, genes in tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from sklearn.neighbors import NearestNeighbors

from cfmvc_scvi._messages import shortened, unknown_choice
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.metrics import fit_pcs
from cfmvc_scvi.pl._read_cells import Cells, read_cells
from cfmvc_scvi.pl._style import (
    COLORS,
    CONTROL,
    DIVERGING,
    EXPRESSION_UNIT,
    SEQUENTIAL,
    Drawn,
    axes_for,
    finish,
    group_styles,
    ink,
    plain,
    point_size,
    symmetric_limit,
    tidy,
)


def embedding(
    predicted: Cells,
    control: Cells,
    real: Cells | None = None,
    *,
    method: Literal["pca", "umap"] = "pca",
    use_rep: str | None = None,
    n_pcs: int = 30,
    max_cells: int = 2000,
    seed: int = 0,
    library_key: str | None = None,
    layer: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Control, predicted and real cells together in two dimensions; a cross marks each mean.

    Parameters
    ----------
    predicted, control, real
        AnnData of counts, or arrays of log1p CP10k, cells x genes.
    method
        ``"pca"``: the principal component on which the means of control and real cells (without real cells:
        predicted cells) differ most, and of the rest the component with the largest variance. ``"umap"``: UMAP of
        the components, from scanpy.
    use_rep
        Key of ``obsm`` in every given AnnData, such as ``"X_cfmvc"``, to draw in place of expression.
    n_pcs
        Principal components, fitted on control and real cells alone: the prediction is projected.
    max_cells
        Cells drawn of each population, chosen with ``seed``.
    seed
        Seed of the choice of cells and of UMAP.
    library_key, layer, title
        As for :func:`mean_expression`.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes.
    """
    if method not in ("pca", "umap"):
        raise ValueError(unknown_choice("method", method, ("pca", "umap")))
    values = _representation(predicted, control, real, use_rep, library_key, layer)
    target = "real" if "real" in values else "predicted"
    reference = [values["control"], values[target]]
    pcs = fit_pcs(reference, min(n_pcs, sum(map(len, reference)) - 1, values["control"].shape[1]))
    rng = np.random.default_rng(seed)
    points = {name: np.asarray(pcs.transform(_few(x, max_cells, rng))) for name, x in values.items()}
    if method == "pca":
        points, names = _two_components(points, target)
    else:
        points, names = _umap(points, seed), ("UMAP 1", "UMAP 2")
    drawn = axes_for(ax, (4.8, 4.4))
    size = point_size(sum(len(xy) for xy in points.values()))
    for name, xy in points.items():
        drawn.scatter(*xy.T, s=size, color=COLORS[name], alpha=0.5, lw=0, label=name, rasterized=True)
    for name, xy in points.items():
        drawn.scatter(*xy.mean(axis=0), s=150, marker="X", color=COLORS[name], edgecolor="white", lw=1.4, zorder=3)
    drawn.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    legend = drawn.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.1)
    for handle in legend.legend_handles:
        cast(Artist, handle).set(sizes=[30], alpha=1)
    if title:
        drawn.set_title(title, fontsize=10, pad=24)
    tidy(drawn)
    return finish(drawn, show, save, return_fig, own=ax is None)


def _representation(
    predicted: Cells,
    control: Cells,
    real: Cells | None,
    use_rep: str | None,
    library_key: str | None,
    layer: str | None,
) -> dict[str, np.ndarray]:
    if use_rep is None:
        return read_cells(predicted, control, real, library_key=library_key, layer=layer).values
    values = {}
    for name, cells in (("control", control), ("predicted", predicted), ("real", real)):
        if cells is None:
            continue
        if not isinstance(cells, AnnData) or use_rep not in cells.obsm:
            there = shortened(cells.obsm) if isinstance(cells, AnnData) else "no obsm, as it is an array"
            raise KeyError(f"`use_rep` {use_rep!r} is not in the obsm of `{name}`. There is: {there}.")
        values[name] = np.asarray(cells.obsm[use_rep], dtype=float)
    widths = {name: x.shape[1] for name, x in values.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"obsm[{use_rep!r}] has different dimensions: {widths}.")
    return values


def _few(x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return x if len(x) <= n else x[np.sort(rng.choice(len(x), n, replace=False))]


def _two_components(points: dict[str, np.ndarray], target: str) -> tuple[dict[str, np.ndarray], tuple[str, str]]:
    """Coordinates on the component that separates control and target most, and on the largest of the rest."""
    difference = points[target].mean(axis=0) - points["control"].mean(axis=0)
    x = int(np.argmax(np.abs(difference)))
    y = (1 if x == 0 else 0) if len(difference) > 1 else x
    # The sign of a component is arbitrary: target shall lie to the right of control, and above it.
    sign = np.where(difference[[x, y]] < 0, -1.0, 1.0)
    return {name: z[:, [x, y]] * sign for name, z in points.items()}, (f"PC {x + 1}", f"PC {y + 1}")


def _umap(points: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    import scanpy as sc

    together = AnnData(np.concatenate(list(points.values())).astype(np.float32))
    sc.pp.neighbors(together, n_neighbors=min(15, together.n_obs - 1), use_rep="X", random_state=seed)
    sc.tl.umap(together, random_state=seed)
    ends = np.cumsum([len(x) for x in points.values()])[:-1]
    return dict(zip(points, np.split(together.obsm["X_umap"], ends), strict=True))


def velocity(
    latent: np.ndarray,
    velocity: np.ndarray,
    points: np.ndarray | None = None,
    *,
    groups: Sequence[str] | None = None,
    n_grid: int = 18,
    n_neighbors: int = 30,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Velocity of cells as arrows on an embedding, averaged over a grid.

    Parameters
    ----------
    latent
        Latents, shape (n_cells, n_latent), from ``get_latent_representation``.
    velocity
        Velocities, same shape: a part, or the sum, of what ``get_velocity`` returns.
    points
        Embedding (n_cells, 2), such as a UMAP. ``None`` takes the two leading principal components of the latents, on
        which velocities are projected exactly. On any other embedding a cell's arrow is the mean step to its neighbours
        in the latent space, weighted by the exponential of ten times the cosine between that step and the velocity,
        less the unweighted mean step (after La Manno et al., 2018); it shows a direction, its length has no unit.
    groups
        A name per cell, such as its cell type, for colours.
    n_grid
        Grid points along each axis.
    n_neighbors
        Neighbours of a cell in the latent space.
    title
        Title of the axes.
    ax, show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    The axes. Arrows on principal components are to one scale, given in the legend of the axes.
    """
    latent, velocity = np.asarray(latent, dtype=float), np.asarray(velocity, dtype=float)
    if latent.ndim != 2 or latent.shape != velocity.shape or len(latent) < 3:
        raise ValueError(
            f"`latent` has shape {latent.shape} and `velocity` {velocity.shape}: both must be (n_cells, n_latent), "
            "with at least 3 cells. `get_velocity` returns two arrays: pass one of them, or their sum."
        )
    if points is None:
        pcs = fit_pcs([latent], min(2, latent.shape[1]))
        center = latent.mean(axis=0, keepdims=True)
        xy = np.asarray(pcs.transform(latent))
        arrows = np.asarray(pcs.transform(velocity + center)) - np.asarray(pcs.transform(center))
        arrows = arrows * velocity.any(axis=1, keepdims=True)
        names = ("PC 1 of the latent", "PC 2 of the latent")
    else:
        xy = np.asarray(points, dtype=float)
        if xy.shape != (len(latent), 2):
            raise ValueError(f"`points` has shape {xy.shape}; it must be ({len(latent)}, 2), a point for each cell.")
        arrows = _project(latent, velocity, xy, min(n_neighbors, len(latent) - 1))
        names = ("embedding 1", "embedding 2")
    drawn = axes_for(ax, (5.2, 4.6))
    _background(drawn, xy, groups)
    place, mean = _on_grid(xy, arrows, n_grid)
    reach = np.quantile(np.linalg.norm(mean, axis=1), 0.95) if len(mean) else 0.0
    if reach > 0:
        cell = np.ptp(xy, axis=0).max() / n_grid
        quiver = drawn.quiver(
            *place.T, *mean.T, color=ink(), angles="xy", scale_units="xy", scale=reach / cell, width=0.004, zorder=3
        )
        if points is None:
            drawn.quiverkey(
                quiver, 0.86, 1.03, reach, f"{reach:.2g} latent units", labelpos="W", fontproperties={"size": 8}
            )
    drawn.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    drawn.set_title(title or "", fontsize=10, loc="left")
    tidy(drawn)
    return finish(drawn, show, save, return_fig, own=ax is None)


def _background(ax: Axes, xy: np.ndarray, groups: Sequence[str] | None) -> None:
    """Cells in grey, or by group, with each group's name at its median."""
    size = point_size(len(xy))
    if groups is None:
        ax.scatter(*xy.T, s=size, color=CONTROL, alpha=0.35, lw=0, rasterized=True)
        return
    names = np.asarray(groups).astype(str)
    if len(names) != len(xy):
        raise ValueError(f"`groups` has {len(names)} names for {len(xy)} cells.")
    levels = sorted(set(names))
    for level, (color, marker) in zip(levels, group_styles(len(levels)), strict=True):
        ax.scatter(
            *xy[names == level].T,
            s=size,
            color=color,
            marker=marker,
            alpha=0.5,
            lw=0,
            rasterized=True,
            label=plain(level),
        )
    columns = 1 if len(levels) <= 15 else 2
    legend = ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, ncols=columns)
    for handle in legend.legend_handles:
        cast(Artist, handle).set(sizes=[30], alpha=1)


def _project(latent: np.ndarray, velocity: np.ndarray, xy: np.ndarray, n_neighbors: int) -> np.ndarray:
    near = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(latent).kneighbors(latent, return_distance=False)[:, 1:]
    # Weights of the steps to the neighbours: exp(10 cosine), normalised; less the equal weights, so that velocities
    # without a direction give no arrow where the neighbours lie on one side.
    step = latent[near] - latent[:, None]
    length = np.linalg.norm(step, axis=-1) * np.linalg.norm(velocity, axis=-1)[:, None]
    cosine = np.einsum("nkd,nd->nk", step, velocity) / np.where(length > 0, length, 1.0)
    weights = np.exp(10.0 * cosine)
    weights = weights / weights.sum(axis=1, keepdims=True) - 1.0 / n_neighbors
    arrows = np.einsum("nk,nkd->nd", weights, xy[near] - xy[:, None])
    return arrows * velocity.any(axis=1, keepdims=True)


def _on_grid(xy: np.ndarray, arrows: np.ndarray, n_grid: int, least: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Mean place and arrow of the cells in each square of a grid that holds at least ``least`` of them."""
    low, width = xy.min(axis=0), np.ptp(xy, axis=0).max() / n_grid
    # Cells are counted by the square they fall into; means of places and arrows are sums over it by their number.
    square = np.floor((xy - low) / (width or 1.0)).astype(int)
    _, code, n = np.unique(square, axis=0, return_inverse=True, return_counts=True)
    code = code.ravel()
    sums = [np.bincount(code, weights=column) for column in (*xy.T, *arrows.T)]
    means = np.stack(sums, axis=1)[n >= least] / n[n >= least, None]
    return means[:, :2], means[:, 2:]


def spatial_gene(
    control: AnnData,
    predicted: AnnData,
    gene: str,
    *,
    spatial_key: str = "spatial",
    library_key: str | None = None,
    layer: str | None = None,
    size: float | None = None,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """A gene in tissue: before, as predicted under the perturbation, and the change.

    Parameters
    ----------
    control
        Cells before, with coordinates in ``obsm[spatial_key]``.
    predicted
        Their prediction, matched by ``obs["source_cell"]``; cells that were not predicted are left out.
    gene
        Name of the gene.
    spatial_key
        Key of the coordinates, whose unit is that of the axes.
    library_key, layer
        As for :func:`mean_expression`.
    size
        Area of a marker, in points squared; ``None`` goes by the number of cells.
    title
        Title of the figure.
    show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    Figure with three axes; the first two share a colour scale, the third is centred at no change.
    """
    if spatial_key not in control.obsm:
        raise KeyError(f"`spatial_key` {spatial_key!r} is not in control.obsm. There is: {shortened(control.obsm)}.")
    if "source_cell" not in predicted.obs:
        raise ValueError("`predicted` has no obs['source_cell']: pass a result of `predict_perturbation`.")
    rows = control.obs_names.get_indexer(pd.Index(obs_of(predicted)["source_cell"].astype(str)))
    if (rows < 0).any():
        raise ValueError(f"{int((rows < 0).sum())} predicted cells were made from cells that are not in `control`.")
    if len(set(rows)) < len(rows):
        raise ValueError("`predicted` has several rows for a cell: give one condition, and one sample.")
    cells = read_cells(predicted, control, library_key=library_key, layer=layer)
    [column] = cells.positions([gene])
    before, after = cells.values["control"][rows, column], cells.values["predicted"][:, column]
    xy = np.asarray(control.obsm[spatial_key], dtype=float)[rows, :2]
    width, height = np.maximum(np.ptp(xy, axis=0), 1e-9)
    # As high as the tissue at its width, so that the colour bars are as high as the maps.
    size_of = (12.5, float(np.clip(3.2 * height / width, 1.6, 4.4)) + 1.1)
    figure, axes = plt.subplots(1, 3, figsize=size_of, layout="constrained", sharex=True, sharey=True)
    top = max(np.quantile(np.r_[before, after], 0.995), 1e-3)
    change = symmetric_limit(after - before)
    panels = (
        (before, "control", SEQUENTIAL, 0.0, top),
        (after, "predicted", SEQUENTIAL, 0.0, top),
        (after - before, "change", DIVERGING, -change, change),
    )
    area = point_size(len(xy)) if size is None else size
    for ax, (values, name, cmap, low, high) in zip(axes, panels, strict=True):
        order = np.argsort(np.abs(values), kind="stable")  # the strongest on top
        drawn = ax.scatter(*xy[order].T, c=values[order], s=area, cmap=cmap, vmin=low, vmax=high, lw=0, rasterized=True)
        figure.colorbar(drawn, ax=ax, label=EXPRESSION_UNIT if name != "change" else f"Δ {EXPRESSION_UNIT}")
        ax.set(title=name, aspect="equal", xlabel=f"{plain(spatial_key)} 1, data units")
        ax.tick_params(labelsize=8, colors=ink())
        tidy(ax)
    axes[0].set_ylabel(f"{plain(spatial_key)} 2, data units")
    figure.suptitle(plain(gene) if title is None else f"{plain(gene)}: {title}", fontsize=11)
    return finish(figure, show, save, return_fig)
