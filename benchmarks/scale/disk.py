"""Stage 1 from counts on disk beside the same in memory: cells per second, and peak resident memory.

    OMP_NUM_THREADS=1 python benchmarks/scale/disk.py 100000 1000              both files written, and all three ways
    OMP_NUM_THREADS=1 python benchmarks/scale/disk.py 1000000 2000 --ways zarr dense --folder /large/disk

A simulated screen of CELLS x GENES is written in a stream, as CSR in zarr and as a dense ``.h5ad``. Every way trains in
a process of its own: registration, one epoch of stage 1, the encoding of all cells. Printed are seconds of each, cells
per second of the epoch (its training batches and its validation), their ratio to memory, and the peak resident memory
beside that of a process that has only imported the package.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scvi
import torch
import zarr
from scipy import sparse

from cfmvc_scvi import CFMVC
from cfmvc_scvi.data import open_counts

#: Cells that are simulated and written together.
BLOCK = 4096
#: Perturbations, and share of control cells.
PERTURBATIONS, CONTROLS = 100, 0.1
WAYS = ("memory", "zarr", "dense")


def blocks(n: int, n_genes: int):
    """Blocks of Poisson counts, about 1,500 a cell, with 10 % of the entries not zero."""
    rng = np.random.default_rng(0)
    share = rng.gamma(0.1, 1.0, n_genes)
    share /= share.sum()
    for start in range(0, n, BLOCK):
        library = 300.0 * n_genes / 1000 * rng.lognormal(0.0, 0.3, min(BLOCK, n - start))
        yield start, rng.poisson(library[:, None] * share).astype(np.float32)


def annotations(n: int, n_genes: int) -> ad.AnnData:
    """Cells of all perturbations in a random order, and genes."""
    rng = np.random.default_rng(1)
    names = np.array(["control", *(f"P{k}" for k in range(PERTURBATIONS))])
    code = np.where(rng.random(n) < CONTROLS, 0, rng.integers(1, len(names), n))
    obs = pd.DataFrame({"perturbation": pd.Categorical.from_codes(code, names)})
    obs.index = [f"cell{i}" for i in range(n)]
    return ad.AnnData(obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))


def write_zarr(path: Path, n: int, n_genes: int) -> None:
    """The screen as CSR in zarr, block by block."""
    annotations(n, n_genes).write_zarr(path)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    dataset = None
    for _, block in blocks(n, n_genes):
        x = sparse.csr_matrix(block)
        x.indptr = x.indptr.astype(np.int64)
        if dataset is None:
            ad.io.write_elem(group, "X", x, dataset_kwargs={"chunks": (2**17,)})
            dataset = ad.io.sparse_dataset(group["X"])
        else:
            dataset.append(x)
    zarr.consolidate_metadata(group.store)


def write_dense(path: Path, n: int, n_genes: int) -> None:
    """The screen as a dense ``.h5ad``, block by block."""
    annotations(n, n_genes).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        x = file.create_dataset("X", shape=(n, n_genes), dtype=np.float32)
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for start, block in blocks(n, n_genes):
            x[start : start + len(block)] = block


def peak() -> float:
    """Peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def train(way: str, path: Path, epochs: int, fraction: float) -> None:
    """Register, train stage 1 and encode, in this process; print what it took as JSON."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    start, seconds = peak(), {}

    def lap(name: str, work):
        began = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - began
        return found

    if way == "memory":
        group = zarr.open_group(path, mode="r")
        adata = ad.AnnData(*(ad.io.read_elem(group[name]) for name in ("X", "obs", "var")))
        adata.X.indptr = adata.X.indptr.astype(adata.X.indices.dtype)  # of two types, every slice converts them
    else:
        adata = open_counts(path)
    lap("setup", lambda: CFMVC.setup_anndata(adata))
    model = CFMVC(adata)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    lap("start values", lambda: model.train_vae(1, limit_train_batches=1, limit_val_batches=0, **quiet))
    part = {"limit_train_batches": fraction, "limit_val_batches": fraction}
    lap("epochs", lambda: model.train_vae(epochs, **part, **quiet))
    trained = peak()
    lap("encode", lambda: model.get_latent_representation(indices=np.arange(int(fraction * adata.n_obs))))
    rate = epochs * fraction * adata.n_obs / seconds["epochs"]
    print(json.dumps({"way": way, "start": start, "trained": trained, "peak": peak(), "rate": rate, **seconds}))


def main() -> None:
    """Write the screens and train every way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", type=int)
    parser.add_argument("genes", type=int)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of an epoch, and of the cells to encode")
    parser.add_argument("--folder", type=Path, help="where the files go; they are removed in the end")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        return train(args.train[0], Path(args.train[1]), args.epochs, args.fraction)
    with TemporaryDirectory(dir=args.folder) as folder:
        files = {"zarr": Path(folder) / "screen.zarr", "dense": Path(folder) / "screen.h5ad"}
        files["memory"] = files["zarr"]
        for name, write in (("zarr", write_zarr), ("dense", write_dense)):
            if name in args.ways or (name == "zarr" and "memory" in args.ways):
                began = time.perf_counter()
                write(files[name], args.cells, args.genes)
                print(f"{name} written in {time.perf_counter() - began:.0f} s", flush=True)
        memory = None
        for way in args.ways:
            command = [sys.executable, __file__, str(args.cells), str(args.genes), "--epochs", str(args.epochs)]
            command += ["--fraction", str(args.fraction), "--train", way, str(files[way])]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            memory = found["rate"] if way == "memory" else memory
            ratio = f", {found['rate'] / memory:.2f} of memory" if memory else ""
            laps = ", ".join(f"{name} {found[name]:.1f} s" for name in ("setup", "start values", "epochs", "encode"))
            print(
                f"{way}: {found['rate']:.0f} cells/s{ratio}; {laps}; peak {found['trained']:.0f} MB in training, "
                f"{found['peak']:.0f} MB in all ({found['start']:.0f} MB at the start)",
                flush=True,
            )


if __name__ == "__main__":
    main()
