"""Peak memory of one data set above what it takes itself: ``python memory.py N_CELLS N_GENES`` prints MB."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scvi
from cells import simulated_cells
from models import QUIET, new_cfmvc


def resident() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def peak_above(base: float, function: Callable[[], Any]) -> tuple[Any, float]:
    """Result of a call, and the highest resident memory during it above ``base``, in MB."""
    highest, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.is_set():
            highest.append(max(highest.pop(), resident()))
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        result = function()
    finally:
        done.set()
        thread.join()
    return result, highest[0] - base


def main() -> None:
    """Print the peaks of setup, of both stages and of a prediction."""
    n_cells, n_genes = map(int, sys.argv[1:3])
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed, scvi.settings.verbosity = 0, logging.ERROR
    warm = new_cfmvc(simulated_cells(400, n_genes))  # what the libraries take is not counted
    warm.train(vae_max_epochs=1, flow_max_epochs=1, **QUIET)
    warm.predict_perturbation(perturbation="P1")
    del warm
    adata = simulated_cells(n_cells, n_genes)
    gc.collect()
    base = resident()
    print(f"data MB={(adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes) / 2**20:.0f}")
    model, peak = peak_above(base, lambda: new_cfmvc(adata))
    print(f"setup={peak:.0f}")
    _, peak = peak_above(base, lambda: model.train_vae(1, batch_size=512, **QUIET))
    print(f"stage 1={peak:.0f}")
    _, peak = peak_above(base, lambda: model.train_flow(1, batch_size=1024, **QUIET))
    print(f"stage 2={peak:.0f}")
    cells = np.arange(min(n_cells, 5000))
    base_predict = resident()
    result, peak = peak_above(base_predict, lambda: model.predict_perturbation(perturbation="P1", indices=cells))
    print(f"predict 5,000={peak:.0f}")
    print(f"its result={result.X.nbytes / 2**20:.0f}")


if __name__ == "__main__":
    main()
