"""Training curves of both stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from cfmvc_scvi._messages import shortened
from cfmvc_scvi.pl._style import PREDICTED, REAL, Drawn, finish, tidy

#: Key stem of each stage's loss, title and unit.
_STAGES = (
    ("elbo", "Stage 1: VAE", "negative ELBO, nats per cell"),
    ("flow_loss", "Stage 2: flow", "loss, squared flow units"),
)


def training_curves(
    history: Any,
    *,
    skip: int = 0,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Drawn:
    """Loss of both training stages over epochs, training and validation.

    Parameters
    ----------
    history
        A trained model, or its ``history``: a mapping of metric to DataFrame.
    skip
        Number of epochs left out at the start, whose large loss would flatten the rest of the curve.
    show, save, return_fig
        See :mod:`cfmvc_scvi.pl`.

    Returns
    -------
    Figure with one axes for each stage that was trained.

    Raises
    ------
    ValueError
        When neither stage has been trained, or ``skip`` leaves nothing.
    """
    history = getattr(history, "history", history)
    history = history if isinstance(history, Mapping) else {}
    stages = [stage for stage in _STAGES if f"{stage[0]}_train" in history]
    if not stages:
        raise ValueError(
            f"There are no training curves: `history` has {shortened(sorted(history))}, and needs 'elbo_train' or "
            "'flow_loss_train'. Train the model first."
        )
    figure, axes = plt.subplots(1, len(stages), figsize=(4.6 * len(stages), 3.4), layout="constrained", squeeze=False)
    for ax, (stem, title, unit) in zip(axes[0], stages, strict=True):
        for kind, color in (("train", PREDICTED), ("validation", REAL)):
            if f"{stem}_{kind}" in history:
                _curve(ax, history[f"{stem}_{kind}"], kind, color, skip)
        ax.set(title=title, xlabel="epoch", ylabel=unit)
        ax.legend(frameon=False)
        tidy(ax)
    return finish(figure, show, save, return_fig)


def _curve(ax: Axes, frame: pd.DataFrame, label: str, color: str, skip: int) -> None:
    epochs = np.arange(len(frame)) + 1
    values = pd.to_numeric(frame.iloc[:, 0]).to_numpy(dtype=float)
    if skip < 0 or skip >= len(values):
        raise ValueError(
            f"`skip` is {skip}; there are {len(values)} epochs, so it must be from 0 to {len(values) - 1}."
        )
    marker = "o" if len(values) - skip < 3 else None
    ax.plot(epochs[skip:], values[skip:], color=color, lw=1.6, marker=marker, ms=4, label=label)
