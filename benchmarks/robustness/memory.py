"""Size of the process over 100 predictions, each on AnnData objects of its own.

python benchmarks/robustness/memory.py [number of predictions]
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import weakref

import psutil
import scvi

from cfmvc_scvi import CFMVC, data

#: Cells of the screen and genes; a fresh copy takes about 20 MB with its layer of true means.
CELLS, GENES = 2000, 500


def main() -> int:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    logging.disable(logging.WARNING)
    scvi.settings.seed = 0
    adata = data.simulate_perturbation(n_cells=CELLS, n_genes=GENES, n_perturbations=3)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model = CFMVC(adata, n_latent=6, n_hidden=16, n_hidden_flow=16)
    model.train(vae_max_epochs=1, flow_max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    process, sizes, references = psutil.Process(os.getpid()), [], []
    for _ in range(n):
        fresh = adata.copy()
        references.append(weakref.ref(fresh))
        model.predict_perturbation(fresh, "P1", indices=range(200))
        model.get_elbo(fresh, indices=range(200))
        del fresh
        gc.collect()
        sizes.append(process.memory_info().rss / 1e6)
    alive = sum(reference() is not None for reference in references)
    print(f"{'predictions':>12} {'process size, MB':>18}")
    for i in sorted({0, 1, *range(9, n, 10), n - 1}):
        print(f"{i + 1:12d} {sizes[i]:18.1f}")
    print(f"AnnData objects still alive: {alive} of {n}")
    print(f"growth from prediction {n // 5} to {n}: {sizes[-1] - sizes[n // 5 - 1]:+.1f} MB")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
