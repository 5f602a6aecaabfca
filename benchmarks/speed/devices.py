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
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from cells import simulated_cells
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import PassThroughProfiler
from models import CLOCKS, QUIET, fit_options, new_cfmvc, now, set_clock
from run import machine
from scvi.train import TrainingPlan
from torch import Tensor, nn
from torch.nn import functional as F

from cfmvc_scvi import CFMVC
from cfmvc_scvi.cells import count_loader
from cfmvc_scvi.cells.count_loader import HostCounts
from cfmvc_scvi.likelihood.negative_binomial import nb_log_prob
from cfmvc_scvi.module import CFMVCModule, cfmvc_module
from cfmvc_scvi.nn import blocks, encoder
from cfmvc_scvi.train import VAETrainingPlan, run, steps
from cfmvc_scvi.train.steps import LeanSteps


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


def plain_loss(
    features: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, batch: Any, *, panel: bool = False
) -> Tensor:
    """Softmax and negative binomial of dense counts, differentiated by autograd."""
    log_share = F.log_softmax(F.linear(features, weight, bias), dim=-1)
    log_mean = log_share + batch.library.log().unsqueeze(-1)
    return -nb_log_prob(batch.counts.dense(), log_mean, log_theta.exp()).sum(dim=-1).mean()


def plain_draw(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw and KL divergences as they are written, differentiated by autograd."""
    cut = mean.shape[1] - prior_mean.shape[1]
    draw = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    (m, m_given), (v, v_given) = mean.tensor_split([cut], dim=1), logvar.tensor_split([cut], dim=1)
    first = 0.5 * (v.exp() + m.square() - 1.0 - v).sum(dim=-1).mean()
    ratio = v_given - prior_logvar
    last = 0.5 * (ratio.exp() + (m_given - prior_mean).square() * (-prior_logvar).exp() - 1.0 - ratio).sum(dim=-1)
    return draw, first, last.mean()


@contextmanager
def each(*contexts: AbstractContextManager) -> Iterator[None]:
    """Several replacements at once."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def embedding_by_module() -> AbstractContextManager:
    """Rows of an embedding through :class:`torch.nn.Embedding`."""
    return each(
        *(patch.object(place, "rows_of", lambda t, codes: t(codes)) for place in (blocks, encoder, cfmvc_module))
    )


def large_counts_searched() -> AbstractContextManager:
    """Counts above the table are looked for in every batch."""
    batches = HostCounts.batches

    def without(self: HostCounts, rows: np.ndarray, size: int) -> Iterator:
        yield from (replace(batch, large=None) for batch in batches(self, rows, size))

    return patch.object(HostCounts, "batches", without)


def optimizer_not_fused() -> AbstractContextManager:
    """Torch's default implementation of Adam."""
    lean = LeanSteps.lean_optimizer

    def not_fused(self: Any, optimizer: type, parameters: Any, **settings: Any) -> torch.optim.Optimizer:
        return lean(self, lambda p, fused, **s: optimizer(p, **s), parameters, **settings)

    return patch.object(LeanSteps, "lean_optimizer", not_fused)


def zero_grad_of_torch() -> AbstractContextManager:
    """``optimizer.zero_grad()``."""

    def zero_grad(self: Any, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        if self._joined:
            self._joined.zero_gradients()

    return patch.object(LeanSteps, "optimizer_zero_grad", zero_grad)


def clipping_of_lightning() -> AbstractContextManager:
    """Every gradient is multiplied by a factor in every step."""
    return patch.object(LeanSteps, "configure_gradient_clipping", LightningModule.configure_gradient_clipping)


def ungrouped() -> AbstractContextManager:
    """The basis fields at every cell, then their weighted sum."""
    velocity = CFMVCModule.velocity
    return patch.object(CFMVCModule, "velocity", lambda s, z, t, c, p, condition=None: velocity(s, z, t, c, p))


STEPS: dict[str, Callable[[], AbstractContextManager]] = {
    "joined parameters": lambda: patch.object(steps, "_SMALL", 0),
    "fused optimiser": optimizer_not_fused,
    "clipping": clipping_of_lightning,
    "zero_grad": zero_grad_of_torch,
    "__setattr__": lambda: patch.object(LeanSteps, "__setattr__", nn.Module.__setattr__),
    "no profiler": lambda: patch.object(run, "NoProfiler", PassThroughProfiler),
}
DEVICES: dict[str, Device] = {
    "fused loss": Device(lambda: patch.object(cfmvc_module, "reconstruction_loss", plain_loss)),
    "sparse first layer": Device(lambda: patch.object(blocks.GeneLinear, "SPARSE_BELOW", -1.0)),
    "shares of the threads": Device(lambda: patch.object(count_loader, "column_shares", lambda n: 1)),
    "gathered chunks": Device(lambda: patch.object(count_loader, "_GATHERED", 1)),
    "large counts per chunk": Device(large_counts_searched),
    "draw with KL": Device(lambda: patch.object(cfmvc_module, "draw_with_kl", plain_draw)),
    "rows_of": Device(embedding_by_module),
    "kept KL weight": Device(lambda: patch.object(VAETrainingPlan, "kl_weight", TrainingPlan.kl_weight)),
    **{name: Device(plain) for name, plain in STEPS.items()},
    "grouped fields, 256": Device(ungrouped, "stage 2 at 256"),
    "grouped fields, 4096": Device(ungrouped, "stage 2 at 4096"),
    **{f"{name}, stage 2": Device(plain, "stage 2 at 256") for name, plain in STEPS.items()},
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
        kept = model.__dict__.setdefault("_kept", model._cache_latents())
        with patch.object(CFMVC, "_cache_latents", lambda s: kept), patch.object(CFMVC, "_finish_flow"):
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


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Another process that keeps one core busy."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a line per device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(DEVICES), default=list(DEVICES))
    parser.add_argument("--busy", action="store_true", help="beside a process that keeps one core busy")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2, help="of a fit of stage 1; of stage 2 eight times these")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="time of the quickest tenth of the steps, if others run")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: with one thread, if others run")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    set_clock(options.clock)
    print(f"{machine()}\nload before: {os.getloadavg()[0]:.1f}; busy: {options.busy}", flush=True)
    model = new_cfmvc(simulated_cells(options.cells, options.genes))
    model.train_vae(1, **QUIET)
    rows = []
    with busy_core(options.busy):
        for name in options.only:
            rows.append(row(name, ratios(model, DEVICES[name], options)))
            print(" ".join(f"{x:.3f}" if isinstance(x, float) else str(x) for x in rows[-1].values()), flush=True)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
