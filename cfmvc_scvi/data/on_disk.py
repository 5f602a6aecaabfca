"""AnnData whose counts stay on disk."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData

from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi.data.parts import joined_annotations, shared_genes
from cfmvc_scvi.registration.keys import counts_matrix

#: What is read into memory.
_IN_MEMORY = ("obs", "var", "obsm", "varm", "uns")
#: Names of the parts of a collection.
_PART = re.compile(r"dataset_(\d+)(\.h5ad)?")


def open_counts(path: str | os.PathLike | Sequence[str | os.PathLike]) -> AnnData:
    """An AnnData whose counts stay on disk, ready for :meth:`cfmvc_scvi.CFMVC.setup_anndata`.

    ``X`` and layers are left where they are, as datasets that are read by rows; ``obs``, ``var``, ``obsm``, ``varm``
    and ``uns`` are in memory, pairwise matrices and ``raw`` are left out. Nothing is written into the file.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a zarr folder that anndata wrote, dense or CSR (:func:`import_counts` writes one that is
        fast to read), or a collection that annbatch wrote; or several of these, whose cells are put under each other.

    Returns
    -------
    AnnData (n_cells, n_genes). It needs the files as long as it is used. Of several, and of the parts of a collection,
    it has the genes that all have, matched by name, in the order of the first; the columns of ``obs`` of all;
    ``obsm`` and layers that all have; ``var`` and ``uns`` of the first. Names of cells that occur in several get the
    name of the part behind them.

    Raises
    ------
    FileNotFoundError
        When there is nothing at the path.
    OSError
        When it is not the file or folder of an AnnData, or not whole.
    ValueError
        When several files share no gene, or have genes whose names are not unique.

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
    paths = [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(one) for one in path]
    if not paths:
        raise ValueError("`path` is empty: give the path of a file, or several.")
    parts = {name: part for one in paths for name, part in _parts_at(one).items()}
    return next(iter(parts.values())) if len(parts) == 1 else _stack(parts)


def _parts_at(path: Path) -> dict[str, AnnData]:
    """The AnnData at a path, or those of the collection there, by their paths."""
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {os.fspath(path)!r}.")
    found = [_PART.fullmatch(name) for name in os.listdir(path)] if path.is_dir() else []
    numbers = {int(match[1]): match[0] for match in found if match is not None}
    names = [os.fspath(path / numbers[number]) for number in sorted(numbers)] or [os.fspath(path)]
    if len(numbers) and max(numbers) >= len(numbers):
        missing = sorted(set(range(max(numbers))) - set(numbers))
        raise OSError(f"The collection {os.fspath(path)!r} is not whole: parts {missing} are missing. Copy it again.")
    return {name: _open(Path(name)) for name in names}


def _open(path: Path) -> AnnData:
    group: Any = None
    try:
        group = zarr.open_group(path, mode="r") if path.is_dir() else h5py.File(path, "r")
        missing = {"obs", "var"} - set(group.keys())
        if missing:
            raise ValueError(f"{sorted(missing)} are missing")
        parts: dict[str, Any] = {name: ad.io.read_elem(group[name]) for name in _IN_MEMORY if name in group}
        parts |= {name: _with_plain_text(parts[name]) for name in ("obs", "var")}
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


def _with_plain_text(table: pd.DataFrame) -> pd.DataFrame:
    """Names and columns of text as objects; pandas 3 writes them as a type that anndata may refuse to write again."""
    text = {name: object for name in table if isinstance(table[name].dtype, pd.StringDtype)}
    return table.astype(text).set_axis(table.index.astype(object))


def _left_on_disk(stored: Any) -> Any:
    return ad.io.sparse_dataset(stored) if isinstance(stored, (h5py.Group, zarr.Group)) else stored


def _stack(parts: dict[str, AnnData]) -> AnnData:
    """Cells of all parts, with the matrices that all have under each other."""
    genes = shared_genes(parts)
    names = {path: Path(path).name.removesuffix(".h5ad").removesuffix(".zarr") for path in parts}
    if len(set(names.values())) < len(names):
        names = {path: path for path in parts}
    whole = joined_annotations({names[path]: adata for path, adata in parts.items()}, genes)
    layers = [name for name in next(iter(parts.values())).layers if all(name in part.layers for part in parts.values())]
    for layer in ([None] if all(part.X is not None for part in parts.values()) else []) + layers:
        rows = [_with_genes(part, layer, genes) for part in parts.values()]
        matrix = DiskRows.stacked(rows, rows[0].where)
        if layer is None:
            whole.X = matrix
        else:
            whole.layers[layer] = matrix
    return whole


def _with_genes(adata: AnnData, layer: str | None, genes: Any) -> DiskRows:
    rows: DiskRows = counts_matrix(adata, layer)
    columns = adata.var_names.get_indexer(genes)
    same = len(columns) == adata.n_vars and (columns == np.arange(len(columns))).all()
    return rows if same else rows.with_columns(columns)
