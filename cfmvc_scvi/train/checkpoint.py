"""Checkpoints: the whole state of a training run between two epochs, from which a killed run goes on."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from cfmvc_scvi.cells import CountLoader, PairLoader
from cfmvc_scvi.io.archive import archive_exists, read_archive, write_archive
from cfmvc_scvi.io.files import write_error
from cfmvc_scvi.train.parts import networks_of
from cfmvc_scvi.train.processes import callbacks_of, from_first, keep_buffers, several, share_random_state
from cfmvc_scvi.train.state import STAGE_NAMES, ModelState, Stage, StageArguments

_NAME, _WHAT = "checkpoint", "a checkpoint of the training"


class CheckpointFolder:
    """The folder in which one run of training keeps its last state.

    Parameters
    ----------
    path
        The folder; made when the first epoch begins.
    resume
        Go on from the state found there; without one, start from the beginning.

    Raises
    ------
    OSError
        When the folder cannot be written to.
    """

    def __init__(self, path: str | os.PathLike, resume: bool) -> None:
        self.path = Path(path)
        self.resume = resume
        self.runs: dict[str, Any] = {}

    @classmethod
    def of(cls, path: str | os.PathLike | None, resume: bool) -> CheckpointFolder | None:
        """The folder of these arguments of ``train``; ``None`` without a path."""
        if path is not None:
            return cls(path, resume)
        if resume:
            raise ValueError("`resume=True` needs `checkpoint_dir`, the folder with the state to go on from.")
        return None

    def begin(self, model: ModelState, stage: Stage, arguments: StageArguments) -> dict[str, Any] | None:
        """State to go on from, after it has been put into the model; ``None`` where the stage starts anew.

        Raises
        ------
        ValueError
            When the folder holds a state that is not to be resumed, or one of another run; names the differences.
        """
        run = {f"argument `{name}`": value for name, value in arguments.described().items()} | model.identity()
        state = read_archive(self.path, _NAME) if archive_exists(self.path, _NAME) else None
        if state is None or (stage == "flow" and state["stage"] == "vae" and not self.resume):
            self.runs = {} if state is None else state["runs"]
            self.runs[stage] = run
            return None
        if not self.resume:
            raise ValueError(
                f"`checkpoint_dir` {os.fspath(self.path)!r} holds the state of a run in {STAGE_NAMES[state['stage']]} "
                f"after {state['epoch']} epochs: pass `resume=True` to go on from there, or choose another folder."
            )
        self.runs = state["runs"]
        if stage in self.runs:
            _check_same_run(self.runs[stage], run, self.path)
        model.restore(state)
        restore_rng(state["rng"])
        if stage == "flow" and state["stage"] == "vae":
            self.runs[stage] = run
            return None
        return state

    def write(self, model: ModelState, state: dict[str, Any]) -> None:
        """Put a state in the place of the last one."""
        content = {"runs": self.runs, "attributes": model.get(), "rng": rng_state(), **state}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, self.path, _WHAT) from error
        write_archive(self.path, _NAME, content, _WHAT)


class EpochKeeper(Callback):
    """Keeps the state between two epochs in memory, for an interruption, and in a folder, for a killed process.

    Parameters
    ----------
    model
        State of the model in training.
    stage
        ``"vae"`` or ``"flow"``.
    folder
        Where to write; ``None`` keeps it in memory alone.
    resumed
        State to start from.
    history
        Metrics of earlier stages and fits.

    Attributes
    ----------
    left_behind
        File for what a fit in a copy of this process ends with; ``None`` where it runs in this process.
    """

    def __init__(
        self,
        model: ModelState,
        stage: Stage,
        folder: CheckpointFolder | None,
        resumed: dict[str, Any] | None,
        history: dict[str, Any] | None,
    ) -> None:
        self.model = model
        self.stage = stage
        self.folder = folder
        self.history = history
        self.finished_epochs = 0 if resumed is None else resumed["epoch"]
        self.write_error: OSError | None = None
        self.left_behind: Path | None = None
        self._resumed = resumed
        self._weights: dict[str, Any] = {}
        self._random = torch.get_rng_state()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put optimisers, schedulers, callbacks and counters where they were."""
        if several():
            torch.set_rng_state(self._random)  # Lightning has seeded anew when it connected the processes
            keep_buffers(trainer)
        if self._resumed is not None:
            restore_trainer(trainer, pl_module, self._resumed)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Between two epochs, before anything random is drawn."""
        self.finished_epochs = trainer.current_epoch
        self._weights = {
            "module": {name: value.detach().clone() for name, value in networks_of(pl_module).state_dict().items()},
            "plan": _plan_state(pl_module),
        }
        if self._resumed is not None:
            restore_rng(self._resumed["rng"])
        share_random_state(trainer.strategy.root_device)
        if self._resumed is None and self.folder is not None:
            self._write(self.folder, lambda: self._state(trainer, pl_module, trainer.current_epoch, _logged(trainer)))
        self._resumed = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave to the process that started this one what it cannot know."""
        if self.left_behind is not None and trainer.is_global_zero:
            torch.save({"epoch": trainer.current_epoch, "random": torch.get_rng_state()}, self.left_behind)

    def finish(self, trainer: Trainer, plan: LightningModule, logged: dict[str, Any] | None) -> None:
        """Write the state of a stage that has come to its end, with the metrics it logged."""
        epoch = trainer.current_epoch
        if self.left_behind is not None:
            end = torch.load(self.left_behind, weights_only=True)
            epoch = end["epoch"]
            torch.set_rng_state(end["random"])
        self.finished_epochs, self._weights = epoch, {}
        if self.folder is not None:
            self._write(self.folder, lambda: self._state(trainer, plan, epoch, logged or {}, finished=True))

    def take_back(self, plan: LightningModule) -> None:
        """Put the weights of the last finished epoch into the networks, as the end of a stage leaves them."""
        if not self._weights:
            return
        networks_of(plan).load_state_dict(self._weights["module"])
        if self.finished_epochs:
            plan.on_load_checkpoint(self._weights["plan"])
            plan.on_fit_end()

    def _state(
        self, trainer: Trainer, plan: LightningModule, epoch: int, logged: dict[str, Any], *, finished: bool = False
    ) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "epoch": epoch,
            "finished": finished,
            "module": dict(networks_of(plan).state_dict()),
            "history": self.history,
            "stage_history": logged,
            "trainer": {} if finished else trainer_state(trainer, plan),
        }

    def _write(self, folder: CheckpointFolder, state: Callable[[], dict[str, Any]]) -> None:
        """Write in process 0; the others wait, and fail with it."""

        def written() -> OSError | None:
            try:
                folder.write(self.model, state())
            except OSError as error:
                return error
            return None

        self.write_error = from_first(written)
        if self.write_error is not None:
            raise self.write_error


# ---- the parts of a state ---------------------------------------------------------------------------------------


def trainer_state(trainer: Trainer, plan: LightningModule) -> dict[str, Any]:
    """Counters, optimisers, schedulers and callbacks of a fit, between two epochs."""
    return {
        "global_step": trainer.global_step,
        "epoch_loop": trainer.fit_loop.epoch_loop.on_save_checkpoint(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "callbacks": _callback_states(trainer),
        "precision": trainer.precision_plugin.state_dict(),
        "plan": _plan_state(plan),
    }


def restore_trainer(trainer: Trainer, plan: LightningModule, state: Mapping[str, Any]) -> None:
    """Counterpart of :func:`trainer_state`."""
    saved, epoch = state["trainer"], state["epoch"]
    progress = trainer.fit_loop.epoch_progress
    for tracker in (progress.total, progress.current):
        vars(tracker).update(ready=epoch, started=epoch, processed=epoch, completed=epoch)
    steps = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = saved["global_step"]
    trainer.fit_loop.epoch_loop.on_load_checkpoint(saved["epoch_loop"])
    for optimizer, values in zip(trainer.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    for config, values in zip(trainer.lr_scheduler_configs, saved["schedulers"], strict=True):
        config.scheduler.load_state_dict(values)
    for callback in callbacks_of(trainer):
        if callback.state_key in saved["callbacks"]:
            own, counters = saved["callbacks"][callback.state_key]
            callback.load_state_dict(own)
            vars(callback).update(counters)
    trainer.precision_plugin.load_state_dict(saved["precision"])
    plan.on_load_checkpoint(saved["plan"])
    _logged(trainer).update(state["stage_history"])
    loader = trainer.train_dataloader
    if isinstance(loader, (CountLoader, PairLoader)):
        loader.first_epoch = epoch


def rng_state() -> dict[str, Any]:
    """States of the random generators that training may draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    legacy = np.random.get_state()  # noqa: NPY002  # the user's callbacks may draw from it
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": legacy, "python": random.getstate()}


def restore_rng(state: Mapping[str, Any]) -> None:
    """Counterpart of :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])


def _plan_state(plan: LightningModule) -> dict[str, Any]:
    state: dict[str, Any] = {}
    plan.on_save_checkpoint(state)
    return state


def _callback_states(trainer: Trainer) -> dict[str, Any]:
    """State of every callback that has one, with the epochs that scvi-tools' early stopping counts beside it."""
    states = {}
    for callback in callbacks_of(trainer):
        counters = {k: v for k, v in vars(callback).items() if k == "_current_step" and isinstance(v, int)}
        own = callback.state_dict()
        if own or counters:
            states[callback.state_key] = (own, counters)
    return states


def _logged(trainer: Trainer) -> dict[str, Any]:
    """Metrics of this fit as scvi-tools' logger holds them; empty with other loggers."""
    data = getattr(getattr(trainer.logger, "experiment", None), "data", None)
    return data if isinstance(data, dict) else {}


# ---- is it the same run? ----------------------------------------------------------------------------------------


def _check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    different = [
        f"{name} was {saved.get(name)!r} and is {now.get(name)!r}"
        for name in saved.keys() | now.keys()
        if saved.get(name) != now.get(name)
    ]
    if different:
        raise ValueError(
            f"The state in `checkpoint_dir` {os.fspath(path)!r} belongs to another run: "
            f"{'; '.join(sorted(different))}. Call with the arguments and data of that run, or choose another folder."
        )
