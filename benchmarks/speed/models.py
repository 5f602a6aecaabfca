"""The two models of the comparison, of equal shape, what times their training, and a process that disturbs it."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anndata as ad
import numpy as np
import scvi
import torch
from lightning.pytorch.callbacks import Callback

from cfmvc_scvi import CFMVC
from cfmvc_scvi.cells.count_loader import CountLoader
from cfmvc_scvi.cells.count_source import MemoryCounts

#: Clock of all timings: seconds that pass, or (``--clock cpu``) seconds of this process on a processor.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = ["wall"]
N_HIDDEN, N_LATENT, N_TECHNICAL = 256, 32, 8
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def set_clock(name: str) -> None:
    """Time by the clock of this name."""
    _clock[0] = name


def now() -> float:
    """Reading of the clock in seconds."""
    return CLOCKS[_clock[0]]()


@contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """A process that keeps one core busy, in a session of its own, as that of another user has."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) if wanted else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def new_cfmvc(adata: ad.AnnData, **kwargs: Any) -> CFMVC:
    """Ours, with as many hidden layers in encoder and decoder as SCVI has."""
    CFMVC.setup_anndata(adata)
    return CFMVC(
        adata,
        n_latent=N_LATENT,
        n_latent_technical=N_TECHNICAL,
        n_hidden=N_HIDDEN,
        n_layers=2,
        **({"n_layers_decoder": 2} | kwargs),
    )


def new_scvi(adata: ad.AnnData) -> scvi.model.SCVI:
    """SCVI with the same hidden layers and 40 latent dimensions."""
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    return scvi.model.SCVI(adata, n_hidden=N_HIDDEN, n_latent=N_LATENT + N_TECHNICAL, n_layers=2, gene_likelihood="nb")


class EpochTimes(Callback):
    """Seconds of every epoch of a fit, the first (which warms up) beside the others."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Any, plan: Any) -> None:
        self._start = now()

    def on_train_epoch_end(self, trainer: Any, plan: Any) -> None:
        self.seconds.append(now() - self._start)

    @property
    def later(self) -> float:
        """Median of the epochs after the first, or the only one."""
        return float(np.median(self.seconds[1:] or self.seconds))


def seconds(function: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = now()
    function()
    return now() - start


def products_alone(batch_size: int, n_genes: int, repeats: int) -> float:
    """Seconds of one step's matrix products of :func:`new_cfmvc`, forward and backward, and of nothing else."""
    latent, hidden = N_LATENT + N_TECHNICAL, N_HIDDEN
    # inputs and outputs of every layer, and whether a gradient by its input is needed
    layers = [
        (n_genes, hidden, False),
        (n_genes, N_LATENT, False),
        (hidden, hidden, True),
        (hidden, 2 * latent, True),
        (latent, hidden, True),
        (hidden, hidden, True),
        (latent, n_genes, True),
        (hidden, n_genes, True),
    ]
    arrays = []
    for n_in, n_out, by_input in layers:
        x, w, y = (torch.randn(*shape) for shape in ((batch_size, n_in), (n_out, n_in), (batch_size, n_out)))
        arrays.append((x, w, y, torch.empty_like(x), torch.empty_like(w), torch.empty_like(y), by_input))

    def step() -> None:
        for x, w, y, x_out, w_out, y_out, by_input in arrays:
            torch.mm(x, w.T, out=y_out)
            torch.mm(y.T, x, out=w_out)
            if by_input:
                torch.mm(y, w, out=x_out)

    step()
    return float(np.median([seconds(step) for _ in range(repeats)]))


def fit_options(n_epochs: int, batch_size: int, callback: Callback) -> dict[str, Any]:
    """Arguments of a fit without validation, the same for both models."""
    return {"max_epochs": n_epochs, "batch_size": batch_size, "train_size": 1.0, "callbacks": [callback], **QUIET}


def step_parts(adata: ad.AnnData, batch_size: int, n_steps: int = 30) -> dict[str, float]:
    """Median milliseconds of the parts of a step of stage 1, outside Lightning, and of a step inside it."""
    from cfmvc_scvi.likelihood.fused_loss import reconstruction_loss
    from cfmvc_scvi.module.elbo import draw_with_kl

    model = new_cfmvc(adata)
    epochs = EpochTimes()
    model.train_vae(**fit_options(4, batch_size, epochs))
    module, source = model.module.train(), _source(model)
    parameters = [p for part in module.vae_parts for p in part.parameters()]

    optimizer = torch.optim.Adam(parameters, fused=True)
    loader = CountLoader(source, np.arange(adata.n_obs), batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    times = []
    for _ in range(n_steps):
        marks = [("", now())]

        def mark(name: str, marks: list = marks) -> None:
            marks.append((name, now()))

        batch = next(batches)
        x = batch.lognorm
        mark("batch and encoder input")
        q = module.encoder(x, batch.context.codes, batch.context.continuous)
        mark("encoder")
        z, *kl = draw_with_kl(q.mean, q.logvar, *module._technical_prior(batch.context.batch))
        mark("draw and KL")
        features = module.decoder.features(z, batch.context.batch)
        mark("decoder but for its last layer")
        last = module.decoder.output
        loss = reconstruction_loss(features, last.weight, last.bias, module.likelihood.bounded_log_theta, batch)
        mark("last layer, and likelihood with its gradient")
        loss = loss + sum(kl)
        optimizer.zero_grad()
        loss.backward()
        mark("backward")
        torch.nn.utils.clip_grad_norm_(parameters, 50.0)
        optimizer.step()
        mark("clipping and Adam")
        times.append({name: 1e3 * (b - a) for (_, a), (name, b) in zip(marks, marks[1:], strict=False)})
    parts = {name: float(np.median([t[name] for t in times])) for name in times[0]}
    parts["sum"] = sum(parts.values())
    parts["step in train_vae"] = 1e3 * epochs.later / (adata.n_obs // batch_size)
    parts["matrix products alone"] = 1e3 * products_alone(batch_size, adata.n_vars, 20)
    return parts


def last_layer_times(batch_size: int, n_genes: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of last layer, softmax and likelihood with their gradients, in turn with the products."""
    from cells import simulated_cells
    from scvi.distributions import NegativeBinomial

    from cfmvc_scvi.likelihood.fused_loss import reconstruction_loss

    model = new_cfmvc(simulated_cells(batch_size, n_genes))
    batch = next(_source(model).batches(np.arange(batch_size), batch_size))
    dense, library = batch.counts.dense(), batch.library.unsqueeze(1)
    h = torch.randn(batch_size, N_HIDDEN, requires_grad=True)
    weight = (0.05 * torch.randn(n_genes, N_HIDDEN)).requires_grad_()
    log_theta, bias = (torch.zeros(n_genes, requires_grad=True) for _ in range(2))

    def scvi_tools() -> None:
        mean = torch.softmax(torch.nn.functional.linear(h, weight, bias), dim=1) * library
        (-NegativeBinomial(mu=mean, theta=log_theta.exp()).log_prob(dense).sum(dim=1).mean()).backward()

    def ours() -> None:
        reconstruction_loss(h, weight, bias, log_theta, batch).backward()

    def products() -> None:
        logits = h @ weight.T
        logits.backward(logits)

    calls = {"scvi-tools, ms": scvi_tools, "ours, ms": ours, "products alone, ms": products}
    times = [{name: 1e3 * seconds(call) for name, call in calls.items()} for _ in range(repeats + 1)]
    return {name: float(np.median([t[name] for t in times[1:]])) for name in calls}


def _source(model: CFMVC) -> MemoryCounts:
    return MemoryCounts(model._reader.read(model.adata))
