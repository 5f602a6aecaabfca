"""Prediction of a whole screen: killed and resumed, by two processes at once, time and memory, first and later calls.

    OMP_NUM_THREADS=1 python benchmarks/scale/predictions.py                      all parts at the sizes below
    OMP_NUM_THREADS=1 python benchmarks/scale/predictions.py kills --kills 20     one part: kills, shards, cost or calls

A model of a simulated screen of PERTURBATIONS x CELLS x GENES in two cell types is trained for two epochs. What
predicts are processes of their own, copies (fork) of one that has loaded the model and predicted nothing.

- kills: a process that predicts the screen is killed with SIGKILL at random moments and started again, until it is
  through; the files are compared byte by byte with those of a process that was never interrupted.
- shards: two processes write half of the screen each, at once, into one store.
- cost: seconds and peak memory for effects and for cells, and disk.
- calls: seconds of the first call for a condition, and of a second one for the same.

Exits with 1 where stores differ.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import resource
import shutil
import signal
import sys
import time
import warnings
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import numpy as np
import scvi
import torch
from screen import write_screen

from cfmvc_scvi import CFMVC

PARTS = ("kills", "shards", "cost", "calls")
#: What is predicted: type of the result, ending of the store, and every how many-th perturbation.
KINDS = [("effect", ".zarr", 4), ("effect", ".h5ad", 4), ("counts", ".zarr", 15), ("counts", ".h5ad", 15)]


def quiet() -> None:
    """No warnings, no log, one thread."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    scvi.settings.seed = 0


def make_model(folder: Path, n: int, n_cells: int, n_genes: int) -> None:
    """Simulate, train for two epochs, save."""
    path = folder / "screen.h5ad"
    write_screen(path, n, n_cells, n_genes, 2)
    adata = ad.read_h5ad(path)
    CFMVC.setup_anndata(adata, perturbation_key="perturbation", labels_key="cell_type")
    model = CFMVC(adata)
    model.train(vae_max_epochs=2, flow_max_epochs=2, accelerator="cpu", enable_progress_bar=False)
    model.get_perturbation_effect("P0")  # what intervals rest on is worked out once, and saved
    model.save(folder / "model", save_anndata=True)


def peak(*, anew: bool = False) -> float:
    """Peak resident memory in MB, on Linux since the last call with ``anew``, which is what is resident then."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def predict(pipe: Connection, model: CFMVC, out: Path, kind: str, every: int, shard: tuple[int, int] | None) -> None:
    """What each process does: predict its part, and say what it took."""
    before = peak(anew=True)
    names = chosen(model, every)
    began = time.perf_counter()
    whole = model.predict_screen(out, names, return_type=kind, shard=shard, show_progress=False)
    seconds = time.perf_counter() - began
    pipe.send({"seconds": seconds, "rows": 0 if whole is None else whole.n_obs, "peak": peak(), "before": before})


def chosen(model: CFMVC, every: int) -> list[str]:
    """Every so many-th perturbation."""
    return [name for name in model.vocabulary.names if int(name[1:]) % every == 0]


class Worker:
    """A process of its own that predicts, a copy of this one with the model loaded."""

    def __init__(self, model: CFMVC, out: Path, kind: str, every: int, shard: tuple[int, int] | None = None) -> None:
        context = get_context("fork")
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=predict, args=(theirs, model, out, kind, every, shard))
        self.process.start()
        theirs.close()

    def finish(self) -> dict[str, float]:
        """What it says at its end."""
        said = self.pipe.recv()
        self.process.join()
        return said

    def kill(self) -> bool:
        """Kill it; whether that is what ended it."""
        if self.process.exitcode is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL


def checksum(out: Path) -> str:
    """Of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    for path in files:
        digest.update(f"{path.relative_to(out)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def size(out: Path) -> float:
    """MB on disk."""
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files) / 1e6


def parts_of(out: Path) -> Path:
    """Folder of the blocks of a store."""
    return out.with_name(f"{out.name}.parts")


def clear(out: Path) -> None:
    """Remove a store and its blocks."""
    for path in (out, parts_of(out)):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()


def kills(folder: Path, model: CFMVC, kinds: list, n_kills: int) -> bool:
    """Every kind of store killed at random moments of its work, and compared."""
    rng, equal = np.random.default_rng(0), True
    for kind, ending, every in kinds:
        whole, out = folder / f"whole{ending}", folder / f"killed{ending}"
        clear(whole), clear(out)
        seconds = Worker(model, whole, kind, every).finish()["seconds"]
        killed, reached = 0, []
        while killed < n_kills:
            worker = Worker(model, out, kind, every)
            time.sleep(rng.uniform(0.02, 0.5) * seconds)
            killed += worker.kill()
            blocks = len(list(parts_of(out).glob("*.block")))
            reached.append("whole" if out.exists() else str(blocks))
            if out.exists():  # it was through: begin again, so that every kill meets work
                clear(out)
        Worker(model, out, kind, every).finish()
        same, left = checksum(whole) == checksum(out), [path.name for path in folder.glob(f"*{out.name}*")]
        equal &= same and left == [out.name]
        print(
            f"{kind} {ending}: {killed} kills, blocks there after each start: "
            f"{' '.join(reached)}; same bytes as uninterrupted: {same}; left beside it: "
            f"{[name for name in left if name != out.name]}",
            flush=True,
        )
        clear(whole), clear(out)
    return equal


def shards(folder: Path, model: CFMVC, kinds: list) -> bool:
    """Two processes at once into one store."""
    equal = True
    for kind, ending, every in kinds:
        whole, out = folder / f"whole{ending}", folder / f"both{ending}"
        clear(whole), clear(out)
        alone = Worker(model, whole, kind, every).finish()["seconds"]
        workers = [Worker(model, out, kind, every, (i, 2)) for i in range(2)]
        said = [worker.finish() for worker in workers]
        same = checksum(whole) == checksum(out)
        equal &= same
        print(
            f"{kind} {ending}: one process {alone:.1f} s, two at once {max(s['seconds'] for s in said):.1f} s; brought "
            f"together by {sum(s['rows'] > 0 for s in said)} of them; same bytes: {same}",
            flush=True,
        )
        clear(whole), clear(out)
    return equal


def cost(folder: Path, model: CFMVC) -> None:
    """Time and memory per condition."""
    for kind, every in (("effect", 1), ("effect", 10), ("mean", 10), ("counts", 10)):
        out = folder / "cost.zarr"
        clear(out)
        said, n = Worker(model, out, kind, every).finish(), len(chosen(model, every))
        print(
            f"{kind}: {n} conditions, {said['rows']} rows, {said['seconds']:.1f} s, {1e3 * said['seconds'] / n:.0f} ms "
            f"a condition; peak {said['peak'] - said['before']:.0f} MB above {said['before']:.0f} MB with the model; "
            f"{size(out):.1f} MB on disk",
            flush=True,
        )
        clear(out)


def calls(model: CFMVC) -> None:
    """The first call for a condition, and the second for the same, each the median of several conditions."""
    controls = model.adata[(model.adata.obs["perturbation"] == "control").to_numpy()].copy()
    ways = {
        "mean of 64 cells": lambda p: model.predict_perturbation(controls[:64].copy(), p),
        f"mean of {controls.n_obs} cells": lambda p: model.predict_perturbation(controls, p),
        f"counts of {controls.n_obs} cells": lambda p: model.predict_perturbation(controls, p, return_type="counts"),
        "effect": lambda p: model.get_perturbation_effect(p),
    }
    names = iter(model.vocabulary.names)
    for name, way in ways.items():
        way(next(names))
        seconds = []
        for p in [next(names) for _ in range(7)]:
            for _ in range(2):
                began = time.perf_counter()
                way(p)
                seconds.append(time.perf_counter() - began)
        first, later = np.median(seconds[::2]), np.median(seconds[1::2])
        print(f"{name}: first {1e3 * first:.0f} ms, later {1e3 * later:.0f} ms, ratio {first / later:.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument(
        "--sizes", type=int, nargs=3, default=(300, 20, 500), metavar=("PERTURBATIONS", "CELLS", "GENES")
    )
    parser.add_argument("--kills", type=int, default=10, help="kills of each kind of store")
    parser.add_argument("--model", type=Path, help="folder that keeps the model; made where it is missing")
    names = [kind + ending for kind, ending, _ in KINDS]
    parser.add_argument("--kinds", nargs="*", choices=names, default=names, help="stores of kills and shards")
    given = parser.parse_args()
    kinds, equal = [KINDS[names.index(name)] for name in given.kinds], True
    quiet()
    with TemporaryDirectory() as temporary:
        folder = given.model or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "model").exists():
            make_model(folder, *given.sizes)
        model = CFMVC.load(folder / "model", accelerator="cpu")
        for part in given.parts or PARTS:
            print(f"== {part}", flush=True)
            if part == "kills":
                equal &= kills(folder, model, kinds, given.kills)
            elif part == "shards":
                equal &= shards(folder, model, kinds)
            elif part == "cost":
                cost(folder, model)
            else:
                calls(model)
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
