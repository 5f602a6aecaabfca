"""Saving that is killed, or that runs out of space: the folder must hold the old model or the new one, whole.

    python benchmarks/robustness/interrupted_writes.py [number of kills]

Forks a process that saves two models into one folder in turn, kills it after a random time and loads what is there.
Then saves under a limit on the size of files, which stops a write half way as a full disk does.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import scvi

from cfmvc_scvi import CFMVC, data

N_KILLS = 100


def models() -> list[CFMVC]:
    adata = data.simulate_perturbation(n_cells=300, n_genes=200, n_perturbations=3)
    found = []
    for seed in (0, 1):
        scvi.settings.seed = seed
        copy = adata.copy()
        CFMVC.setup_anndata(copy, combination_delimiter="+")
        found.append(CFMVC(copy, n_latent=6))
        found[-1].train(vae_max_epochs=1, flow_max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return found


def save_forever(both: list[CFMVC], folder: str) -> None:
    while True:
        for model in both:
            model.save(folder, overwrite=True)


def which(folder: str, latents: list[np.ndarray], adata) -> str:
    found = CFMVC.load(folder, adata=False).get_latent_representation(adata)
    same = [np.array_equal(found, latent) for latent in latents]
    return ["first", "second"][same.index(True)] if any(same) else "NEITHER (!)"


def kill_savers(both: list[CFMVC], n_kills: int) -> bool:
    latents = [model.get_latent_representation() for model in both]
    outcomes: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = f"{name}/model"
        both[0].save(folder)
        for _ in range(n_kills):
            child = os.fork()
            if child == 0:
                save_forever(both, folder)
            time.sleep(rng.uniform(0.0, 0.8))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            try:
                outcomes[which(folder, latents, both[0].adata)] += 1
            except (ValueError, OSError) as error:
                outcomes[f"CANNOT BE LOADED (!): {error}"] += 1
        both[1].save(folder, overwrite=True)
        left = sorted(path.name for path in Path(folder).iterdir())
    print(f"{n_kills} savers killed; the folder held: {dict(outcomes)}")
    print(f"files after one more save: {len([f for f in left if not f.startswith('.')])} of the model, "
          f"{len([f for f in left if f.startswith('.')])} left aside by killed processes")  # fmt: skip
    return set(outcomes) <= {"first", "second"}


def run_out_of_space(both: list[CFMVC]) -> bool:
    fine = True
    latents = [model.get_latent_representation() for model in both]
    with tempfile.TemporaryDirectory() as name:
        folder = f"{name}/model"
        both[0].save(folder)
        before = sorted(os.listdir(folder))
        for action in ("save", "save with data", "train with checkpoints"):
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
                try:
                    if action == "train with checkpoints":
                        both[1].train_flow(2, checkpoint_dir=f"{name}/c", accelerator="cpu", enable_progress_bar=False)
                    else:
                        both[1].save(folder, overwrite=True, save_anndata=action == "save with data")
                except (OSError, RuntimeError) as error:
                    print(f"{action}: {type(error).__name__}: {error}", flush=True)
                    os._exit(0)
                os._exit(1)
            failed_as_it_should = os.waitpid(child, 0)[1] == 0
            untouched = sorted(os.listdir(folder)) == before and which(folder, latents, both[0].adata) == "first"
            print(f"{action}: the earlier model is {'whole' if untouched else 'BROKEN (!)'}", flush=True)
            fine &= failed_as_it_should and untouched
        leftover = [p for p in Path(name).rglob("*") if p.name.startswith(".")]
        print(f"files left aside: {len(leftover)}")
    return fine and not leftover


def main() -> int:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    n_kills = int(sys.argv[1]) if len(sys.argv) > 1 else N_KILLS
    both = models()
    fine = kill_savers(both, n_kills)
    return int(not (run_out_of_space(both) and fine))


if __name__ == "__main__":
    sys.exit(main())
