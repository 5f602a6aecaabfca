"""Observed statistics of genes against those of cells drawn from the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from cfmvc_scvi.pl._style import PREDICTED, Drawn, finish, ink, point_size, tidy

#: Statistic, title, and whether its axes are logarithmic.
_PANELS = (("mean", "mean count", True), ("variance", "variance", True), ("zeros", "share of zeros", False))


def posterior_predictive_check(
    check: Any,
    *,
    title: str | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Mean, variance and share of zeros of every gene: drawn from the model against observed.

    Points on the diagonal are genes that the model reproduces. On logarithmic axes genes without counts are left out.

    Parameters
    ----------
    check
        Result of ``model.posterior_predictive_check()``.
    title
        Title of the figure; ``None`` says how many genes there are and the median ratio of the variances.
    show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    Figure with three axes.

    Raises
    ------
    TypeError
        When ``check`` is not such a result.
    """
    genes = getattr(check, "genes", None)
    needed = [name + ending for name, *_ in _PANELS for ending in ("", "_drawn")]
    if not isinstance(genes, pd.DataFrame) or not set(needed) <= set(genes.columns):
        raise TypeError(
            f"`check` is a {type(check).__name__}; this plot needs the result of `model.posterior_predictive_check()`."
        )
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(10.2, 3.4), layout="constrained")
    for ax, (name, text, logarithmic) in zip(axes, _PANELS, strict=True):
        x, y = genes[name].to_numpy(dtype=float), genes[f"{name}_drawn"].to_numpy(dtype=float)
        if logarithmic:
            x, y = (values[(x > 0) & (y > 0)] for values in (x, y))
            ax.set(xscale="log", yscale="log")
        ax.scatter(x, y, s=point_size(len(x)), color=PREDICTED, alpha=0.6, linewidths=0, rasterized=True)
        both = np.r_[x, y]
        if len(both):
            ax.plot([both.min(), both.max()], [both.min(), both.max()], color=ink(), lw=0.8, zorder=0)
        ax.set(title=text, xlabel="observed", ylabel="drawn")
        tidy(ax)
    varying = genes["variance"] > 0
    ratio = (genes["variance_drawn"] / genes["variance"])[varying].median()
    figure.suptitle(title or f"{len(genes)} genes; variance drawn / observed, median {ratio:.2f}", fontsize=10)
    return finish(figure, show, save, return_fig)
