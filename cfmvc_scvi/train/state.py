"""What training may ask of the model it trains: handed in by the model, which alone knows its attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Stage = Literal["vae", "flow"]

#: Names of the stages in messages.
STAGE_NAMES: dict[str, str] = {"vae": "stage 1 (VAE)", "flow": "stage 2 (flow)"}


@dataclass(frozen=True)
class ModelState:
    """Access to the state of a model beside the weights of its networks.

    Attributes
    ----------
    reset
        Forget what a stage makes anew; returns a function that brings it back.
    get
        The state as plain containers.
    restore
        Put the content of a checkpoint, weights included, into the model.
    identity
        Arguments and checksums of the model and its data, by name: what must be equal for a run to go on.
    """

    reset: Callable[[Stage], Callable[[], None]]
    get: Callable[[], dict[str, Any]]
    restore: Callable[[Mapping[str, Any]], None]
    identity: Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class StageArguments:
    """What identifies the run of a stage; a checkpoint goes on with the same alone.

    Attributes
    ----------
    max_epochs, batch_size, early_stopping, plan_kwargs, train_size, validation_size
        As given to ``train_vae`` or ``train_flow``; ``None`` where they were left out.
    seed
        Seed of scvi-tools.
    trainer
        Further arguments of the trainer that its result depends on.
    """

    max_epochs: int | None
    batch_size: int
    early_stopping: bool
    plan_kwargs: Mapping[str, Any] | None
    seed: int
    train_size: float | None = None
    validation_size: float | None = None
    trainer: Mapping[str, Any] | None = None

    def described(self) -> dict[str, Any]:
        """Every argument that can be written down, by its name."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "trainer"}
        named = own | {name: value for name, value in (self.trainer or {}).items() if name not in _NOT_OF_A_RUN}
        return {name: value for name, value in named.items() if _is_plain(value)}


#: Arguments of the trainer that may differ between a run and its continuation.
_NOT_OF_A_RUN = {
    "callbacks",
    "enable_progress_bar",
    "log_save_dir",
    "logger",
    "num_nodes",
    "progress_bar_refresh_rate",
    "simple_progress_bar",
    "strategy",
}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
