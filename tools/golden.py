"""Say whether a change of the code changed what the models return.

``golden.py write FILE.npz`` trains small models on simulated cells and stores every kind of result; ``golden.py compare
FILE.npz`` does the same with the code at hand and prints how far each array is from the stored one. Only the public
interface is used. Every training and every call starts from seed 0, in one thread. The values belong to one machine
and one set of packages: write and compare there. ``PYTHONPATH=CHECKOUT python tools/golden.py`` takes another checkout.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import logging
import sys
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scvi
from anndata import AnnData
from scipy import sparse
from threadpoolctl import threadpool_limits

import cfmvc_scvi
from cfmvc_scvi import CFMVC
from cfmvc_scvi.data import simulate_perturbation

SUPPORT = ["seen", "new context", "new combination", "new perturbation"]
NETWORKS = {"n_latent": 6, "n_latent_technical": 3, "n_hidden": 24, "n_basis": 4, "n_hidden_flow": 24}
TRAINING = {"vae_max_epochs": 6, "flow_max_epochs": 12, "batch_size": 64, "flow_batch_size": 64, "accelerator": "cpu"}
FAST = {"vae_plan_kwargs": {"lr": 0.01}, "flow_plan_kwargs": {"lr": 0.02}}  # far from the start, with curved paths
SCREEN = {"n_cells": 450, "n_genes": 70, "n_cell_types": 2, "n_perturbations": 3, "n_pairs": 0}


class Case(NamedTuple):
    """A model and what it is asked: one perturbation everywhere, and several to predictions."""

    perturbation: str
    several: list[str] | pd.DataFrame
    dosage: float | None = None
    screen: dict[str, Any] = {}
    setup: dict[str, Any] = {}
    model: dict[str, Any] = {}


GUIDES = {"perturbation_key": "guides", "control_group": "NT"}
COVARIATES = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age", "score"]}
PAIRS, UNMEASURED = {"combination_delimiter": "+"}, ["P2+P1", "P3+P1", "P3+P2", "P1+P2+P3", "P1+control"]
VECTORS = PAIRS | {"perturbation_embedding_key": "perturbation_embedding"}
DOSES = {"perturbation": ["P1", "P2", "P1+P2", "P1", "control"], "dosage": [0.5, 16, "2+4", 0, None]}
DOSED = {"n_perturbations": 2, "n_pairs": 1, "doses": [0.5, 2.0, 8.0]}
CASES = {
    "plain": Case("P1", ["P3", "control"], screen={"n_cells": 500, "n_cell_types": 3}),
    "combinations": Case("P1+P3", UNMEASURED, screen={"n_pairs": 2}, setup=PAIRS),
    "doses": Case("P1", pd.DataFrame(DOSES), 4.0, screen=DOSED, setup=PAIRS | {"dosage_key": "dosage"}),
    "vectors": Case("P4", ["P1+P4", "P2"], screen={"n_cells": 550, "n_perturbations": 5}, setup=VECTORS),
    "context": Case("P2", ["P3", "control"], setup=COVARIATES | {"spatial_key": "spatial"}),
    "noise": Case("P2", ["P3", "control"], model={"flow_source": "noise", "coupling": "independent"}),
    "panel": Case("P1", ["P3", "control"], screen={"n_panel_genes": 60}, setup={"size_factor_key": "library_size"}),
    "presence": Case("P1+P2", UNMEASURED, screen={"n_pairs": 2}, setup=GUIDES),
}


def simulate(**changes: Any) -> AnnData:
    """Simulated screen without P4, and without P3 in the second type; with columns that some cases use."""
    adata = simulate_perturbation(**(SCREEN | {"mean_library_size": 400.0, "seed": 1} | changes))
    label, rng = adata.obs["perturbation"].astype(str), np.random.default_rng(2)
    adata = adata[((label != "P4") & ~((label == "P3") & (adata.obs["cell_type"] == "type2"))).to_numpy()].copy()
    guides = adata.obs["perturbation"].astype(str).str.get_dummies("+").rename(columns={"control": "NT"})
    adata.obsm["guides"] = guides.assign(NT=guides["NT"] * rng.integers(0, 2, adata.n_obs))  # or no guide at all
    adata.obs["donor"] = rng.choice(["a", "b", "c"], adata.n_obs)
    adata.obs["age"], adata.obs["score"] = rng.normal(40.0, 10.0, adata.n_obs), rng.uniform(size=adata.n_obs)
    return adata


def results(case: Case) -> Iterator[tuple[str, Any]]:
    """Every kind of result of a model."""
    adata = simulate(**case.screen)
    control = np.flatnonzero(adata.obs["perturbation"] == "control")
    new = adata[control[40::-1], np.random.default_rng(5).permutation(adata.n_vars)].copy()
    new.obs_names = "new_" + new.obs_names
    CFMVC.setup_anndata(adata, **({"spatial_key": None} | case.setup))
    model = CFMVC(adata, **(NETWORKS | case.model))
    model.train(**TRAINING, **FAST, enable_progress_bar=False, enable_model_summary=False)
    asked, one_type = {"perturbation": case.perturbation, "dosage": case.dosage}, model.cell_types[-1]
    several = {"perturbation": case.several, "show_progress": False}
    where = adata.obsm["spatial"][7:47] if "spatial_key" in case.setup else None
    yield "history", dict(model.history)
    for latent in ("intrinsic", "technical", "both"):
        yield f"latent {latent}", model.get_latent_representation(latent=latent)
        yield f"latent {latent} drawn", model.get_latent_representation(new, latent=latent, give_mean=False)
    yield "elbo", model.get_elbo()
    yield "elbo of new cells", model.get_elbo(new)
    yield "reconstruction error", model.get_reconstruction_error()
    yield "normalized", model.get_normalized_expression()
    yield "normalized in batch2", model.get_normalized_expression(new, transform_batch="batch2", library_size=1e4)
    yield "normalized, own library", model.get_normalized_expression(library_size="latent", n_samples=2)
    yield "support", model.support()
    yield "embedding", model.get_perturbation_embedding()
    yield "embedding of one", model.get_perturbation_embedding([case.perturbation], dosage=case.dosage)
    yield "coefficients", model.get_effect_coefficients()
    yield "basis", model.get_effect_basis()
    yield "basis top", model.get_effect_basis(one_type, n_top=5, step=0.5)
    yield "velocity", model.get_velocity(perturbation=case.perturbation, t=0.3)
    yield "velocity of new cells", model.get_velocity(new)
    yield "effect", model.get_perturbation_effect(**asked)
    yield "effect in type", model.get_perturbation_effect(**asked, labels=one_type, level=0.8, min_change=0.05, fdr=0.1)
    yield "trajectory", model.get_trajectory(**asked, times=(0.0, 0.4, 1.0), n_steps=5)
    yield "trajectory of new cells", model.get_trajectory(new, **asked, indices=range(20), solver="rk4")
    for kind in ("mean", "counts", "lognorm", "latent"):
        yield f"predict {kind}", model.predict_perturbation(**asked, return_type=kind)
        yield f"predict {kind} 3 samples", model.predict_perturbation(**asked, return_type=kind, n_samples=3, seed=7)
        yield f"predict {kind} in batch2", model.predict_perturbation(new, **several, return_type=kind, batch="batch2")
        yield f"generate {kind}", model.generate_cells(**asked, n_cells=70, return_type=kind)
    for solver, n_steps in {"euler": 7, "midpoint": 4, "rk4": 3, "adaptive": None}.items():
        how = {"solver": solver, "n_steps": n_steps, "indices": control[::3], "batch_size": 64}
        yield f"predict by {solver}", model.predict_perturbation(**several, **how)
    yield "predict all", model.predict_perturbation(show_progress=False)
    table = pd.DataFrame(asked | {"labels": [one_type, None], "batch": [None, "batch1"]})
    yield "predict table", model.predict_perturbation(perturbation=table, show_progress=False)
    context = {"labels": one_type, "batch": "batch1", "spatial": where}
    yield "generate in context", model.generate_cells(**asked, n_cells=40, **context, seed=4)
    with TemporaryDirectory() as folder:
        for file, read in (("out.h5ad", ad.read_h5ad), ("out.zarr", ad.read_zarr)):
            model.predict_perturbation(**asked, return_type="counts", n_samples=2, out=f"{folder}/{file}")
            yield f"written {file}", read(f"{folder}/{file}")
        model.save(f"{folder}/model", save_anndata=True)
        for name, data in (("no", False), ("given", adata[:, ::-1].copy()), ("saved", None)):
            loaded = CFMVC.load(f"{folder}/model", adata=data, accelerator="cpu")
            before, after = (m.predict_perturbation(new, **asked, return_type="counts") for m in (model, loaded))
            yield f"loaded with {name} data", after
            yield f"loaded with {name} data, difference", abs(after.X - before.X).max()
        yield "loaded, effect", loaded.get_perturbation_effect(**asked)
    new.obs["cell_type"] = new.obs["cell_type"].astype(str).replace("type2", "not in training")
    yield "predict unknown type", model.predict_perturbation(new, **asked, unknown_labels="nearest")


def codes(values: Iterable[Any]) -> np.ndarray:
    """Text as whole numbers that depend on nothing but the text."""
    return np.array([zlib.crc32(str(value).encode()) for value in values], dtype=np.int64)


def arrays(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """A result as named arrays."""
    if isinstance(value, AnnData):
        obs = value.obs.copy()
        yield f"{name}/support", np.array([SUPPORT.index(level) for level in obs.pop("support")])
        yield f"{name}/support_distance", obs.pop("support_distance").to_numpy(dtype=float)
        yield f"{name}/rows", codes("\t".join(map(str, row)) for row in obs.itertuples())
        yield f"{name}/columns", codes([*value.var_names, *obs])
        yield from arrays(name, {"X": value.X, **value.obsm})
    elif isinstance(value, pd.DataFrame):
        value = value.infer_objects()
        yield f"{name}/names", codes([*value.index, *value])
        yield from arrays(f"{name}/values", value.to_numpy() if value.dtypes.nunique() == 1 else dict(value.items()))
    elif isinstance(value, dict | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from arrays(f"{name}/{key}", part)
    else:
        array = value.toarray() if sparse.issparse(value) else np.asarray(value)
        yield name, array if array.dtype.kind in "biuf" else codes(array)


def compare(stored: dict[str, np.ndarray], found: dict[str, np.ndarray], rtol: float, atol: float) -> bool:
    """Print how far every array is from the stored one; whether all agree, text and whole numbers exactly."""
    worst, agree = 0.0, True
    for name in stored | found:
        old, new = stored.get(name), found.get(name)
        if old is None or new is None or old.shape != new.shape:
            print(f">> {name}: {getattr(old, 'shape', 'missing')} -> {getattr(new, 'shape', 'missing')}")
            agree = False
            continue
        a, b = old.astype(float), new.astype(float)
        with np.errstate(invalid="ignore"):
            gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        absolute = np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(initial=0.0)
        largest = np.abs(a[np.isfinite(a)]).max(initial=0.0)
        relative = absolute / (largest or 1.0)
        good = absolute <= (atol + rtol * largest if old.dtype.kind == "f" else 0.0)
        worst, agree = max(worst, relative), agree and good
        kind = "" if old.dtype == new.dtype else f", {old.dtype} -> {new.dtype}"
        print(f"{'   ' if good else '>> '}{name}: absolute {absolute:.3g}, relative {relative:.3g}{kind}")
    print(f"{len(stored | found)} arrays, worst relative difference {worst:.3g}")
    return agree


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["write", "compare"])
    parser.add_argument("file", type=Path, help="the .npz")
    parser.add_argument("--rtol", type=float, default=1e-4, help="of an array's own largest magnitude")
    parser.add_argument("--atol", type=float, default=1e-5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(cfmvc_scvi.__file__, file=sys.stderr)
    scvi.settings.num_threads, found = 1, {}
    with threadpool_limits(limits=1):
        for name, case in CASES.items():
            scvi.settings.seed = 0
            for what, value in results(case):
                found |= arrays(f"{name}/{what}", value)
                scvi.settings.seed = 0  # for the next result
    if args.command == "compare":
        with np.load(args.file) as file:
            return int(not compare(dict(file), found, args.rtol, args.atol))
    np.savez_compressed(args.file, **found)
    print(f"{len(found)} arrays in {args.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
