"""Hostile and odd input, one by one: is it handled, refused or warned about? Nothing may pass in silence or go wrong.

    python benchmarks/robustness/inputs.py

Prints a table and the messages, and exits with 1 when a case is silent or wrong.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from scipy import sparse

from cfmvc_scvi import CFMVC, data

SMALL = {"n_latent": 6, "n_latent_technical": 3, "n_hidden": 16, "n_basis": 4, "n_hidden_flow": 16}
#: What scvi-tools and its libraries say by themselves does not count as our warning.
OURS = "cfmvc_scvi"


@dataclass(frozen=True)
class Case:
    """An input, what is expected to happen, and how it is made."""

    name: str
    expected: str  # "handled", "refused" or "warned"
    make: Callable[[ad.AnnData], dict | None]  # changes the data; returns arguments of setup_anndata
    says: str = ""  # words the message must hold


def screen() -> ad.AnnData:
    adata = data.simulate_perturbation(n_cells=300, n_genes=60, n_cell_types=2, n_perturbations=3, n_pairs=1)
    adata.X = adata.X.astype(np.float32)
    return adata


def put(value, row=7, column=3):
    def make(adata):
        counts = adata.X.toarray()
        counts[row, column] = value
        adata.X = sparse.csr_matrix(counts)

    return make


def column(name, value, n=4):
    def make(adata):
        adata.obs[name] = adata.obs[name].astype(object)
        adata.obs.loc[adata.obs_names[:n], name] = value

    return make


def counts_as(convert, layer=None):
    def make(adata):
        if layer is None:
            adata.X = convert(adata.X)
            return None
        adata.layers[layer] = convert(adata.X)
        return {"layer": layer}

    return make


def normalised(adata):
    x = adata.X.toarray()
    adata.X = x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4


def log_normalised(adata):
    normalised(adata)
    adata.X = np.log1p(adata.X)


def scaled(adata):
    log_normalised(adata)
    adata.X = (adata.X - adata.X.mean(axis=0)) / (adata.X.std(axis=0) + 1e-6)


def zero_cells(adata):
    counts = adata.X.toarray()
    counts[:5] = 0
    adata.X = sparse.csr_matrix(counts)


def zero_genes(adata):
    counts = adata.X.toarray()
    counts[:, :3] = 0
    adata.X = sparse.csr_matrix(counts)


def names(which, repeated):
    def make(adata):
        values = list(getattr(adata, which))
        values[1] = values[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(adata, which, values)

    return make


def relabel(key, function, **setup):
    def make(adata):
        adata.obs[key] = function(adata)
        return setup or None

    return make


def two_values(low, high, key="batch"):
    return relabel(key, lambda a: np.where(a.obs[key] == a.obs[key].iloc[0], low, high))


def unused(key):
    def make(adata):
        adata.obs[key] = adata.obs[key].astype("category").cat.add_categories(["never seen"])

    return make


def no_control(adata):
    return None, adata[adata.obs["perturbation"] != "control"].copy()


def no_control_in_type(adata):
    keep = ~((adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "type1"))
    return None, adata[keep].copy()


def one_cell(key, level, value):
    def make(adata):
        adata.obs[key] = adata.obs[key].astype(str)
        adata.obs.iloc[5, adata.obs.columns.get_loc(key)] = value

    return make


def confounded(adata):
    is_control = adata.obs["perturbation"] == "control"
    adata.obs["batch"] = np.where(is_control, "monday", "tuesday")


def coordinates(value):
    def make(adata):
        adata.obsm["spatial"][5] = value if value is not None else adata.obsm["spatial"][6]

    return make


def doses(control, perturbed=1.0, bad=None):
    def make(adata):
        is_control = (adata.obs["perturbation"] == "control").to_numpy()
        adata.obs["dose"] = np.where(is_control, control, perturbed)
        if bad is not None:
            adata.obs.iloc[np.flatnonzero(~is_control)[0], adata.obs.columns.get_loc("dose")] = bad
        return {"dosage_key": "dose"}

    return make


def backed(adata):
    path = Path(tempfile.mkdtemp()) / "cells.h5ad"
    adata.write_h5ad(path)
    return None, ad.read_h5ad(path, backed="r")


def dask_counts(adata):
    import dask.array

    adata.X = dask.array.from_array(adata.X.toarray())


def size_factor(value):
    def make(adata):
        adata.obs["factor"] = value
        return {"size_factor_key": "factor"}

    return make


def key(argument, given):
    return lambda adata: {argument: given}


CASES = [
    Case("clean counts, CSR", "handled", lambda a: None),
    Case("negative value", "refused", put(-1.0), "negative"),
    Case("fractional value", "refused", put(0.5), "fractional"),
    Case("NaN", "refused", put(np.nan), "missing or infinite"),
    Case("infinity", "refused", put(np.inf), "missing or infinite"),
    Case("normalised to 10,000", "refused", normalised, "normalised (every cell sums to 10000)"),
    Case("log-normalised", "refused", log_normalised, "log-transformed"),
    Case("log-normalised, allow_noncounts=True", "warned", lambda a: log_normalised(a) or {"allow_noncounts": True}, "negative binomial is not"),
    Case("scaled", "refused", scaled, "scaled"),
    Case("count beyond float32", "refused", put(3e7), "single precision"),
    Case("all zero", "refused", lambda a: setattr(a, "X", a.X * 0), "all its values are zero"),
    Case("no cells", "refused", lambda a: (None, a[:0].copy()), "0 cells"),
    Case("no genes", "refused", lambda a: (None, a[:, :0].copy()), "empty"),
    Case("all-zero cells", "warned", zero_cells, "filter_cells"),
    Case("all-zero genes", "warned", zero_genes, "filter_genes"),
    Case("duplicated obs names", "warned", names("obs_names", 1), "obs_names_make_unique"),
    Case("duplicated var names", "refused", names("var_names", 1), "var_names_make_unique"),
    Case("NaN perturbation", "refused", column("perturbation", np.nan), "missing for 4 cells"),
    Case("NaN batch", "refused", column("batch", None), "missing for 4 cells"),
    Case("NaN cell type", "refused", column("cell_type", np.nan), "missing for 4 cells"),
    Case("empty cell type", "refused", column("cell_type", ""), "empty name"),
    Case("'nan' as text", "refused", column("perturbation", "nan"), "written as text"),
    Case("numeric batch", "handled", two_values(0, 1)),
    Case("boolean batch", "handled", two_values(False, True)),
    Case("batch 1 and '1'", "refused", relabel("batch", lambda a: pd.Series([1, "1"] * 150, a.obs_names, object)), "read the same"),
    Case("a measurement as batch", "warned", relabel("batch", lambda a: np.arange(a.n_obs) * 0.37), "looks like a measurement"),
    Case("unused level of batch", "handled", unused("batch")),
    Case("unused level of cell type", "handled", unused("cell_type")),
    Case("unused level of perturbation", "handled", unused("perturbation")),
    Case("misspelt batch_key", "refused", key("batch_key", "batches"), "Did you mean ['batch'"),
    Case("misspelt layer", "refused", key("layer", "true_means"), "Did you mean ['true_mean']"),
    Case("misspelt spatial_key", "refused", key("spatial_key", "spatal"), "Did you mean ['spatial']"),
    Case("no perturbation column", "refused", lambda a: a.obs.pop("perturbation") is None, "perturbation_key="),
    Case("no control cells", "refused", no_control, "Which perturbation is the control?"),
    Case("misspelt control_group", "refused", key("control_group", "contrl"), "Close matches: ['control']"),
    Case("no control in a cell type", "warned", no_control_in_type, "no control cells: ['type1']"),
    Case("only control cells", "warned", lambda a: (None, a[a.obs["perturbation"] == "control"].copy()), "only control cells"),
    Case("perturbation with one cell", "warned", one_cell("perturbation", None, "rare"), "one cell: ['rare']"),
    Case("batch with one cell", "warned", one_cell("batch", None, "lost"), "one cell: ['lost']"),
    Case("perturbation confounded with batch", "warned", confounded, "'P1' (only in ['tuesday'])"),
    Case("text and numbers as batch", "refused", relabel("batch", lambda a: pd.Series([1, "p2"] * 150, a.obs_names, object)), "text beside"),
    Case("dates as batch", "refused", relabel("batch", lambda a: pd.Timestamp("2024-01-01")), "holds dates"),
    Case("levels with blanks", "refused", relabel("cell_type", lambda a: ["T", "T "] * 150), "blanks around them"),
    Case("control with blanks", "handled", relabel("perturbation", lambda a: [f" {p} " for p in a.obs["perturbation"]], control_group=" control ")),
    Case("covariate key as text", "handled", relabel("donor", lambda a: ["x", "y"] * 150, categorical_covariate_keys="donor")),
    Case("several kinds of control guides", "warned", relabel("perturbation", lambda a: [("NT", "safe-targeting_1")[i % 2] if p == "control" else p for i, p in enumerate(a.obs["perturbation"])]), "control_group=['NT', 'safe-targeting_1']"),
    Case("dose as text with many digits", "handled", doses("0", "2000000")),
    Case("NaN coordinate", "refused", coordinates(np.nan), "not finite for 1 cells"),
    Case("duplicated coordinates", "warned", coordinates(None), "2 of 300 cells"),
    Case("text coordinates", "refused", lambda a: a.obsm.__setitem__("spatial", a.obsm["spatial"].astype(str)), "must be numbers"),
    Case("NaN dose of control", "handled", doses(np.nan)),
    Case("NaN dose of a perturbed cell", "refused", doses(0.0, bad=np.nan), "must be finite"),
    Case("negative dose", "refused", doses(0.0, bad=-1.0), "not negative"),
    Case("dose as text that is no number", "refused", doses("0", "high"), "is not a number"),
    Case("size factor of about 1", "warned", size_factor(1.0), "not a normalisation factor"),
    Case("size factor 0", "refused", size_factor(0.0), "not positive"),
    Case("size factor as text", "refused", size_factor("1000"), "astype(float)"),
    Case("CSR", "handled", counts_as(sparse.csr_matrix)),
    Case("CSC", "handled", counts_as(sparse.csc_matrix)),
    Case("csr_array", "refused", counts_as(sparse.csr_array), "csr_matrix("),
    Case("csc_array", "refused", counts_as(sparse.csc_array), "csr_matrix("),
    Case("dense", "handled", counts_as(lambda x: x.toarray())),
    Case("dense, Fortran order", "handled", counts_as(lambda x: np.asfortranarray(x.toarray()))),
    Case("float16", "refused", counts_as(lambda x: x.toarray().astype(np.float16)), "astype('float32')"),
    Case("float64", "handled", counts_as(lambda x: x.astype(np.float64))),
    Case("int8", "handled", counts_as(lambda x: np.minimum(x.toarray(), 127).astype(np.int8))),
    Case("int8, sparse", "handled", counts_as(lambda x: sparse.csr_matrix(np.minimum(x.toarray(), 127).astype(np.int8)))),
    Case("int64", "handled", counts_as(lambda x: x.astype(np.int64))),
    Case("uint16", "handled", counts_as(lambda x: x.toarray().astype(np.uint16))),
    Case("boolean counts", "refused", counts_as(lambda x: x.toarray() > 0), "not counts"),
    Case("counts in a layer", "handled", counts_as(sparse.csr_matrix, "counts")),
    Case("X is None", "refused", lambda a: setattr(a, "X", None), "pass `layer=`"),
    Case("view", "refused", lambda a: (None, a[:200]), "adata.copy()"),
    Case("backed", "handled", backed),
    Case("dask", "refused", dask_counts, "to_memory()"),
    Case("two cells", "warned", lambda a: (None, a[[int(np.flatnonzero(a.obs.perturbation == p)[0]) for p in ("control", "P1")]].copy()), "have one cell: ['P1']"),
    Case("counts up to 1e6", "handled", put(1e6)),
]  # fmt: skip


def run(case: Case) -> tuple[str, str]:
    """What happened, and the words."""
    scvi.settings.seed = 0
    adata = screen()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            made = case.make(adata)
            if isinstance(made, tuple):
                made, adata = made
            setup = made if isinstance(made, dict) else {}
            CFMVC.setup_anndata(adata, **({"combination_delimiter": "+"} | setup))
            own = [str(w.message) for w in caught if OURS in str(w.filename) and issubclass(w.category, UserWarning)]
            model = CFMVC(adata, **SMALL)
            check_model(model)
        except (ValueError, TypeError, KeyError) as error:
            return "refused", str(error.args[0])
    return ("warned", " | ".join(own)) if own else ("handled", "")


def check_model(model: CFMVC) -> None:
    """Train for an epoch each, predict, and look whether the numbers can be right."""
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    model.train_vae(1, **quiet)
    latent = model.get_latent_representation()
    if not np.isfinite(latent).all():
        raise AssertionError("latents are not finite")
    if not model.vocabulary.names:
        return
    model.train_flow(1, **quiet)
    dose = 1.0 if model.setup_keys.dosage_key else None
    result = model.predict_perturbation(perturbation=model.vocabulary.names[0], dosage=dose)
    same = model.predict_perturbation(perturbation="control").X
    rows = (model.adata.obs["perturbation"].astype(str) == "control").to_numpy()
    matrix = model.adata.X if model.setup_keys.layer is None else model.adata.layers[model.setup_keys.layer]
    own = matrix[rows]
    own = np.asarray(own.toarray() if sparse.issparse(own) else own, dtype=np.float32)
    if not np.isfinite(result.X).all() or result.X.min() < 0:
        raise AssertionError("predictions are not finite or negative")
    if not np.array_equal(same, own):
        raise AssertionError("control does not predict the cells themselves")


def main() -> int:
    import logging

    logging.disable(logging.INFO)
    bad = []
    print(f"{'input':38} {'expected':9} {'happened':9} message")
    for case in CASES:
        try:
            happened, words = run(case)
        except ImportError as error:
            print(f"{case.name:38} {case.expected:9} {'not run':9} {error}")
            continue
        except Exception as error:  # noqa: BLE001  # any other error is a finding of its own
            happened, words = "wrong", f"{type(error).__name__}: {error}"
        fine = happened == case.expected and case.says in words
        if not fine:
            bad.append(case.name)
        print(f"{case.name:38} {case.expected:9} {happened if fine else happened.upper() + ' (!)':9} {words}")
    print(f"\n{len(CASES)} inputs tried, {len(bad)} silent or wrong{': ' + ', '.join(bad) if bad else ''}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
