"""Counts of several files brought together in one zarr store, block by block."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy import sparse
from scvi.utils import track
from zarr.storage import MemoryStore

from cfmvc_scvi._messages import shortened
from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi.data.on_disk import open_counts
from cfmvc_scvi.data.parts import joined_annotations, shared_genes
from cfmvc_scvi.io.files import remove, require_space, sync_tree, write_error
from cfmvc_scvi.registration.counts import find_noncount
from cfmvc_scvi.registration.keys import counts_matrix, counts_name

logger = logging.getLogger(__name__)

#: Cells that are read, checked and written together, and entries of one chunk of the store.
_BLOCK, _CHUNK = 4096, 2**17
#: Blocks of every file that are looked at before anything is written.
_LOOKED_AT = 4


def import_counts(
    paths: str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike],
    out: str | os.PathLike,
    *,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
    source_key: str | None = "source",
    show_progress: bool = False,
) -> AnnData:
    """Bring the counts of several files together in one zarr store, to train from there.

    Files may be dense or CSR, ``.h5ad`` or zarr, with genes in different orders; genes are matched by name. Counts are
    read, checked and written some thousand cells at a time, so memory does not grow with the files. The store appears
    at ``out`` when it is complete. A call that was interrupted goes on where it was when it is made again with the
    same files. How large the store becomes is logged first.

    Parameters
    ----------
    paths
        The files, or a mapping of a name for each to its path. Cells keep their order, file after file.
    out
        Path of the store, ending in ``.zarr``.
    layer
        Layer of the files that holds the counts; ``None`` takes ``X``.
    genes
        Genes to keep, in this order; ``None`` keeps those that all files have, in the order of the first.
    source_key
        Column of ``obs`` that gets the name of each cell's file: that of the mapping, or the file's name without its
        ending. ``None`` adds none.
    show_progress
        Show a bar over blocks of cells.

    Returns
    -------
    AnnData (n_cells, n_genes) whose counts stay in the store, as :func:`open_counts` opens it. ``obs`` has the columns
    of all files, ``obsm`` what all files have with the same width, ``uns`` is that of the first file. Names of cells
    that occur in several files get the name of the file behind them.

    Raises
    ------
    ValueError
        For values that are no counts, with the file, a cell, a gene and the value; some blocks of every file are looked
        at before anything is written. For genes that are not there, not unique, or not shared.
    FileExistsError
        When there is something at ``out``.
    OSError
        When a file cannot be read, or the disk has no space for the store. What was written is kept for the next call.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from cfmvc_scvi.data import simulate_perturbation
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("a", "b"):
    ...         adata = simulate_perturbation(n_cells=50, n_genes=20)
    ...         adata.write_h5ad(Path(folder) / f"{name}.h5ad")
    ...     both = import_counts([Path(folder) / "a.h5ad", Path(folder) / "b.h5ad"], Path(folder) / "both.zarr")
    ...     both.shape, both.obs["source"].value_counts().to_dict()
    ((100, 20), {'a': 50, 'b': 50})
    """
    out = Path(out)
    if out.suffix != ".zarr":
        raise ValueError(f"`out` is {os.fspath(out)!r}: its name must end in .zarr.")
    if out.exists():
        raise FileExistsError(f"There is something at `out`, {os.fspath(out)!r}, already: remove it or choose another.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"The folder of `out` does not exist: {os.fspath(out.parent)!r}. Make it first.")
    sources = _open_sources(paths, layer)
    try:
        _import(sources, out, genes, source_key, show_progress)
    finally:
        for source in sources:
            source.counts.close()
    return open_counts(out)


@dataclass(frozen=True)
class _Source:
    """One file: its annotations in memory, its counts on disk."""

    name: str
    path: Path
    adata: AnnData
    counts: DiskRows

    @property
    def where(self) -> str:
        return f"{self.counts.where} of {os.fspath(self.path)!r}"

    @property
    def identity(self) -> list:
        """Tells whether it is the same file as in an earlier call."""
        stat = self.path.stat()
        shape = self.adata.shape
        return [self.name, str(self.path.resolve()), self.counts.where, stat.st_size, stat.st_mtime_ns, *shape]

    def with_genes(self, names: pd.Index) -> _Source:
        columns = self.adata.var_names.get_indexer(names)
        same = len(columns) == self.adata.n_vars and (columns == np.arange(len(columns))).all()
        return self if same else _Source(self.name, self.path, self.adata, self.counts.with_columns(columns))

    def block(self, start: int, names: pd.Index) -> sparse.csr_matrix:
        """Some cells from ``start`` on, checked: float32, entries in order, no zeros stored."""
        block = self.counts[start : start + _BLOCK]
        bad = find_noncount(block)
        if bad is not None:
            cell, gene, value, why = bad
            raise ValueError(
                f"{self.where} does not hold counts: gene {names[gene]!r} of cell "
                f"{self.adata.obs_names[start + cell]!r} has {value:g}, which is {why}. Raw counts are needed: where "
                "they are in a layer, pass `layer=`; where this file has none, leave it out."
            )
        block = sparse.csr_matrix(block, dtype=np.float32)
        block.sum_duplicates()
        block.eliminate_zeros()
        return block


def _import(
    sources: list[_Source], out: Path, genes: Sequence[str] | None, source_key: str | None, show_progress: bool
) -> None:
    tables = {os.fspath(source.path): source.adata for source in sources}
    names = shared_genes(tables, genes)
    sources = [source.with_genes(names) for source in sources]
    skeleton = joined_annotations({source.name: source.adata for source in sources}, names, source_key)
    bytes_each = _look_at(sources, names)
    try:
        store = _Store.begin(out, sources, skeleton)
        logger.info(
            "%d cells x %d genes of %d files: about %.2f GB in %s; %d cells are there already.",
            *(skeleton.n_obs, skeleton.n_vars, len(sources), bytes_each * skeleton.n_obs / 1e9, out, store.n_cells),
        )
        require_space(out.parent, int(bytes_each * (skeleton.n_obs - store.n_cells)), "the counts")
        _copy(sources, names, store, show_progress)
        store.finish(out)
    except OSError as error:
        clear = write_error(error, out, "the counts") if error.errno is not None else error
        raise clear from (None if clear is error else error)


# ---- what is there ------------------------------------------------------------------------------------------------


def _open_sources(paths: Any, layer: str | None) -> list[_Source]:
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    if not isinstance(paths, Mapping):
        stems = [Path(path).stem for path in paths]
        if len(set(stems)) < len(stems):
            raise ValueError(f"Several files have one name: {shortened(stems)}. Pass a mapping of names to paths.")
        paths = dict(zip(stems, paths, strict=True))
    if not paths:
        raise ValueError("`paths` is empty: there is nothing to import.")
    return [_open_source(str(name), Path(path), layer) for name, path in paths.items()]


def _open_source(name: str, path: Path, layer: str | None) -> _Source:
    adata = open_counts(path)
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"`layer` {layer!r} is not in the layers of {os.fspath(path)!r}, which are {list(adata.layers)}."
        )
    try:
        counts = counts_matrix(adata, layer)
    except TypeError as error:
        raise TypeError(f"{os.fspath(path)!r}: {error}") from error
    where = counts_name(layer)
    if not isinstance(counts, DiskRows):
        raise ValueError(f"{where} of {os.fspath(path)!r} is empty: pass `layer=`, one of {list(adata.layers)}.")
    if counts.dtype.kind not in "iuf" or counts.dtype == np.float16:
        raise TypeError(f"{where} of {os.fspath(path)!r} has values of type {counts.dtype}, which are not counts.")
    return _Source(name, path, adata, counts)


def _look_at(sources: list[_Source], names: pd.Index) -> float:
    """Check some blocks of every file; bytes of the store per cell, as they compress."""
    rng, n_bytes, n_cells = np.random.default_rng(0), 0, 0
    for source in sources:
        starts = np.arange(0, len(source.counts), _BLOCK)
        for start in np.sort(rng.permutation(starts)[:_LOOKED_AT]):
            block = source.block(int(start), names)
            memory: dict[str, Any] = {}
            ad.io.write_elem(zarr.group(MemoryStore(memory)), "X", block)
            n_bytes += sum(len(value) for value in memory.values())
            n_cells += len(block.indptr) - 1
    return n_bytes / max(1, n_cells)


# ---- the store ----------------------------------------------------------------------------------------------------


class _Store:
    """A store that is being written beside its place, with a note of how far it is.

    Attributes
    ----------
    n_cells, n_entries
        Cells and entries that are there.
    """

    def __init__(self, path: Path, n_cells: int, n_entries: int, identity: str) -> None:
        self.path, self.n_cells, self.n_entries, self._identity = path, n_cells, n_entries, identity
        group: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
        self._values, self._indices, self._starts = (group[f"X/{name}"] for name in ("data", "indices", "indptr"))

    @classmethod
    def begin(cls, out: Path, sources: list[_Source], skeleton: AnnData) -> _Store:
        """The store of an earlier call with the same files, where there is one; else a new one."""
        path = out.with_name(f".{out.name}.import")
        what = [[source.identity for source in sources], list(skeleton.var_names), list(skeleton.obs), _CHUNK]
        identity = json.dumps(what)
        note = _note_of(path)
        if note.is_file() and path.is_dir():
            found = json.loads(note.read_text())
            if found["identity"] == identity:
                return cls(path, found["n_cells"], found["n_entries"], identity)
        remove(note)
        remove(path)
        skeleton.write_zarr(path)
        group: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
        if "X" in group:
            del group["X"]
        x = group.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(skeleton.shape)})
        for name, n, dtype in (("data", 0, "f4"), ("indices", 0, "i4"), ("indptr", skeleton.n_obs + 1, "i8")):
            array = x.create_array(name, shape=(n,), dtype=dtype, chunks=(_CHUNK,))
            array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        store = cls(path, 0, 0, identity)
        store._note()
        return store

    def append(self, block: sparse.csr_matrix) -> None:
        """Add the next cells, and note that they are there."""
        require_space(self.path, 3 * (8 * block.nnz + 8 * _CHUNK), "the counts")
        end = self.n_entries + block.nnz
        for array, part in ((self._values, block.data), (self._indices, block.indices)):
            array.resize((end,))
            array[self.n_entries : end] = part
        n_cells = self.n_cells + len(block.indptr) - 1
        self._starts[self.n_cells + 1 : n_cells + 1] = block.indptr[1:].astype(np.int64) + self.n_entries
        self.n_cells, self.n_entries = n_cells, end
        self._note()

    def finish(self, out: Path) -> None:
        """Move the complete store to its place."""
        zarr.consolidate_metadata(zarr.open_group(self.path, mode="r+", use_consolidated=False).store)
        sync_tree(self.path)
        os.replace(self.path, out)
        _note_of(self.path).unlink()

    def _note(self) -> None:
        note = {"n_cells": self.n_cells, "n_entries": self.n_entries, "identity": self._identity}
        path = _note_of(self.path)
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(note))
        os.replace(aside, path)


def _note_of(store: Path) -> Path:
    """The file beside an unfinished store that says how far it is."""
    return store.with_name(f"{store.name}.json")


def _copy(sources: list[_Source], names: pd.Index, store: _Store, show_progress: bool) -> None:
    """Append the cells that are not in the store."""
    blocks, before = [], 0
    for source in sources:
        n = len(source.counts)
        blocks += [(source, start) for start in range(0, n, _BLOCK) if before + start >= store.n_cells]
        before += n
    for source, start in track(blocks, description="Importing cells", disable=not show_progress):
        store.append(source.block(start, names))
