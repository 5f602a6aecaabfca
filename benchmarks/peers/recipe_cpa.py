"""CPA as in its tutorials on Kang and Norman; run in an environment of its own.

The tutorials' counterfactual: counts of control cells under the labels that are asked for. The mean counts that come
back are put on log1p CP10k with the library of the control cell. "Change on the cell" adds to each control cell what
changes between its prediction under the perturbation and under control.

Left out of the tutorials: masks of differential genes (they steer a printed score, and need cells that were left out)
and, for a validation set, a tenth of the training cells is drawn.
"""

import sys
from pathlib import Path

import anndata as ad
import cpa
import numpy as np
import pytorch_lightning
from exchange import CONTROL, Clock, read_fold, write_predictions

folder, budget, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
fold = read_fold(folder)
pairs = any("+" in perturbation for perturbation in fold.asked.values())
# Numbers of the tutorial "Combinations" (Norman) or "Context transfer" (Kang)
layers = {"n_layers_encoder": 2, "n_layers_decoder": 2, "use_batch_norm_decoder": False, "variational": False}
if pairs:
    model_args = layers | {"n_latent": 128, "n_hidden_encoder": 512, "n_hidden_decoder": 256}
    model_args |= {"use_layer_norm_decoder": False, "dropout_rate_decoder": 0.2}
    plan = {"n_epochs_adv_warmup": 100, "n_epochs_mixup_warmup": 10, "mixup_alpha": 0.2, "adv_steps": 2}
    plan |= {"n_hidden_adv": 128, "n_layers_adv": 2, "dropout_rate_adv": 0.2, "reg_adv": 50.0, "pen_adv": 1.0}
    plan |= {"do_clip_grad": False, "gradient_clip_value": 5.0, "step_size_lr": 45}
    batch_size = 128  # the package's default: the tutorial's 2048, for 111,122 cells, is two steps an epoch here
else:
    model_args = layers | {"n_latent": 64, "n_hidden_encoder": 128, "n_hidden_decoder": 512}
    model_args |= {"use_layer_norm_decoder": True, "dropout_rate_decoder": 0.1}
    plan = {"n_epochs_adv_warmup": 50, "n_epochs_mixup_warmup": 0, "mixup_alpha": 0.0, "adv_steps": None}
    plan |= {"n_hidden_adv": 64, "n_layers_adv": 3, "dropout_rate_adv": 0.3, "reg_adv": 20.0, "pen_adv": 5.0}
    plan |= {"do_clip_grad": True, "gradient_clip_value": 1.0, "step_size_lr": 10}
    batch_size = 512
rates = dict.fromkeys(("lr", "adv_lr", "doser_lr"), 3e-4) | dict.fromkeys(("wd", "adv_wd", "doser_wd"), 4e-7)
plan |= rates | {"n_epochs_kl_warmup": None, "n_epochs_pretrain_ae": 30, "adv_loss": "cce"}

rng = np.random.default_rng(seed)
n_control = len(fold.rows)
first = next(iter(fold.asked.values()))
obs = fold.cells.set_index(fold.cells.index.astype(str))
obs["split"] = rng.choice(["train", "valid"], size=len(obs), p=[0.9, 0.1])
training = ad.AnnData(fold.counts.astype(np.float32).toarray(), obs=obs)
own = training[fold.rows].copy()
queries = [CONTROL, *fold.asked.values()]
copies = []
for number, perturbation in enumerate(queries):
    cells = own.copy()
    cells.obs["perturbation"], cells.obs["split"] = perturbation, "ood"
    cells.obs_names = [f"{name} {number}" for name in cells.obs_names]
    copies.append(cells)
# The encoders of labels need every label that is asked for; the split keeps these cells out of training.
adata = ad.concat([training, *copies])
adata.var_names = fold.genes
cpa.CPA.pert_smiles_map = {}  # 0.8.1 looks for molecules, and fails where there are none
cpa.CPA.setup_anndata(
    adata,
    perturbation_key="perturbation",
    control_group=CONTROL,
    categorical_covariate_keys=["context"],
    is_count_data=True,
    max_comb_len=2 if pairs else 1,
)
args = {"recon_loss": "nb", "doser_type": "linear", "use_batch_norm_encoder": True, "use_layer_norm_encoder": False}
model = cpa.CPA(
    adata=adata,
    split_key="split",
    train_split="train",
    valid_split="valid",
    test_split="ood",
    seed=seed,
    dropout_rate_encoder=0.0,
    **args,
    **model_args,
)
clock = Clock(budget)
model.train(
    max_epochs=2000,
    batch_size=batch_size,
    plan_kwargs=plan,
    early_stopping_patience=5,
    check_val_every_n_epoch=5,
    save_path=False,
    enable_progress_bar=False,
    callbacks=[clock.callback(pytorch_lightning.Callback)],
)
run = clock.report(["cpa-tools", "scvi-tools", "torch"], f"tutorial of {'Norman' if pairs else 'Kang'}, 2000 epochs")
model.predict(adata, batch_size=2048)
blocks = adata.obsm["CPA_pred"][training.n_obs :].reshape(len(queries), n_control, -1)
library = fold.cells["library"].to_numpy()[fold.rows]
values = [fold.lognorm(block, library) for block in blocks]
lognorm = fold.lognorm()[fold.rows]
found = {
    "CPA": dict(zip(fold.asked, values[1:], strict=True)),
    "CPA, change on the cell": {
        name: lognorm + value - values[0] for name, value in zip(fold.asked, values[1:], strict=True)
    },
}
write_predictions(folder, found, run)
