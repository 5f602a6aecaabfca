"""scGen as in its tutorial: 100 epochs of batches of 32, patience 25; run in an environment of its own.

This is the original in torch. pertpy 1.0.3's port to JAX runs too, but it sums the squared error over the batch, has
no batch norm in its decoder, and took nearly three times as long.

Predictions are decoded cells. "Change on the cell" adds to each control cell what the latent shift changes in its
reconstruction, so that the error of the reconstruction is left out.
"""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytorch_lightning
import scgen
import scvi
import torch
from exchange import CONTROL, Clock, read_fold, write_predictions

folder, budget, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
fold = read_fold(folder)
if any("+" in perturbation for perturbation in fold.asked.values()):
    raise NotImplementedError("scGen moves cells by one perturbation seen in other contexts; combinations have none")
scvi.settings.seed = seed
np.random.seed(seed)  # noqa: NPY002 - the package draws from it
lognorm = fold.lognorm()
adata = ad.AnnData(lognorm, obs=fold.cells.set_index(fold.cells.index.astype(str)))
adata.var_names = fold.genes
scgen.SCGEN.setup_anndata(adata, batch_key="perturbation", labels_key="context")
model = scgen.SCGEN(adata)
clock = Clock(budget)
model.train(
    max_epochs=100,
    batch_size=32,
    early_stopping=True,
    early_stopping_patience=25,
    callbacks=[clock.callback(pytorch_lightning.Callback)],
)
run = clock.report(["scgen", "scvi-tools", "torch"], "100 epochs, batch 32, patience 25, 800 x 2 units, latent 100")
own = adata[fold.rows].copy()
latent = model.get_latent_representation(own)


def decoded(z: np.ndarray) -> np.ndarray:
    """Cells on the scale of the input."""
    with torch.no_grad():
        return model.module.generative(torch.tensor(z, dtype=torch.float32))["px"].cpu().numpy()


found = {"scGen": {}, "scGen, change on the cell": {}}
for name, perturbation in fold.asked.items():
    cells, delta = model.predict(ctrl_key=CONTROL, stim_key=perturbation, adata_to_predict=own.copy())
    found["scGen"][name] = cells.X
    found["scGen, change on the cell"][name] = own.X + decoded(latent + delta) - decoded(latent)
write_predictions(folder, found, run)
