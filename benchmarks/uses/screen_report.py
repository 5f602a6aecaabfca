"""The page of a screen of 2,000 conditions: time to make it, and its size.

    python benchmarks/uses/screen_report.py [--conditions 2000] [--out screen.html]

Simulated, one cell type, 300 genes, about 10 cells a condition; trained for one and two epochs, since the page is what
is measured.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path

from cfmvc_scvi import CFMVC, data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("screen.html"))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    n = asked.conditions
    adata = data.simulate_perturbation(
        12 * n + 2000, 300, 1, 1, n, n_pairs=0, control_fraction=0.1, spatial=False, store_true_mean=False
    )
    CFMVC.setup_anndata(adata, spatial_key=None)
    model = CFMVC(adata)
    model.train(vae_max_epochs=1, flow_max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    start = time.perf_counter()
    model.get_perturbation_effect("P1")
    print(f"first effect, with what all others share: {time.perf_counter() - start:.1f} s", flush=True)
    start = time.perf_counter()
    model.report_screen(asked.out, show_progress=False)
    size = asked.out.stat().st_size / 1e6
    print(f"{n} conditions: {time.perf_counter() - start:.1f} s, {size:.2f} MB")


if __name__ == "__main__":
    main()
