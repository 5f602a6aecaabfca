"""What a training shows: one bar per stage that names it, and nothing of Lightning's own lines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer

from cfmvc_scvi._compat import ProgressBar
from cfmvc_scvi.train.state import Stage

#: Names of the stages beside their bars.
_BAR_NAMES: dict[str, str] = {"vae": "1/2 autoencoder", "flow": "2/2 flow"}
#: Loggers of Lightning that tell of devices, tips and the end of a fit.
_LOGGERS = (
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
)
#: Warnings that every small training would give and that no user can act on.
_EXPECTED = (
    r"Found \d+ module\(s\) in eval mode",  # the plans put the frozen networks into eval mode on purpose
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r".*does not have many workers",
    r".*LeafSpec",
    r"early_stopping was automatically disabled due to the use of DDP",  # not here: train/run.py puts it back
    r"It is recommended to use `self.log\(.*, sync_dist=True\)`",  # the plans add up over processes themselves
)


class StageBar(ProgressBar):
    """A bar over the epochs of a stage: its name, the time left and the metrics.

    Parameters
    ----------
    stage
        ``"vae"`` or ``"flow"``.
    refresh_rate
        1, or 0 for no bar.
    """

    def __init__(self, stage: Stage, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate)
        self.name = _BAR_NAMES[stage]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say which stage and epoch it is."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.is_enabled:
            cast(Any, self.main_progress_bar).set_description(
                f"{self.name}, epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's lines on devices, tips and small data back; a logger that is set to DEBUG stays as it is."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        if logger.getEffectiveLevel() == logging.INFO:
            logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
