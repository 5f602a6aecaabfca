"""A machine that others keep busy: noticed while training, and answered by fewer threads where those are faster.

Torch's threads wait for each other by spinning. Where another process holds one of the cores, the thread that is done
spins through its whole time slice while the one it waits for has no core, and a step takes many times as long. The
system then takes the core from the threads again and again: involuntary context switches, which it counts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from scvi import settings

try:
    import resource
except ImportError:  # Windows counts no switches
    resource = None

#: Steps that are looked at together.
_WINDOW = 3
#: Involuntary switches per step above which the machine may be busy: a quiet one has up to 1, a busy one 100 and more.
_SWITCHES = 30
#: Share of the time of a step that one thread must stay below to be kept.
_FASTER = 0.8
_ADVICE = (
    "`export GOMP_SPINCOUNT=3000` before Python starts, or `torch.set_num_threads(1)`, avoids that (user guide, Speed "
    "and memory)."
)


def involuntary_switches() -> int:
    """Times that the system took a core from this process."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class ContentionWatch(Callback):
    """Tries one thread where steps are interrupted often, keeps it if it is faster, and says so once.

    Parameters
    ----------
    act
        Whether the number of threads may change. It changes how sums are rounded, so that a run which goes on from a
        checkpoint, to the bit, is only told of it.
    clock, switches
        Seconds, and involuntary switches of this process, so far.
    """

    def __init__(
        self,
        *,
        act: bool,
        clock: Callable[[], float] = time.perf_counter,
        switches: Callable[[], int] = involuntary_switches,
    ) -> None:
        self._act, self._clock, self._switches = act, clock, switches
        self._looking, self._before = False, 0.0
        self._forget()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Leave torch's number of threads as it was."""
        self._threads = torch.get_num_threads()
        try:
            yield
        finally:
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look only where several threads of one process work on the CPU."""
        self._looking = torch.get_num_threads() > 1 and pl_module.device.type == "cpu" and trainer.world_size == 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out what lies between epochs."""
        self._last, self._counted = self._clock(), self._switches()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step, and look at every third."""
        if not self._looking:
            return
        now, counted = self._clock(), self._switches()
        self._seconds.append(now - self._last)
        self._n_switches += counted - self._counted
        self._last, self._counted = now, counted
        if len(self._seconds) == _WINDOW:
            self._look(float(np.median(self._seconds)))
            self._forget()

    def _forget(self) -> None:
        self._seconds: list[float] = []
        self._n_switches = 0

    def _look(self, seconds: float) -> None:
        """Judge a window in which a step took so long."""
        n_threads = torch.get_num_threads()
        if self._before:  # one thread was on trial
            self._looking = False
            if seconds < _FASTER * self._before:
                _warn(
                    f"Other processes keep this machine busy: a step took {1e3 * self._before:.0f} ms with "
                    f"{self._threads} threads and takes {1e3 * seconds:.0f} ms with one, so this stage goes on with "
                    f"one. {_ADVICE}"
                )
            else:
                torch.set_num_threads(self._threads)
        elif self._n_switches > _SWITCHES * _WINDOW:
            if self._act:
                self._before, self._threads = seconds, n_threads
                torch.set_num_threads(1)
            else:
                self._looking = False
                _warn(
                    f"Other processes keep this machine busy, which makes the {n_threads} threads of this training "
                    f"wait for each other ({1e3 * seconds:.0f} ms a step). The number stays as it is, as a run with "
                    f"checkpoints ends with the same bits whether it was interrupted or not. {_ADVICE}"
                )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=settings.warnings_stacklevel)
