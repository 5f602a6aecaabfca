"""Batch in the latent: how well a classifier reads batch and cell type from each latent, beside SCVI's.

    python benchmarks/quality/batch.py

Data: five lung cancer lines in five batches and two protocols (Tian et al. 2019). Each latent is scored by
the balanced accuracy of two classifiers, logistic regression and 15 nearest neighbours, in stratified
five-fold cross-validation. SCVI and CFMVC have the same genes, batch labels, latent size, epochs and
batch size. The cell type is given to neither model, so that it cannot be read back from an input.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from protocol import data_path
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cfmvc_scvi import CFMVC, data, metrics


def accuracies(latent: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Balanced accuracy of logistic regression and of nearest neighbours."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    models = (LogisticRegression(max_iter=2000), KNeighborsClassifier(15))
    scores = [
        cross_val_score(
            make_pipeline(StandardScaler(), m), latent, classes, cv=folds, scoring="balanced_accuracy"
        ).mean()
        for m in models
    ]
    return scores[0], scores[1]


def main() -> None:
    """Train both models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    adata = data.tian2019_cellbench(data_path().parent)
    sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=2000, subset=True)
    rows = []
    for seed in options.seeds:
        scvi.settings.seed = seed
        CFMVC.setup_anndata(adata, labels_key=None)
        model = CFMVC(adata)
        model.train_vae(options.epochs, train_size=1.0, enable_progress_bar=False)
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        reference = scvi.model.SCVI(adata, n_latent=model.module.n_latent, gene_likelihood="nb")
        reference.train(options.epochs, train_size=1.0, enable_progress_bar=False)
        latents = {
            "CFMVC z_int": model.get_latent_representation(),
            "CFMVC z_tech": model.get_latent_representation(latent="technical"),
            "SCVI z": reference.get_latent_representation(),
            "counts, 32 PCs": sc.pp.pca(metrics.log1p_cp10k(adata.X), n_comps=32),
        }
        for name, latent in latents.items():
            for target in ("batch", "cell_type"):
                logistic, neighbours = accuracies(np.asarray(latent), adata.obs[target].to_numpy())
                rows.append({"latent": name, "target": target, "logistic": logistic, "15 neighbours": neighbours})
    table = pd.DataFrame(rows).groupby(["target", "latent"], sort=False).agg(["mean", "std"]).round(3)
    print(f"balanced accuracy; chance is 0.2 for both (5 batches, 5 cell types)\n{table.to_string()}")


if __name__ == "__main__":
    main()
