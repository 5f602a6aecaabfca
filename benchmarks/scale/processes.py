"""Training over two processes beside one: losses, gradients, weights, a killed process, wall time.

    OMP_NUM_THREADS=1 python benchmarks/scale/processes.py
    python benchmarks/scale/processes.py --cells 50000 --genes 2000 --accelerator gpu    two GPUs, NCCL

The same simulated screen is trained by one process and by two that share every batch (``devices=2``); then by two of
which one is killed in the middle of an epoch, once in each stage, and again from the checkpoint. Every run is a
process of its own, which Lightning starts a second time. Printed are the losses of every epoch, the largest difference
of the gradients in the first step of each stage and of the weights at the end, whether the saved model loads, and
seconds of ``train``. Exits with 1 where the two processes end with different models, or a resumed run with another one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import scvi
from lightning.pytorch.callbacks import Callback

from cfmvc_scvi import CFMVC, data

STAGES = {"VAETrainingPlan": "stage 1", "FlowTrainingPlan": "stage 2"}
LOSSES = {"stage 1": ("elbo_train", "elbo_validation"), "stage 2": ("flow_loss_train", "flow_loss_validation")}


class FirstGradients(Callback):
    """Keeps the gradients of the first step of each stage, as they are when the processes have averaged them."""

    def __init__(self) -> None:
        self.found: dict[str, np.ndarray] = {}

    def on_before_optimizer_step(self, trainer, plan, optimizer) -> None:
        stage = STAGES[type(plan).__name__]
        if stage not in self.found:
            gradients = [p.grad.detach().cpu().numpy().ravel() for p in plan.parameters() if p.grad is not None]
            self.found[stage] = np.concatenate(gradients)


class Kill(Callback):
    """Kills the last process in the middle of an epoch."""

    def __init__(self, stage: str, epoch: int) -> None:
        self.at = (stage, epoch)

    def on_train_batch_start(self, trainer, plan, batch, batch_idx) -> None:
        now = (STAGES[type(plan).__name__], trainer.current_epoch)
        if now == self.at and batch_idx == 1 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def run(arguments: argparse.Namespace) -> None:
    """One training; every process leaves what it ended with, process 0 the saved model too."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    scvi.settings.seed = 0
    adata = data.simulate_perturbation(n_cells=arguments.cells, n_genes=arguments.genes, n_perturbations=5)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model, first = CFMVC(adata), FirstGradients()
    callbacks: list[Callback] = [first]
    if arguments.kill:
        callbacks.append(Kill(arguments.kill, arguments.epochs // 2))
    folder, name = Path(arguments.run), arguments.name
    where = {"checkpoint_dir": folder / "state", "resume": True} if arguments.resumable else {}
    began = time.perf_counter()
    model.train(
        vae_max_epochs=arguments.epochs,
        flow_max_epochs=arguments.epochs,
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        enable_progress_bar=False,
        callbacks=callbacks,
        **where,
    )
    seconds = time.perf_counter() - began
    model.save(str(folder / name), overwrite=True)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    weights = np.concatenate([value.cpu().numpy().ravel() for value in model.module.state_dict().values()])
    predicted = np.asarray(model.predict_perturbation(perturbation="P1").X)
    gradients = {f"gradients of {stage}": values for stage, values in first.found.items()}
    np.savez(folder / f"{name} {rank}.npz", weights=weights, predicted=predicted, **gradients)
    history = {key: frame.iloc[:, 0].astype(float).tolist() for key, frame in model.history.items()}
    (folder / f"{name} {rank}.json").write_text(json.dumps({"seconds": seconds, "history": history}))


def start(folder: Path, arguments: argparse.Namespace, name: str, devices: int, *more: str) -> tuple[int, float]:
    """Exit code and seconds of a run; Lightning starts the further processes."""
    own = ["--cells", arguments.cells, "--genes", arguments.genes, "--epochs", arguments.epochs]
    own += ["--accelerator", arguments.accelerator, "--devices", devices, "--run", folder, "--name", name, *more]
    began = time.perf_counter()
    command = [sys.executable, __file__, *map(str, own)]
    code = subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder).returncode
    return code, time.perf_counter() - began


def read(folder: Path, name: str, rank: int) -> tuple[dict[str, np.ndarray], dict]:
    """What a process left."""
    return dict(np.load(folder / f"{name} {rank}.npz")), json.loads((folder / f"{name} {rank}.json").read_text())


def largest(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--devices", type=int, default=2)
    for hidden in ("--run", "--name", "--kill"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--resumable", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments)
        return 0
    with TemporaryDirectory() as name:
        return compare(Path(name), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> int:
    n = arguments.devices
    print(f"{arguments.cells} cells x {arguments.genes} genes, {arguments.accelerator}, {n} processes beside one")
    for name, devices in (("one", 1), ("several", n)):
        code, _ = start(folder, arguments, name, devices)
        if code:
            print(f"the run with devices={devices} ended with {code}")
            return 1
    (one, about_one), (several, about_several) = read(folder, "one", 0), read(folder, "several", 0)
    for stage, losses in LOSSES.items():
        print(f"\n{stage}: loss per epoch, one process | {n} processes")
        for loss in losses:
            for epoch, pair in enumerate(zip(about_one["history"][loss], about_several["history"][loss], strict=True)):
                print(f"  {loss:22s} {epoch:3d} {pair[0]:14.6f} | {pair[1]:14.6f}")
    print()
    for stage in LOSSES:
        key = f"gradients of {stage}"
        size = float(np.abs(one[key]).max())
        print(f"first gradient of {stage}: largest difference {largest(one[key], several[key]):.2g} of {size:.3g}")
    print(f"weights at the end: largest difference {largest(one['weights'], several['weights']):.2g}")
    print(f"predicted counts: largest difference {largest(one['predicted'], several['predicted']):.2g}", end=" ")
    print(f"of {one['predicted'].max():.4g}")
    last, about_last = read(folder, "several", n - 1)
    between = max(largest(several[key], last[key]) for key in ("weights", "predicted"))
    print(f"first process against last: weights and predictions {between:.2g}, ", end="")
    same_history = about_last["history"] == about_several["history"]
    print("the same history" if same_history else "ANOTHER HISTORY")
    loaded = CFMVC.load(str(folder / "several"), adata=False)
    weights = np.concatenate([value.cpu().numpy().ravel() for value in loaded.module.state_dict().values()])
    print(f"the saved model loads: weights differ by {largest(weights, several['weights']):.2g}")
    print(f"seconds of train: {about_one['seconds']:.1f} in one process, ", end="")
    print(f"{about_last['seconds']:.1f} in {n} (of the last process, which is started while the first one waits)")
    good = between == 0.0 and same_history
    for stage in LOSSES:
        code, seconds = start(folder, arguments, "killed", n, "--resumable", "--kill", stage)
        state = json.loads((folder / "state" / "checkpoint.json").read_text())["content"]
        print(f"\na process killed in {stage}: the job ended with {code} after {seconds:.0f} s in all, ", end="")
        print(f"its state is of {state['epoch']} epochs of the {state['stage']}")
        code, _ = start(folder, arguments, "resumed", n, "--resumable")
        difference = largest(read(folder, "resumed", 0)[0]["weights"], several["weights"]) if not code else np.nan
        print(f"resumed: ended with {code}; weights against the run without a kill: {difference:.2g}")
        good = good and difference == 0.0
        for path in (folder / "state").iterdir():
            path.unlink()
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
