"""Runs one stage of training and leaves the model usable whatever happens."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, cast

import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from scvi import settings
from scvi.model.base import BaseModelClass
from scvi.train import LoudEarlyStopping, SaveCheckpoint, TrainRunner
from torch import nn

from cfmvc_scvi.cells.count_loader import CountDataModule
from cfmvc_scvi.cells.pairs import LatentDataModule
from cfmvc_scvi.io.archive import read_archive
from cfmvc_scvi.train.checkpoint import CheckpointFolder, EpochKeeper
from cfmvc_scvi.train.contention import ContentionWatch
from cfmvc_scvi.train.display import StageBar, quiet_lightning
from cfmvc_scvi.train.guards import DivergenceWatch
from cfmvc_scvi.train.history import merge_histories
from cfmvc_scvi.train.parts import networks_of
from cfmvc_scvi.train.processes import check_processes, devices_of_launcher, from_first, let_go, makes_copies
from cfmvc_scvi.train.state import STAGE_NAMES, ModelState, Stage

#: Precisions of Lightning's trainer in which the weights stay float32.
_PRECISIONS = {"32", "32-true", "bf16", "bf16-mixed", "16", "16-mixed"}


class _Fitted(Protocol):
    """What a model has that scvi-tools does not declare."""

    module: nn.Module
    history_: dict[str, pd.DataFrame] | None
    is_trained_: bool


def run_stage(
    model: BaseModelClass,
    state: ModelState,
    plan: LightningModule,
    data: CountDataModule | LatentDataModule,
    *,
    stage: Stage,
    max_epochs: int,
    accelerator: str = "auto",
    devices: int | list[int] | str = "auto",
    checkpoints: CheckpointFolder | None = None,
    resumed: dict[str, Any] | None = None,
    **trainer_kwargs: Any,
) -> BaseException | None:
    """Fit one plan; afterwards ``model.history_`` holds the keys of every stage so far.

    scvi-tools' runner was made for one fit per model: it drops metrics that an earlier fit did not log, and shares the
    caller's list of callbacks. Both are kept apart here.

    Parameters
    ----------
    model, state
        The model, and access to its state.
    plan, data
        What is trained on what.
    stage
        ``"vae"`` or ``"flow"``.
    max_epochs, accelerator, devices, **trainer_kwargs
        Arguments of scvi-tools' runner and of Lightning's trainer.
    checkpoints
        Folder for the state after every epoch.
    resumed
        State to go on from, which is in the model already.

    Returns
    -------
    ``None``, or what stopped the stage early: :class:`KeyboardInterrupt`, or the error of a checkpoint that could not
    be written. The networks then hold the weights of the last finished epoch, and the caller raises it after it has
    made the model usable. Where no epoch was finished, the model is as it was before and the error is raised here.
    """
    _check_precision(trainer_kwargs.get("precision"))
    devices, trainer_kwargs["num_nodes"] = devices_of_launcher(devices, trainer_kwargs.get("num_nodes", 1))
    fitted = cast(_Fitted, model)
    keeper = EpochKeeper(state, stage, checkpoints, resumed, fitted.history_)
    watch = ContentionWatch(act=checkpoints is None)
    given = _adapted(trainer_kwargs.get("callbacks") or [])
    trainer_kwargs["callbacks"] = [keeper, DivergenceWatch(stage), watch, *given]
    if trainer_kwargs.get("enable_progress_bar", True) and trainer_kwargs.pop("simple_progress_bar", True):
        trainer_kwargs["callbacks"].append(StageBar(stage, trainer_kwargs.pop("progress_bar_refresh_rate", 1)))
        trainer_kwargs["simple_progress_bar"] = False  # scvi-tools' bar does not say which stage it is
    _take_over_early_stopping(trainer_kwargs)
    stopped = None
    with TemporaryDirectory() as scratch, quiet_lightning():
        if devices not in ("auto", 1) or "strategy" in trainer_kwargs:
            trainer_kwargs.setdefault("log_save_dir", scratch)  # where copies of this process leave their history
        runner = TrainRunner(
            model,
            plan,
            data,  # pyright: ignore[reportArgumentType]  # any data module will do
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            **trainer_kwargs,
        )
        trainer = runner.trainer
        check_processes(trainer, data.batch_size, data.n_train)
        if trainer.world_size > 1:
            runner.device = trainer.strategy.root_device  # scvi-tools takes the first device for all
        keeper.left_behind = Path(scratch) / "end.pt" if makes_copies(trainer) else None
        bring_back = state.reset(stage)
        if resumed is not None:
            data.first_epoch = resumed["epoch"]
        with _own_history(fitted), _restored_modes(fitted), _restored_interrupts(), watch.restored():
            try:
                runner()
                keeper.finish(trainer, plan, fitted.history_)
            except (SystemExit, KeyboardInterrupt, OSError) as error:
                stopped = _interruption(error, keeper)
                if stopped is None:
                    raise
                if isinstance(stopped, KeyboardInterrupt):
                    let_go(trainer)
                keeper.take_back(plan)
                model.to_device(runner.device)
            fitted.history_ = from_first(lambda: fitted.history_)
    if stopped is None:
        return None
    if not keeper.finished_epochs:
        bring_back()
        raise stopped
    _warn_interrupted(stage, keeper.finished_epochs, max_epochs)
    return stopped


def _check_precision(precision: str | int | None) -> None:
    """Raise for precisions in which the weights themselves would be stored."""
    if precision is not None and str(precision) not in _PRECISIONS:
        raise ValueError(
            f"`precision` is {precision!r}; choose '32-true', 'bf16-mixed' or '16-mixed': weights and likelihood need "
            "single precision."
        )


def _interruption(error: BaseException, keeper: EpochKeeper) -> BaseException | None:
    """What to raise for an interruption; ``None`` for any other error. Lightning turns Ctrl-C into an exit."""
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return KeyboardInterrupt()
    return error if error is keeper.write_error else None


def _warn_interrupted(stage: Stage, n_epochs: int, max_epochs: int) -> None:
    usable = {
        "vae": "The VAE is usable: `get_latent_representation()` works, and `train_flow()` trains the flow on it.",
        "flow": "The flow is calibrated and usable: `predict_perturbation()` works.",
    }
    warnings.warn(
        f"The training was interrupted in {STAGE_NAMES[stage]}; the model has the weights after {n_epochs} of "
        f"{max_epochs} epochs. {usable[stage]}",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )


def _take_over_early_stopping(trainer_kwargs: dict[str, Any]) -> None:
    """Put scvi-tools' early stopping among the callbacks: by itself it leaves it out with several processes."""
    given = {
        name.removeprefix("early_stopping_"): trainer_kwargs.pop(name)
        for name in list(trainer_kwargs)
        if name.startswith("early_stopping_")
    }
    if not trainer_kwargs.pop("early_stopping", False):
        return
    if trainer_kwargs.get("check_val_every_n_epoch") is None:
        trainer_kwargs["check_val_every_n_epoch"] = 1
    settings_of_scvi = {"monitor": "elbo_validation", "min_delta": 0.0, "patience": 45, "mode": "min"}
    trainer_kwargs["callbacks"].append(LoudEarlyStopping(**(settings_of_scvi | {"warmup_epochs": 0} | given)))


@contextmanager
def _own_history(model: _Fitted) -> Iterator[None]:
    """Let the runner write into an empty history, then append it to the earlier one."""
    earlier, model.history_, trained = model.history_, None, model.is_trained_
    model.is_trained_ = False
    try:
        yield
    finally:
        model.history_ = merge_histories(earlier, model.history_)
        model.is_trained_ = trained


@contextmanager
def _restored_modes(model: _Fitted) -> Iterator[None]:
    """Leave every network in eval mode with gradients allowed, also after a failure."""
    try:
        yield
    finally:
        model.module.eval().requires_grad_(True)


@contextmanager
def _restored_interrupts() -> Iterator[None]:
    """Leave Ctrl-C as it was: Lightning switches it off when it handles one, and not on again."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


def _adapted(callbacks: list[Callback]) -> list[Callback]:
    """The caller's callbacks; scvi-tools' SaveCheckpoint behind one that reads what :meth:`CFMVC.save` writes."""
    return [_reading_archives(callback) if isinstance(callback, SaveCheckpoint) else callback for callback in callbacks]


def _reading_archives(callback: SaveCheckpoint) -> SaveCheckpoint:
    """A callback of the same class and with the same attributes, whose best weights come from our own files."""
    kind = type(type(callback).__name__, (_ReadsArchives, type(callback)), {})
    ours = object.__new__(kind)
    ours.__dict__ = callback.__dict__  # what it learns, such as `best_model_path`, the caller's object knows too
    return ours


class _ReadsArchives(SaveCheckpoint if TYPE_CHECKING else object):
    """Takes the place of the two hooks of :class:`SaveCheckpoint` that read a saved model."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights into the networks."""
        if self.load_best_on_end:
            self._take_best(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same after an error, unless the user stopped the training."""
        if self.check_nan_gradients and self.best_model_path and not isinstance(exception, KeyboardInterrupt):
            self._take_best(pl_module)

    def _take_best(self, plan: LightningModule) -> None:
        networks_of(plan).load_state_dict(read_archive(self.best_model_path, "model")["module"])
