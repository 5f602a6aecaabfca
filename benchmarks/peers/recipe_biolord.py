"""biolord as in its tutorial "Basic pipeline": cell type and perturbation as categorical attributes; own environment.

A cell is predicted by changing its perturbation attribute and keeping the embedding of what is unknown of it. "Change
on the cell" adds to each control cell what changes between its prediction under the perturbation and under control.

Doubles are left out: for members that were both seen, the authors' recipe for Norman (their script
base_experiment_norman.py) adds the measured mean changes of both, without the model. It is the baseline "additive".
"""

import sys
from pathlib import Path

import anndata as ad
import biolord
import lightning.pytorch
import numpy as np
import scvi
import torch
from exchange import CONTROL, Clock, read_fold, write_predictions

folder, budget, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
fold = read_fold(folder)
if any("+" in perturbation for perturbation in fold.asked.values()):
    raise NotImplementedError("the authors' recipe for doubles of seen members adds their measured changes: 'additive'")
scvi.settings.seed = seed
np.random.seed(seed)  # noqa: NPY002 - the package draws from it
obs = fold.cells.set_index(fold.cells.index.astype(str))
lognorm = fold.lognorm()
adata = ad.AnnData(lognorm, obs=obs)
adata.var_names = fold.genes
biolord.Biolord.setup_anndata(adata, categorical_attributes_keys=["context", "perturbation"])
module_params = {
    "decoder_width": 1024,
    "decoder_depth": 4,
    "attribute_nn_width": 512,
    "attribute_nn_depth": 2,
    "n_latent_attribute_categorical": 4,
    "gene_likelihood": "normal",
    "reconstruction_penalty": 1e2,
    "unknown_attribute_penalty": 1e1,
    "unknown_attribute_noise_param": 1e-1,
    "attribute_dropout_rate": 0.1,
    "use_batch_norm": False,
    "use_layer_norm": False,
    "seed": seed,
}
plan = {"n_epochs_warmup": 0, "latent_lr": 1e-4, "latent_wd": 1e-4, "decoder_lr": 1e-4, "decoder_wd": 1e-4}
plan |= {"attribute_nn_lr": 1e-2, "attribute_nn_wd": 4e-8, "step_size_lr": 45}
plan |= {"cosine_scheduler": True, "scheduler_final_lr": 1e-5}
model = biolord.Biolord(adata, n_latent=32, module_params=module_params)
clock = Clock(budget)
model.train(
    max_epochs=500,
    batch_size=512,
    plan_kwargs=plan,
    early_stopping=True,
    early_stopping_patience=20,
    check_val_every_n_epoch=10,
    enable_checkpointing=False,
    enable_progress_bar=False,
    callbacks=[clock.callback(lightning.pytorch.Callback)],
)
run = clock.report(["biolord", "scvi-tools", "torch"], "tutorial: 500 epochs, batch 512, 1024 x 4 units")
model.module.eval()
source = model.get_dataset(adata[fold.rows].copy())


@torch.no_grad()
def predicted(perturbation: str) -> np.ndarray:
    """Control cells with another perturbation attribute."""
    other = model.get_dataset(adata[(obs["perturbation"] == perturbation).to_numpy()].copy())["perturbation"]
    mean, _ = model.module.get_expression(dict(source) | {"perturbation": other[:1].repeat(len(fold.rows), 1)})
    return mean.cpu().numpy()


own, control = lognorm[fold.rows], predicted(CONTROL)
values = {name: predicted(perturbation) for name, perturbation in fold.asked.items()}
on_cell = {name: own + value - control for name, value in values.items()}
write_predictions(folder, {"biolord": values, "biolord, change on the cell": on_cell}, run)
