"""Steps of both models beside a process that keeps one core busy, over steps on the machine as it is.

    OMP_NUM_THREADS=2 python benchmarks/speed/busy.py
    GOMP_SPINCOUNT=3000 OMP_NUM_THREADS=2 python benchmarks/speed/busy.py

The other process has a session of its own, as that of another user has: schedulers share the cores between sessions. A
fit is stopped after ``--seconds``, so that a slow one is timed by the steps it came to. Compare ratios: the seconds are
those of this machine, and "quiet" is quiet only where nothing else runs.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from cells import simulated_cells
from lightning.pytorch.callbacks import Callback
from models import QUIET, busy_core, new_cfmvc, new_scvi, now
from run import machine

from cfmvc_scvi.train.contention import ContentionWatch, involuntary_switches


class Steps(Callback):
    """Seconds of every step, and involuntary switches, until the time is up."""

    def __init__(self, most: float) -> None:
        self.most, self.seconds = most, []

    def on_train_start(self, trainer: Any, plan: Any) -> None:
        self._begun = self._last = now()
        self._switches = involuntary_switches()

    def on_train_batch_end(self, trainer: Any, plan: Any, *args: Any) -> None:
        end = now()
        self.seconds.append(end - self._last)
        self._last = end
        self.switches = (involuntary_switches() - self._switches) / len(self.seconds)
        if end - self._begun > self.most:
            trainer.should_stop = True


def measured(fit: Callable[[Steps], Any], busy: bool, most: float) -> Steps:
    """Steps of one fit."""
    steps = Steps(most)
    with busy_core(busy):
        fit(steps)
    return steps


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a line for every way to train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a fit at most")
    options = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"{machine()}\nload before: {os.getloadavg()[0]:.1f}; threads: {torch.get_num_threads()}", flush=True)
    adata = simulated_cells(options.cells, options.genes)
    ours, theirs = new_cfmvc(adata), new_scvi(adata.copy())
    arguments_of_fit = {**QUIET, "batch_size": 128, "train_size": 1.0}

    def fit_ours(steps: Steps) -> None:
        ours.train_vae(options.epochs, callbacks=[steps], **arguments_of_fit)

    def fit_theirs(steps: Steps) -> None:
        theirs.train(options.epochs, callbacks=[steps], **arguments_of_fit)

    unwatched = patch.object(ContentionWatch, "on_train_batch_end", lambda *_: None)
    for name, fit, context in (
        ("SCVI", fit_theirs, nullcontext()),
        ("CFMVC, not watched", fit_ours, unwatched),
        ("CFMVC", fit_ours, nullcontext()),
    ):
        with context:
            quiet, busy = (measured(fit, wanted, options.seconds) for wanted in (False, True))
        per_step = [float(np.mean(one.seconds[1:] or one.seconds)) for one in (quiet, busy)]
        later = float(np.median(busy.seconds[-20:]))
        print(
            f"{name}: quiet {1e3 * per_step[0]:.1f} ms a step ({quiet.switches:.0f} switches), busy "
            f"{1e3 * per_step[1]:.1f} ms ({busy.switches:.0f}; last steps {1e3 * later:.1f} ms); busy / quiet "
            f"{per_step[1] / per_step[0]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
