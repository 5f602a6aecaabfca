"""Arguments of a training: checked, and shared out between the two stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi.train.state import Stage

#: Optimiser steps of stage 1 when the number of epochs is not given.
VAE_STEPS = 900
_FLOW_STEPS, _FLOW_STEPS_EACH, _MOST_FLOW_STEPS = 700, 20, 20_000


def check_sizes(**sizes: int | None) -> None:
    """Raise unless every number that is given is a whole one of at least 1."""
    for argument, value in sizes.items():
        if value is not None:
            whole_number(argument, value)


def refuse_of_one_stage(given: Mapping[str, Any]) -> None:
    """Raise for arguments of scvi-tools' models that here belong to one of two stages."""
    for name in ("max_epochs", "plan_kwargs"):
        if name in given:
            raise TypeError(
                f"`train` has two stages, each with its own `{name}`: pass `vae_{name}=` and `flow_{name}=`, or call "
                "`train_vae` and `train_flow` one after the other."
            )


def monitor_of(stage: Stage, monitor: str | None) -> dict[str, Any]:
    """The metric that early stopping shall watch, for the stage that logs it."""
    belongs = monitor is not None and str(monitor).startswith("flow_") == (stage == "flow")
    return {"early_stopping_monitor": monitor} if belongs else {}


def flow_steps(n_perturbations: int) -> int:
    """Optimiser steps of stage 2 when the number of epochs is not given: 700 and 20 a perturbation, at most 20,000."""
    return min(_FLOW_STEPS + _FLOW_STEPS_EACH * n_perturbations, _MOST_FLOW_STEPS)


def epochs_for(steps: int, n_cells: int, batch_size: int) -> int:
    """Epochs that make about this many steps, at least 10 and at most 400."""
    per_epoch = max(1, n_cells // batch_size)
    return int(np.clip(round(steps / per_epoch), 10, 400))


def trainer_arguments(given: dict[str, Any], early_stopping: bool, monitor: str, n_validation: int) -> dict[str, Any]:
    """Arguments of the trainer, with defaults for what the caller left out."""
    if early_stopping and n_validation == 0:
        raise ValueError("`early_stopping=True` needs validation cells: pass a `train_size` below 1.")
    defaults: dict[str, Any] = {
        "gradient_clip_val": 50.0,
        "early_stopping": early_stopping,
        "early_stopping_monitor": monitor,
        "early_stopping_patience": 15,
        "check_val_every_n_epoch": 1 if n_validation else None,
        "benchmark": False,
    }
    return defaults | given
