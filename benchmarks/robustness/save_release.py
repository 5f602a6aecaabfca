"""Save a small model of this version into tests/saved_models/<version>, with what it predicts.

    python benchmarks/robustness/save_release.py

To be run once for every release; later versions must load it and predict the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scvi

import cfmvc_scvi
from cfmvc_scvi import CFMVC, data

ROOT = Path(__file__).parents[2]


def main() -> None:
    scvi.settings.seed = 0
    adata = data.simulate_perturbation(n_cells=120, n_genes=30, n_cell_types=2, n_perturbations=2, n_pairs=0)
    adata.layers.clear()
    adata.uns.clear()
    adata.obsm = {"spatial": adata.obsm["spatial"]}
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model = CFMVC(adata, n_latent=4, n_latent_technical=2, n_hidden=8, n_basis=2, n_hidden_flow=8)
    model.train(vae_max_epochs=20, flow_max_epochs=40, accelerator="cpu", enable_progress_bar=False)
    folder = ROOT / "tests" / "saved_models" / cfmvc_scvi.__version__
    model.save(str(folder), overwrite=True)
    cells = adata.copy()
    cells.obs = cells.obs.loc[:, [name for name in cells.obs if not name.startswith("_scvi")]]
    cells.uns.clear()
    cells.write_h5ad(folder / "cells.h5ad", compression="gzip")
    predicted = model.predict_perturbation(perturbation=["P1", "P1+P2"], return_type="lognorm").X
    np.savez_compressed(
        folder / "expected.npz", latents=model.get_latent_representation(latent="both"), predicted=predicted
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.relative_to(ROOT)}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
