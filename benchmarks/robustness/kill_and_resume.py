"""Training killed with SIGKILL at random moments and resumed, against a run that was never interrupted.

    python benchmarks/robustness/kill_and_resume.py [number of kills]

Every row is a run of its own: a process is killed after a random time of its training, a second process resumes it.
Prints the largest difference of the latents and predictions, and exits with 1 when one is not zero.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_KILLS = 10


def train(folder: Path, checkpoints: bool) -> None:
    """What each process does; tells when the training begins."""
    import logging

    import scvi

    from cfmvc_scvi import CFMVC, data

    logging.disable(logging.WARNING)
    scvi.settings.seed = 0
    adata = data.simulate_perturbation(n_cells=1000, n_genes=150, n_perturbations=4)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model = CFMVC(adata)
    print("training", flush=True)
    where = {"checkpoint_dir": folder / "checkpoints", "resume": True} if checkpoints else {}
    model.train(vae_max_epochs=15, flow_max_epochs=25, accelerator="cpu", enable_progress_bar=False, **where)
    predicted = model.predict_perturbation(perturbation=["P1", "P2"]).X
    np.savez(folder / "result.npz", latents=model.get_latent_representation(latent="both"), predicted=predicted)
    print("done", flush=True)


def start(folder: Path, checkpoints: bool = True) -> subprocess.Popen:
    arguments = [sys.executable, __file__, "--run", str(folder), str(int(checkpoints))]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def wait_for(process: subprocess.Popen, word: str) -> bool:
    return any(line.strip() == word for line in process.stdout)


def finish(folder: Path, checkpoints: bool = True) -> tuple[dict[str, np.ndarray], float]:
    """Results of a process that runs to its end, and the seconds of its training."""
    process = start(folder, checkpoints)
    wait_for(process, "training")
    began = time.perf_counter()
    if not wait_for(process, "done"):
        raise RuntimeError("the process ended before its training did")
    seconds = time.perf_counter() - began
    process.wait()
    return dict(np.load(folder / "result.npz")), seconds


def reached(folder: Path) -> str:
    path = folder / "checkpoints" / "checkpoint.json"
    if not path.exists():
        return "before the first epoch"
    content = json.loads(path.read_text())["content"]
    return f"{content['stage']}, {content['epoch']} epochs{', finished' if content['finished'] else ''}"


def main() -> int:
    n_kills = int(sys.argv[1]) if len(sys.argv) > 1 else N_KILLS
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "plain").mkdir()
        expected, seconds = finish(root / "plain", checkpoints=False)
        (root / "whole").mkdir()
        _, with_checkpoints = finish(root / "whole")
        print(
            f"uninterrupted: {seconds:.1f} s of training; with a checkpoint after every epoch: {with_checkpoints:.1f} s"
        )
        print(f"{'killed after, s':>15}  {'state found':32} {'latents differ by':>18} {'predictions by':>15}")
        worst = 0.0
        for i, moment in enumerate(np.random.default_rng(0).uniform(0.02, 0.95, n_kills) * with_checkpoints):
            folder = root / str(i)
            folder.mkdir()
            process = start(folder)
            wait_for(process, "training")
            time.sleep(moment)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            state = reached(folder)
            found, _ = finish(folder)
            differences = [float(np.abs(found[key] - expected[key]).max()) for key in ("latents", "predicted")]
            worst = max(worst, *differences)
            print(f"{moment:15.2f}  {state:32} {differences[0]:18.3g} {differences[1]:15.3g}", flush=True)
    print(f"{n_kills} kills; largest difference {worst:g}")
    return int(worst > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        train(Path(sys.argv[2]), bool(int(sys.argv[3])))
    else:
        sys.exit(main())
