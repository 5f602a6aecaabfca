"""New data for a trained model: genes and categories that differ. What comes out must be right, or an error says why.

python benchmarks/robustness/new_data.py
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi import CFMVC, data


def trained(**changes) -> CFMVC:
    scvi.settings.seed = 0
    adata = data.simulate_perturbation(n_cells=300, n_genes=60, n_cell_types=2, n_perturbations=3, n_pairs=1)
    adata.X = adata.X.astype(np.float32)
    for key, levels in changes.items():
        adata.obs[key] = np.where(adata.obs[key] == adata.obs[key].iloc[0], *levels)
    adata.obs["age"] = np.linspace(-1, 1, 300)
    CFMVC.setup_anndata(adata, combination_delimiter="+", continuous_covariate_keys=["age"])
    model = CFMVC(adata, n_latent=6, n_hidden=16, n_hidden_flow=16)
    model.train(vae_max_epochs=1, flow_max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return model


def extra_genes(a: AnnData) -> AnnData:
    joined = sparse.hstack([sparse.csr_matrix(np.full((a.n_obs, 5), 9, dtype=np.float32)), a.X], format="csr")
    new = AnnData(joined, obs=a.obs, obsm=dict(a.obsm))
    new.var_names = [*(f"extra{i}" for i in range(5)), *a.var_names]
    return new


def with_x(change) -> Callable[[AnnData], AnnData]:
    def make(a):
        a.X = change(a.X)
        return a

    return make


def with_obs(**values) -> Callable[[AnnData], AnnData]:
    def make(a):
        for key, value in values.items():
            a.obs[key] = value(a) if callable(value) else value
        return a

    return make


def without(key) -> Callable[[AnnData], AnnData]:
    def make(a):
        del a.obs[key]
        return a

    return make


def names_twice(a: AnnData) -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = a[:, ::-1].copy()
        a.var_names = [a.var_names[1], *a.var_names[1:]]
    return a


def zero_is_new(a: AnnData) -> AnnData:
    a.obs["batch"] = a.obs["batch"].astype(int) - 1
    return a


def reordered_categories(a: AnnData) -> AnnData:
    a.obs["cell_type"] = pd.Categorical(a.obs["cell_type"], ["unused", "type2", "type1"])
    return a


#: Name, how the data differ, whether the prediction stays the same, words of the error otherwise.
CASES: list[tuple[str, Callable[[AnnData], AnnData], str]] = [
    ("genes reversed", lambda a: a[:, ::-1].copy(), ""),
    ("further genes", extra_genes, ""),
    ("a view", lambda a: a[:, ::-1], ""),
    ("cells in another order", lambda a: a[::-1].copy(), ""),
    ("CSC", with_x(sparse.csc_matrix), ""),
    ("dense", with_x(lambda x: x.toarray()), ""),
    ("int8", with_x(lambda x: np.minimum(x.toarray(), 127).astype(np.int8)), ""),
    ("categories in another order, one unused", reordered_categories, ""),
    ("one batch alone", lambda a: a[a.obs["batch"] == "batch1"].copy(), ""),
    ("genes missing", lambda a: a[:, 2:].copy(), "2 of the 60 genes"),
    ("other gene names", lambda a: setattr(a, "var_names", [f"x{i}" for i in range(60)]) or a, "60 of the 60 genes"),
    ("gene names twice", names_twice, "var_names_make_unique"),
    ("unseen batch", with_obs(batch="batch9"), "['batch9']"),
    ("unseen cell type", with_obs(cell_type="type7"), "['type7']"),
    ("cell type missing", with_obs(cell_type=None), "missing for"),
    ("no batch column", without("batch"), "'batch' is not in adata.obs"),
    ("no covariate", without("age"), "'age', which is not in adata.obs"),
    ("NaN covariate", with_obs(age=np.nan), "missing or not numbers"),
    ("log-normalised", with_x(lambda x: x.log1p()), "log-transformed"),
    ("csr_array", with_x(sparse.csr_array), "csr_matrix("),
    ("float16", with_x(lambda x: x.toarray().astype(np.float16)), "float32"),
    ("no cells", lambda a: a[:0].copy(), "empty"),
]


def try_case(model: CFMVC, make: Callable[[AnnData], AnnData], says: str) -> tuple[bool, str]:
    cells = model.adata[model.adata.obs["perturbation"] == "control"].copy()
    cells.uns = {}
    cells.X = np.minimum(cells.X.toarray(), 127)  # what int8 holds
    cells.X = sparse.csr_matrix(cells.X)
    expected = model.predict_perturbation(cells, "P1")
    expected = pd.DataFrame(expected.X, index=expected.obs["source_cell"].to_numpy())
    new = make(cells.copy())
    try:
        found = model.predict_perturbation(new, "P1")
    except (ValueError, KeyError, TypeError) as error:
        message = str(error.args[0])
        return bool(says) and says in message, f"{type(error).__name__}: {message}"
    same = np.array_equal(found.X, expected.loc[found.obs["source_cell"]].to_numpy())
    return not says and same, "the same prediction" if same else "ANOTHER PREDICTION (!)"


def main() -> int:
    logging.disable(logging.WARNING)
    model = trained()
    results = [(name, *try_case(model, make, says)) for name, make, says in CASES]
    numbers = trained(batch=(1, 2))
    results.append(("batch 0, where 1 and 2 were trained", *try_case(numbers, zero_is_new, "['0']")))
    for name, fine, happened in results:
        print(f"{name:42} {'' if fine else 'WRONG (!) '}{happened}")
    bad = [name for name, fine, _ in results if not fine]
    print(f"\n{len(results)} tried, {len(bad)} silent or wrong{': ' + ', '.join(bad) if bad else ''}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
