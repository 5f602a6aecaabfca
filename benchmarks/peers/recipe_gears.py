"""GEARS as in its README, on combinations of genes; run in an environment of its own.

``PertData`` reads the gene ontology of all genes, which it downloads where its folder does not have it. Without a
network it ends there: what follows that line is untried.
"""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from exchange import CONTROL, Clock, read_fold, write_predictions
from gears import GEARS, PertData

folder, budget, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
fold = read_fold(folder)
if not any("+" in perturbation for perturbation in fold.cells["perturbation"]):
    raise NotImplementedError("GEARS predicts knock-outs of genes by a gene ontology, in one cell type")
names = fold.cells["perturbation"].to_numpy()
condition = ["ctrl" if name == CONTROL else name if "+" in name else f"{name}+ctrl" for name in names]
obs = pd.DataFrame({"condition": condition, "cell_type": "cell"}, index=fold.cells.index.astype(str))
adata = ad.AnnData(
    sp.csr_matrix(fold.lognorm()), obs=obs.astype("category"), var=pd.DataFrame({"gene_name": fold.genes})
)
adata.var_names = fold.genes
data = PertData(str(folder))
data.new_data_process(dataset_name="fold", adata=adata)
data.prepare_split(split="no_test", seed=seed)
data.get_dataloader(batch_size=32, test_batch_size=128)
model = GEARS(data, device="cpu")
model.model_initialize(hidden_size=64)
clock = Clock(budget)
model.train(epochs=20, lr=1e-3)
clock.epochs = 20
run = clock.report(["cell-gears", "torch", "torch-geometric"], "README: 20 epochs, batch 32, 64 hidden units")
own = fold.lognorm()[fold.rows]
found = {"GEARS, change on the cell": {}}
for name, perturbation in fold.asked.items():
    members = perturbation.split("+")
    mean = model.predict([members])["_".join(members)]
    found["GEARS, change on the cell"][name] = own + (np.asarray(mean) - own.mean(axis=0))
write_predictions(folder, found, run)
