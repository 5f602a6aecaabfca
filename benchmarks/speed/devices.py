"""What every speed device is worth: epochs with it and without it, in turn.

    OMP_NUM_THREADS=2 python benchmarks/speed/devices.py                     every device
    OMP_NUM_THREADS=2 python benchmarks/speed/devices.py --busy              beside a process that keeps one core busy
    python benchmarks/speed/devices.py --only "fused loss" --pairs 15        some devices

A device is code that is there for speed alone. Its plain way is what one would write without it; the benchmark puts it
in by replacing a function. Fits take turns: with the device, plain, with it, plain, and so on; a ratio is the time of a
plain fit over the mean of its two neighbours. Printed are the median of the ratios, its standard error (from the spread
of the middle half) and the quartiles. A device stays where the gain is above two standard errors and above 1.5 % of
an epoch.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from cells import simulated_cells
from lightning.pytorch.callbacks import Callback
from models import CLOCKS, QUIET, busy_core, fit_options, new_cfmvc, now, set_clock
from run import machine

from cfmvc_scvi import CFMVC
from cfmvc_scvi.cells import MemoryCounts
from cfmvc_scvi.likelihood.base import Likelihood
from cfmvc_scvi.likelihood.negative_binomial import NegativeBinomial
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.nn.gene_linear import GeneLinear
from cfmvc_scvi.train import flow_plan, vae_plan


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes
    ----------
    plain
        Context manager in which the plain way is taken.
    fit
        Fit that shows it: ``"stage 1"``, ``"stage 2 at 256"`` or ``"stage 2 at 4096"``.
    """

    plain: Callable[[], AbstractContextManager]
    fit: str = "stage 1"


# ---- plain ways -----------------------------------------------------------------------------------------------------


def plain_loss() -> AbstractContextManager:
    """Softmax and negative binomial of dense counts, differentiated by autograd."""
    return patch.object(NegativeBinomial, "reconstruction_loss", Likelihood.reconstruction_loss)


@contextmanager
def optimizer_not_fused() -> Iterator[None]:
    """Torch's default implementation of Adam."""
    with patch.object(vae_plan, "fused", lambda *_: {}), patch.object(flow_plan, "fused", lambda *_: {}):
        yield


def ungrouped() -> AbstractContextManager:
    """The basis fields at every cell, then their weighted sum."""
    velocity = CFMVCModule.velocity
    return patch.object(CFMVCModule, "velocity", lambda s, z, t, c, p, condition=None: velocity(s, z, t, c, p))


DEVICES: dict[str, Device] = {
    "fused loss": Device(plain_loss),
    "sparse first layer": Device(lambda: patch.object(GeneLinear, "SPARSE_BELOW", -1.0)),
    "gathered chunks": Device(lambda: patch.object(MemoryCounts, "n_gathered", 1)),
    "fused optimiser": Device(optimizer_not_fused),
    "fused optimiser, stage 2": Device(optimizer_not_fused, "stage 2 at 256"),
    "grouped fields, 256": Device(ungrouped, "stage 2 at 256"),
    "grouped fields, 4096": Device(ungrouped, "stage 2 at 4096"),
}


# ---- timing ---------------------------------------------------------------------------------------------------------


class StepTimes(Callback):
    """Seconds of every step of a fit, from its start to that of the next, so with the batch that is fetched for it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Any, plan: Any) -> None:
        self._start = now()

    def on_train_batch_end(self, trainer: Any, plan: Any, *args: Any) -> None:
        end = now()
        self.seconds.append(end - self._start)
        self._start = end


def seconds_of(model: CFMVC, fit: str, options: argparse.Namespace) -> float:
    """Seconds of a step of one fit."""
    times, n_epochs = StepTimes(), options.epochs
    if fit == "stage 1":
        model.train_vae(**fit_options(n_epochs, 128, times))
    else:
        # encoding the cells before, and the calibration after the epochs, are not what is timed
        if not hasattr(model, "_kept"):
            model._kept = model._cache_latents()
        with patch.object(CFMVC, "_cache_latents", lambda s: s._kept), patch.object(CFMVC, "_finish_flow"):
            model.train_flow(8 * n_epochs, batch_size=int(fit.split()[-1]), callbacks=[times], **QUIET)
    return float(np.quantile(times.seconds, 0.1) if options.quick else np.mean(times.seconds))


def ratios(model: CFMVC, device: Device, options: argparse.Namespace) -> np.ndarray:
    """Time of every plain fit over the mean of the fits before and after it; shape (n_pairs,)."""
    ours, plain = [seconds_of(model, device.fit, options)], []
    for _ in range(options.pairs):
        with device.plain():
            plain.append(seconds_of(model, device.fit, options))
        ours.append(seconds_of(model, device.fit, options))
    return np.array(plain) / (0.5 * (np.array(ours[1:]) + np.array(ours[:-1])))


def row(name: str, found: np.ndarray) -> dict[str, Any]:
    """A line of the table; a normal sample's median has 1.25 times the standard error of its mean."""
    low, median, high = np.quantile(found, [0.25, 0.5, 0.75])
    error = 1.2533 * (high - low) / 1.349 / len(found) ** 0.5
    stays = median - 1.0 > max(2.0 * error, 0.015)
    return {"device": name, "plain / device": median, "se": error, "lower": low, "upper": high, "stays": stays}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a line per device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(DEVICES), default=list(DEVICES))
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps one core busy")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--density", type=float, default=0.18, help="share of counts above zero")
    parser.add_argument("--epochs", type=int, default=2, help="of a fit of stage 1; of stage 2 eight times these")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="time of the quickest tenth of the steps, if others run")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: with one thread, if others run")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    set_clock(options.clock)
    print(f"{machine()}\nload before: {os.getloadavg()[0]:.1f}; busy: {options.busy}", flush=True)
    model = new_cfmvc(simulated_cells(options.cells, options.genes, options.density))
    model.train_vae(1, **QUIET)
    rows = []
    with busy_core(options.busy):
        for name in options.only:
            rows.append(row(name, ratios(model, DEVICES[name], options)))
            print(" ".join(f"{x:.3f}" if isinstance(x, float) else str(x) for x in rows[-1].values()), flush=True)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
