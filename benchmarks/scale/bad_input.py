"""What bad input on disk gets: files that do not fit together, no counts, damage, a full disk, a file that changes.

    python benchmarks/scale/bad_input.py

Every case runs on small simulated files. Printed is what the user reads, its first 200 characters; `NOTHING (!)` would
be a case that passes in silence.
"""

from __future__ import annotations

import logging
import resource
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import h5py
import numpy as np
import zarr

from cfmvc_scvi import CFMVC, data


def screen(seed: int) -> ad.AnnData:
    adata = data.simulate_perturbation(n_cells=300, n_genes=60, n_perturbations=3, seed=seed)
    return ad.AnnData(adata.X, obs=adata.obs.set_index(adata.obs_names + f"-{seed}"), var=adata.var[[]])


def files(folder: Path, second: Callable[[ad.AnnData], None] = lambda adata: None) -> list[Path]:
    """Two files of one screen; the second is changed."""
    paths = [folder / "a.h5ad", folder / "b.h5ad"]
    for seed, path in enumerate(paths):
        adata = screen(seed)
        if seed:
            second(adata)
        adata.write_h5ad(path)
    return paths


def rename(adata: ad.AnnData, first: int) -> None:
    adata.var_names = [name if i < first else f"ENSG{i}" for i, name in enumerate(adata.var_names)]


def normalise(adata: ad.AnnData) -> None:
    adata.X = np.log1p(1e4 * adata.X.toarray() / adata.X.sum(axis=1))


def set_value(adata: ad.AnnData, value: float) -> None:
    adata.X = adata.X.toarray()
    adata.X[290, 3] = value


def bring_together(folder: Path, second: Callable[[ad.AnnData], None]) -> None:
    data.import_counts(files(folder, second), folder / "both.zarr")


def read_in_place(folder: Path, second: Callable[[ad.AnnData], None]) -> None:
    CFMVC.setup_annbatch(files(folder, second))


def store(folder: Path) -> Path:
    screen(0).write_zarr(folder / "cells.zarr")
    group = zarr.open_group(folder / "cells.zarr", mode="r+", use_consolidated=False)
    ad.io.write_elem(group, "X", screen(0).X, dataset_kwargs={"chunks": (500,)})
    zarr.consolidate_metadata(group.store)
    return folder / "cells.zarr"


def chunk(path: Path) -> Path:
    """A file with values of the counts."""
    files = sorted(file for file in (path / "X" / "data").rglob("*") if file.is_file())
    return [file for file in files if file.name != "zarr.json" and not file.name.startswith(".")][2]


def lost_chunk(folder: Path) -> None:
    path = store(folder)
    chunk(path).unlink()
    CFMVC.setup_anndata(data.open_counts(path))


def cut_chunk(folder: Path) -> None:
    path = store(folder)
    file = chunk(path)
    file.write_bytes(file.read_bytes()[:40])
    CFMVC.setup_anndata(data.open_counts(path))


def cut_file(folder: Path) -> None:
    path = files(folder)[0]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    data.open_counts(path)


def full_disk(folder: Path) -> None:
    """A limit on the size of files stops a write as a full disk does."""
    paths = files(folder)
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, earlier[1]))
    try:
        data.import_counts(paths, folder / "both.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
        assert data.import_counts(paths, folder / "both.zarr").n_obs == 600  # with space, the same call goes on


def model_of(path: Path) -> CFMVC:
    adata = data.open_counts(path)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    return CFMVC(adata, n_latent=4, n_hidden=8, n_hidden_flow=8)


def changed_between_passes(folder: Path) -> None:
    path = files(folder)[0]
    model = model_of(path)
    model.adata.X.group.file.close()
    with h5py.File(path, "r+") as file:
        file["X/data"][:50] = file["X/data"][:50] + 1
    again = data.open_counts(path)
    model.adata.X = again.X
    model.train(vae_max_epochs=1, flow_max_epochs=1, accelerator="cpu", enable_progress_bar=False)


def replaced_while_open(folder: Path) -> None:
    path = store(folder)
    model = model_of(path)
    shutil.rmtree(path)
    model.train(vae_max_epochs=1, flow_max_epochs=1, accelerator="cpu", enable_progress_bar=False)


CASES: dict[str, Callable[[Path], None]] = {
    "no gene in common": lambda folder: bring_together(folder, lambda adata: rename(adata, 0)),
    "no gene in common, read in place": lambda folder: read_in_place(folder, lambda adata: rename(adata, 0)),
    "10 of 60 genes in common": lambda folder: bring_together(folder, lambda adata: rename(adata, 10)),
    "log-normalised file among counts": lambda folder: bring_together(folder, normalise),
    "log-normalised file, read in place": lambda folder: read_in_place(folder, normalise),
    "a negative value late in a file": lambda folder: bring_together(folder, lambda adata: set_value(adata, -1.0)),
    "a negative value, read in place": lambda folder: read_in_place(folder, lambda adata: set_value(adata, -1.0)),
    "a missing value, read in place": lambda folder: read_in_place(folder, lambda adata: set_value(adata, np.nan)),
    "zarr that lacks a chunk": lost_chunk,
    "zarr with a chunk cut short": cut_chunk,
    "h5ad cut short": cut_file,
    "no space": full_disk,
    "a file that changes between passes": changed_between_passes,
    "a store that is removed after setup": replaced_while_open,
}


def main() -> None:
    """Run every case and print what it gets."""
    logging.disable(logging.INFO)
    for name, case in CASES.items():
        with TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                case(Path(folder))
                found = [str(w.message) for w in warned if "fewer than half" in str(w.message)]
                text = f"warning: {found[0]}" if found else "NOTHING (!)"
            except Exception as error:  # noqa: BLE001  # whatever it is, it is shown
                text = f"{type(error).__name__}: {error}"
            print(f"{name}:\n    {text.replace(folder, '...')[:300]}")


if __name__ == "__main__":
    main()
