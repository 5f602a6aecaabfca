"""Trains in two processes and in one, for ``test_processes.py``; run in a process of its own, ``ranks.py FOLDER``.

Two ways start the processes: copies of this one, which has imported everything once, and Lightning itself, which runs
a script again: ``ranks.py FOLDER script``. Every process leaves a file per scenario in the folder.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from cfmvc_scvi import CFMVC, data
from cfmvc_scvi._types import CellSplit
from cfmvc_scvi.cells.count_loader import CountLoader
from cfmvc_scvi.cells.count_source import count_source
from cfmvc_scvi.cells.pairs import LatentDataModule
from cfmvc_scvi.flow import get_coupling
from cfmvc_scvi.train import FlowTrainingPlan, VAETrainingPlan, processes

N = 2
SMALL = {"n_latent": 6, "n_latent_technical": 3, "n_hidden": 16, "n_basis": 4, "n_hidden_flow": 16}
#: Batches that two processes cannot halve, and a training that stops itself after four epochs.
TRAINING = {"vae_max_epochs": 9, "flow_max_epochs": 9, "batch_size": 51, "flow_batch_size": 37}
STOPPING = {"early_stopping": True, "early_stopping_patience": 2, "early_stopping_min_delta": 1e9}
TRAINING |= STOPPING | {"early_stopping_warmup_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}


class At(Callback):
    """Does something in one process, in the middle of an epoch of a stage."""

    def __init__(self, rank: int, stage: str, epoch: int, act) -> None:
        self.at, self.act = (rank, stage, epoch), act

    def on_train_batch_start(self, trainer, plan, batch, batch_idx) -> None:
        stage = "flow" if isinstance(plan, FlowTrainingPlan) else "vae"
        if (trainer.global_rank, stage, trainer.current_epoch) == self.at and batch_idx == 2:
            self.act()


def made() -> CFMVC:
    scvi.settings.seed = 0
    adata = data.simulate_perturbation(n_cells=301, n_genes=50, n_perturbations=3)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    return CFMVC(adata, **SMALL)


def leave(folder: Path, name: str, model: CFMVC, rank: int) -> None:
    weights = {key: value.numpy() for key, value in model.module.state_dict().items()}
    history = {f"history {key}": frame.to_numpy(dtype=float) for key, frame in model.history.items()}
    predicted = np.asarray(model.predict_perturbation(perturbation="P1").X)
    np.savez(folder / f"{name}{rank}.npz", predicted=predicted, **weights, **history)


def trained(folder: Path, rank: int, name: str, **arguments: Any) -> None:
    model = made()
    model.train(**(TRAINING | arguments))
    model.save(str(folder / name))
    CFMVC.load(str(folder / name), adata=False)  # it is there for every process
    leave(folder, name, model, rank)


# ---- what each of two processes does ------------------------------------------------------------------------------


def both(folder: Path, rank: int) -> None:
    trained(folder, rank, "both", devices=N)


def killed(folder: Path, rank: int) -> None:
    kill = At(1, "vae", 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    trained(folder, rank, "killed", devices=N, checkpoint_dir=folder / "state", resume=True, callbacks=[kill])


def resumed(folder: Path, rank: int) -> None:
    trained(folder, rank, "resumed", devices=N, checkpoint_dir=folder / "state", resume=True)


def unwritable(folder: Path, rank: int) -> None:
    """The folder of the checkpoints is replaced by a file: all processes stop, with a usable model."""
    state, model = folder / "full", made()

    def replace() -> None:
        shutil.rmtree(state)
        state.touch()

    try:
        model.train(**TRAINING, devices=N, checkpoint_dir=state, callbacks=[At(0, "flow", 1, replace)])
    except OSError as error:
        model.predict_perturbation(perturbation="P1")
        (folder / f"unwritable{rank}.txt").write_text(f"{model.is_flow_trained_} {type(error).__name__}")


def words(folder: Path, rank: int) -> None:
    """What the processes tell each other, and the gradients of a batch that they share."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/words", rank=rank, world_size=N)
    torch.manual_seed(rank)
    processes.share_random_state(torch.device("cpu"))
    said: dict[str, Any] = {
        "first": processes.is_first(),
        "total": processes.total(torch.tensor([rank + 1.0])).item(),
        "from first": processes.from_first(lambda: f"made by {rank}"),
        "random": torch.rand(1).item(),
        "gradients": differences(rank),
    }
    try:
        processes.from_first(lambda: 1 / 0)
    except (ZeroDivisionError, RuntimeError) as error:
        said["error"] = f"{type(error).__name__}: {error}"
    model, target = made(), folder / "by one"
    model.save(str(target))
    said["there"] = (target / "model.json").exists()
    try:
        model.save(str(target))
    except (ValueError, RuntimeError) as error:
        said["taken"] = f"{type(error).__name__}: {error}"
    (folder / f"words{rank}.json").write_text(json.dumps(said))
    distributed.barrier()


def differences(rank: int) -> dict[str, list[float]]:
    """Largest difference, and size, of the gradients of split batches against those of whole ones, for both stages."""
    model = made()
    module, cells = model.module, model._read(model.adata)
    rows, alone = np.arange(len(cells)), (0, 1)
    source = count_source(cells)
    split = CellSplit(rows, rows[:0], rows[:0])
    cache = model._latents()
    latents = cache.flow_data(torch.zeros(1), torch.ones(1), model.vocabulary.members(cache.conditions))
    pairs = LatentDataModule(latents, split, get_coupling("independent"), "control", 37)

    def flow_batch(shard: tuple[int, int]) -> Any:
        loader = pairs._make(rows)
        loader.shard = shard
        return next(iter(loader))

    stages = {
        "vae": (VAETrainingPlan(module), lambda shard: next(iter(CountLoader(source, rows, 51, shard=shard)))),
        "flow": (FlowTrainingPlan(module), flow_batch),
    }
    return {name: _difference(plan, batch(alone), batch((rank, N))) for name, (plan, batch) in stages.items()}


def _difference(plan, whole, part) -> list[float]:
    class Trainer:
        is_last_batch, current_epoch, global_step = False, 0, 0

    plan.setup("fit")
    plan._trainer = Trainer()
    found = []
    for batch in (whole, part):
        torch.manual_seed(0)
        network = plan if batch is whole else DistributedDataParallel(Step(plan))
        plan.zero_grad()
        (network.training_step(batch, 0) if batch is whole else network(batch)).backward()
        found.append(torch.cat([p.grad.ravel() for p in plan.parameters() if p.grad is not None]))
    assert len(whole) > len(part) > 0
    return [(found[0] - found[1]).abs().max().item(), found[0].abs().max().item()]


class Step(torch.nn.Module):
    """A plan whose forward pass is its training step, as Lightning has it under DDP."""

    def __init__(self, plan) -> None:
        super().__init__()
        self.plan = plan

    def forward(self, batch):
        return self.plan.training_step(batch, 0)


# ---- what starts them ---------------------------------------------------------------------------------------------


def start(scenario, folder: Path, seconds: float = 60.0) -> list[int | None]:
    """Exit codes of two copies of this process that run a scenario."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_run, args=(scenario, folder, rank, port)) for rank in range(N)]
    for process in ranks:
        process.start()
    end = time.monotonic() + seconds
    for process in ranks:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in ranks]


def _run(scenario, folder: Path, rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(N)}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    scenario(folder, rank)


def main() -> None:
    folder = Path(sys.argv[1])
    logging.disable(logging.WARNING)
    if sys.argv[2:] == ["script"]:
        trained(folder, int(os.environ.get("LOCAL_RANK", 0)), "script", devices=N)
        return
    codes = {scenario.__name__: start(scenario, folder) for scenario in (words, both, killed)}
    shutil.copytree(folder / "state", folder / "state of two")
    codes |= {scenario.__name__: start(scenario, folder) for scenario in (resumed, unwritable)}
    trained(folder, 0, "alone")
    trained(folder, 0, "one after two", checkpoint_dir=folder / "state of two", resume=True)
    trained(folder, 0, "copies", devices=N, strategy="ddp_notebook")
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main()
