"""Common mistakes and what the user reads.

python benchmarks/robustness/mistakes.py
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable

import numpy as np
import scvi

from cfmvc_scvi import CFMVC, data


def screen():
    adata = data.simulate_perturbation(n_cells=300, n_genes=60, n_perturbations=3)
    adata.X = adata.X.astype(np.float32)
    return adata


def fitted() -> CFMVC:
    adata = screen()
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model = CFMVC(adata, n_latent=6, n_hidden=16, n_hidden_flow=16)
    model.train(vae_max_epochs=1, flow_max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return model


def log_normalised_counts() -> None:
    adata = screen()
    x = adata.X.toarray()
    adata.X = np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)
    CFMVC.setup_anndata(adata)


def misspelt_column() -> None:
    CFMVC.setup_anndata(screen(), labels_key="celltype")


def misspelt_perturbation() -> None:
    fitted().predict_perturbation(perturbation="p1")


def other_identifiers() -> None:
    model = fitted()
    new = model.adata.copy()
    new.var_names = [f"ENSG{i:011d}" for i in range(new.n_vars)]
    model.predict_perturbation(new, "P1")


def a_new_batch() -> None:
    model = fitted()
    new = model.adata.copy()
    new.obs["batch"] = "batch9"
    model.predict_perturbation(new, "P1")


def a_pickle_from_somewhere() -> None:
    from scvi.model.base import BaseModelClass

    folder = tempfile.mkdtemp() + "/model"
    BaseModelClass.save(fitted(), folder)
    CFMVC.load(folder, adata=False)


def genes_filtered_after_training() -> None:
    model = fitted()
    model.adata._inplace_subset_var(np.arange(10, 60))
    model.get_normalized_expression()


def normalised_after_training() -> None:
    model = fitted()
    model.adata.X = np.log1p(model.adata.X)
    model.get_elbo()


def the_column_overwritten_to_ask() -> None:
    model = fitted()
    model.adata.obs["perturbation"] = "P1"
    model.predict_perturbation()


def epochs_of_zero() -> None:
    fitted().train(flow_max_epochs=0)


def arguments_of_scvi() -> None:
    fitted().train(max_epochs=5)


def a_path_in_place_of_data() -> None:
    folder = tempfile.mkdtemp() + "/model"
    fitted().save(folder)
    CFMVC.load(folder, adata="cells.h5ad")


MISTAKES: list[Callable[[], None]] = [
    log_normalised_counts,
    misspelt_column,
    misspelt_perturbation,
    other_identifiers,
    a_new_batch,
    a_pickle_from_somewhere,
    genes_filtered_after_training,
    normalised_after_training,
    the_column_overwritten_to_ask,
    epochs_of_zero,
    arguments_of_scvi,
    a_path_in_place_of_data,
]


def main() -> None:
    logging.disable(logging.WARNING)
    scvi.settings.seed = 0
    for mistake in MISTAKES:
        try:
            mistake()
        except (ValueError, KeyError, TypeError) as error:
            print(f"\n{mistake.__name__.replace('_', ' ')}\n    {type(error).__name__}: {error.args[0]}")
        else:
            raise AssertionError(f"{mistake.__name__} passed in silence")


if __name__ == "__main__":
    main()
