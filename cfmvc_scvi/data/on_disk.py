"""AnnData whose counts stay on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import zarr
from anndata import AnnData

#: What is read into memory.
_IN_MEMORY = ("obs", "var", "obsm", "varm", "uns")


def open_counts(path: str | os.PathLike) -> AnnData:
    """An AnnData whose counts stay on disk, ready for :meth:`cfmvc_scvi.CFMVC.setup_anndata`.

    ``X`` and layers are left where they are, as datasets that are read by rows; ``obs``, ``var``, ``obsm``, ``varm``
    and ``uns`` are in memory, pairwise matrices and ``raw`` are left out. Nothing is written into the file.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a zarr folder that anndata wrote, dense or CSR; :func:`import_counts` writes one that is
        fast to read.

    Returns
    -------
    AnnData (n_cells, n_genes). It needs the file as long as it is used.

    Raises
    ------
    FileNotFoundError
        When there is nothing at the path.
    OSError
        When it is not the file or folder of an AnnData, or not whole.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from cfmvc_scvi.data import simulate_perturbation
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "screen.zarr"
    ...     simulate_perturbation(n_cells=50, n_genes=20).write_zarr(path)
    ...     adata = open_counts(path)
    ...     adata.shape, adata.X[:2].shape
    ((50, 20), (2, 20))
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {os.fspath(path)!r}.")
    group: Any = None
    try:
        group = zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path, "r")
        missing = {"obs", "var"} - set(group.keys())
        if missing:
            raise ValueError(f"{sorted(missing)} are missing")
        parts: dict[str, Any] = {name: ad.io.read_elem(group[name]) for name in _IN_MEMORY if name in group}
        names = group["layers"].keys() if "layers" in group else ()
        layers = {name: _left_on_disk(group["layers"][name]) for name in names}
        x = _left_on_disk(group["X"]) if "X" in group else None
        return AnnData(x, layers=layers, **parts)
    except Exception as error:  # HDF5, zarr and anndata raise errors of many types
        if isinstance(group, h5py.File):
            group.close()
        raise OSError(
            f"{os.fspath(path)!r} cannot be opened as an AnnData: {error}. It must be an .h5ad file or a zarr folder "
            "that anndata wrote, and whole: one that was not written to its end, or copied in part, cannot be read."
        ) from error


def _left_on_disk(stored: Any) -> Any:
    return ad.io.sparse_dataset(stored) if isinstance(stored, (h5py.Group, zarr.Group)) else stored
