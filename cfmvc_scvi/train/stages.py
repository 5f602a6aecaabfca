"""Runs one stage of training and leaves the model usable whatever happens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
from lightning.pytorch import LightningDataModule, LightningModule
from scvi.model.base import BaseModelClass
from scvi.train import TrainRunner


def run_stage(
    model: BaseModelClass,
    plan: LightningModule,
    data: LightningDataModule,
    *,
    max_epochs: int,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    **trainer_kwargs: Any,
) -> None:
    """Fit one plan; afterwards ``model.history_`` holds the keys of every stage so far.

    scvi-tools' runner was made for one fit per model: it drops metrics that an earlier fit did not log, and shares the
    caller's list of callbacks. Both are kept apart here.
    """
    if trainer_kwargs.get("callbacks") is not None:
        trainer_kwargs["callbacks"] = list(trainer_kwargs["callbacks"])
    with _own_history(model), _restored_modes(model):
        runner = TrainRunner(
            model, plan, data, max_epochs=max_epochs, accelerator=accelerator, devices=devices, **trainer_kwargs
        )
        with warnings.catch_warnings():
            # the plans put the frozen networks into eval mode on purpose
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
            runner()


@contextmanager
def _own_history(model: BaseModelClass) -> Iterator[None]:
    """Let the runner write into an empty history, then append it to the earlier one."""
    earlier, model.history_, trained = model.history_, None, model.is_trained_
    model.is_trained_ = False
    try:
        yield
    finally:
        model.history_ = merge_histories(earlier, model.history_)
        model.is_trained_ = trained


@contextmanager
def _restored_modes(model: BaseModelClass) -> Iterator[None]:
    """Leave every network in eval mode with gradients allowed, also after a failure."""
    try:
        yield
    finally:
        model.module.eval().requires_grad_(True)


def merge_histories(
    earlier: dict[str, pd.DataFrame] | None, later: dict[str, pd.DataFrame] | None
) -> dict[str, pd.DataFrame]:
    """Metrics of two fits; one that both logged continues its index."""
    merged = dict(earlier or {})
    for key, frame in (later or {}).items():
        if key in merged:
            frame = frame.set_axis(range(len(merged[key]), len(merged[key]) + len(frame)))
            name = merged[key].index.name
            frame = pd.concat([merged[key], frame]).rename_axis(name)
        merged[key] = frame
    return merged
