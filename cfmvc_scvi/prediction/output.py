"""Where predictions go: into memory, or block by block into an ``.h5ad`` or zarr file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi.io.files import h5ad_size, remove, remove_partial, require_space, sync, sync_tree, write_error

_LATENT = "X_cfmvc"
#: Kinds of columns, as pandas calls them, that a file can hold.
_WRITABLE = ("string", "boolean", "integer", "integer-na", "floating", "mixed-integer-float", "empty")
#: Rows of one chunk of a dense matrix on disk.
_CHUNK_ROWS = 512
#: Free space that is asked for beside that of the rows: chunks that HDF5 keeps back, and its tables.
_SLACK_BYTES = 16_000_000


class Output(ABC):
    """Takes the rows of a result in order.

    Parameters
    ----------
    obs, var, uns
        Annotations of the whole result, which are known before its values.
    n_latent
        Dimension of the latent kept in ``obsm["X_cfmvc"]``; ``None`` where there is none.
    is_sparse
        Whether ``X`` is CSR rather than dense.
    layer
        Layer that gets the same values as ``X``.
    layers
        Names of further dense layers, with values of their own.
    obsm
        Further arrays of the cells, such as their coordinates.
    """

    def __init__(
        self,
        obs: pd.DataFrame,
        var: pd.DataFrame,
        uns: dict[str, Any],
        *,
        n_latent: int | None,
        is_sparse: bool,
        layer: str | None = None,
        layers: Sequence[str] = (),
        obsm: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.layer, self.layers, self.obsm = layer, list(layers), dict(obsm or {})
        self.obs, self.var, self.uns = obs, var, uns
        self.is_sparse = is_sparse
        self.shape = (len(obs), len(var))
        self.latent_shape = None if n_latent is None else (len(obs), n_latent)
        self._filled = 0

    def append(
        self,
        x: np.ndarray | sparse.csr_matrix,
        latent: np.ndarray | None = None,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add the next rows of ``X``, of the latent where there is one, and of the layers with values of their own."""
        n_rows, _ = cast("tuple[int, int]", x.shape)
        rows = slice(self._filled, self._filled + n_rows)
        arrays = dict(layers or {})
        if latent is not None:
            arrays[_LATENT] = latent
        self._write(rows, x, arrays)
        self._filled = rows.stop

    @abstractmethod
    def _write(self, rows: slice, x: np.ndarray | sparse.csr_matrix, arrays: dict[str, np.ndarray]) -> None:
        """Put rows in their place: ``X``, and dense arrays by the name of their layer, or that of the latent."""

    @abstractmethod
    def finish(self) -> AnnData:
        """The whole result."""

    def abandon(self) -> None:  # noqa: B027  # nothing to clean up in memory
        """Leave nothing behind after a failure."""


class MemoryOutput(Output):
    """Result in memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._x = None if self.is_sparse else np.empty(self.shape, dtype=np.float32)
        self._blocks: list[sparse.csr_matrix] = []
        self._arrays = {name: np.empty(self.shape, dtype=np.float32) for name in self.layers}
        if self.latent_shape is not None:
            self._arrays[_LATENT] = np.empty(self.latent_shape, dtype=np.float32)

    def _write(self, rows: slice, x: np.ndarray | sparse.csr_matrix, arrays: dict[str, np.ndarray]) -> None:
        for name, values in arrays.items():
            self._arrays[name][rows] = values
        if self._x is None:
            self._blocks.append(cast(sparse.csr_matrix, x))
        else:
            self._x[rows] = cast(np.ndarray, x)

    def finish(self) -> AnnData:
        """See :meth:`Output.finish`."""
        x = sparse.vstack(self._blocks, format="csr") if self.is_sparse else self._x
        obsm: Any = self.obsm | {name: values for name, values in self._arrays.items() if name == _LATENT}
        layers: Any = {name: self._arrays[name] for name in self.layers}  # anndata's annotation does not name arrays
        if self.layer is not None and x is not None:
            layers[self.layer] = x.copy()
        return AnnData(x, obs=self.obs, var=self.var, uns=self.uns, obsm=obsm, layers=layers)


class FileOutput(Output):
    """Result on disk, written beside its place and moved there when it is complete."""

    def __init__(self, path: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path = path
        remove_partial(path)
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._matrices = ["X"] if self.layer is None else ["X", f"layers/{self.layer}"]
        check_can_be_written(self.obs)
        skeleton = AnnData(obs=self.obs, var=self.var, uns=self.uns, obsm=cast(Any, self.obsm))
        require_space(path.parent, h5ad_size(skeleton), "the prediction")
        try:
            self._group: Any = self._open(skeleton)
            if "X" in self._group:
                del self._group["X"]
            for name in () if self.is_sparse else self._matrices:
                self._create(name, self.shape)
            for name in self.layers:
                self._create(f"layers/{name}", self.shape)
            if self.latent_shape is not None:
                self._create(f"obsm/{_LATENT}", self.latent_shape)
        except BaseException:
            remove(self._partial)
            raise

    @abstractmethod
    def _open(self, skeleton: AnnData) -> Any:
        """Write the annotations and open the file for the rest."""

    @abstractmethod
    def _create_array(self, name: str, shape: tuple[int, int], chunks: tuple[int, int]) -> Any: ...

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _reopen(self) -> AnnData:
        """The complete file, its values left on disk."""

    def append(
        self,
        x: np.ndarray | sparse.csr_matrix,
        latent: np.ndarray | None = None,
        layers: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Add the next rows; raises :class:`OSError` when the disk is full, before HDF5 would end the process."""
        size = len(self._matrices) * (x.nbytes if isinstance(x, np.ndarray) else 3 * x.data.nbytes)
        size += sum(values.nbytes for values in (layers or {}).values()) + (0 if latent is None else latent.nbytes)
        try:
            require_space(self.path.parent, size + _SLACK_BYTES, "the prediction")
            super().append(x, latent, layers)
        except OSError as error:
            clear = write_error(error, self.path, "the prediction")
            raise clear from (None if clear is error else error)

    def _create(self, name: str, shape: tuple[int, int]) -> None:
        array = self._create_array(name, shape, (max(1, min(_CHUNK_ROWS, shape[0])), max(1, shape[1])))
        array.attrs["encoding-type"] = "array"
        array.attrs["encoding-version"] = "0.2.0"

    def _write(self, rows: slice, x: np.ndarray | sparse.csr_matrix, arrays: dict[str, np.ndarray]) -> None:
        for name, values in arrays.items():
            self._group[f"obsm/{name}" if name == _LATENT else f"layers/{name}"][rows] = values
        for name in self._matrices:
            if isinstance(x, np.ndarray):
                self._group[name][rows] = x
            elif rows.start == 0:
                ad.io.write_elem(self._group, name, _wide(x))
            else:
                dataset: Any = ad.io.sparse_dataset(self._group[name])  # anndata does not annotate `append`
                dataset.append(_wide(x))

    def finish(self) -> AnnData:
        """See :meth:`Output.finish`."""
        self._close()
        sync_tree(self._partial)
        os.replace(self._partial, self.path)
        sync(self.path.parent)
        return self._reopen()

    def abandon(self) -> None:
        """Remove the incomplete file."""
        self._close()
        remove(self._partial)


class H5adOutput(FileOutput):
    """Result in an ``.h5ad`` file."""

    def _open(self, skeleton: AnnData) -> h5py.File:
        skeleton.write_h5ad(self._partial)
        return h5py.File(self._partial, "r+")

    def _create_array(self, name: str, shape: tuple[int, int], chunks: tuple[int, int]) -> h5py.Dataset:
        return self._group.create_dataset(name, shape=shape, dtype=np.float32, chunks=chunks)

    def _close(self) -> None:
        self._group.close()

    def _reopen(self) -> AnnData:
        return ad.read_h5ad(self.path, backed="r")


class ZarrOutput(FileOutput):
    """Result in a zarr folder."""

    def _open(self, skeleton: AnnData) -> zarr.Group:
        skeleton.write_zarr(self._partial)
        return zarr.open_group(self._partial, mode="r+", use_consolidated=False)

    def _create_array(self, name: str, shape: tuple[int, int], chunks: tuple[int, int]) -> zarr.Array:
        return self._group.create_array(name, shape=shape, dtype=np.float32, chunks=chunks)

    def _close(self) -> None:
        zarr.consolidate_metadata(self._group.store)

    def _reopen(self) -> AnnData:
        group = zarr.open_group(self.path, mode="r")
        x: Any = group["X"]
        if self.is_sparse:
            x = ad.io.sparse_dataset(x)
        parts: dict[str, Any] = {name: ad.io.read_elem(group[name]) for name in ("obs", "var", "uns", "obsm")}
        layers: dict[str, Any] = {name: group[f"layers/{name}"] for name in self.layers}
        if self.layer is not None:
            matrix: Any = group[f"layers/{self.layer}"]
            layers[self.layer] = ad.io.sparse_dataset(matrix) if self.is_sparse else matrix
        return AnnData(x, layers=layers, **parts)


#: Results by the ending of their path.
_KINDS: dict[str, type[FileOutput]] = {".h5ad": H5adOutput, ".zarr": ZarrOutput}


def check_can_be_written(obs: pd.DataFrame) -> None:
    """Raise for columns that ``.h5ad`` and zarr files cannot hold, naming them.

    Raises
    ------
    ValueError
        For dates, and for text beside numbers.
    """
    bad = {}
    for name in obs:
        column = obs[name]
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        kind = pd.api.types.infer_dtype(values, skipna=True)
        if kind not in _WRITABLE:
            bad[str(name)] = kind
    if bad:
        first, named = next(iter(bad)), ", ".join(f"{name!r} holds {kind}" for name, kind in bad.items())
        raise ValueError(
            f"Columns of obs cannot be written to a file: {named}. Make them text in the cells that are given, "
            f"`adata.obs[{first!r}] = adata.obs[{first!r}].astype(str)`, or leave them out."
        )


def check_path(out: str | os.PathLike) -> Path:
    """Path of a result, checked but for what is there.

    Raises
    ------
    ValueError
        For an ending that is not ``.h5ad`` or ``.zarr``.
    FileNotFoundError
        When its folder does not exist.
    """
    path = Path(out)
    if path.suffix not in _KINDS:
        raise ValueError(f"`out` is {str(out)!r}: its name must end in one of {sorted(_KINDS)}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder of `out` does not exist: {str(path.parent)!r}. Make it first.")
    return path


def make_output(out: str | os.PathLike | None, **kwargs: Any) -> Output:
    """Output for a path ending in ``.h5ad`` or ``.zarr``; in memory for ``None``.

    Raises
    ------
    ValueError
        For another ending.
    FileExistsError
        When there is something at the path already.
    FileNotFoundError
        When its folder does not exist.
    """
    if out is None:
        return MemoryOutput(**kwargs)
    path = check_path(out)
    if path.exists():
        raise FileExistsError(f"There is something at `out`, {str(out)!r}, already: remove it or choose another name.")
    return _KINDS[path.suffix](path, **kwargs)


def _wide(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """With 64-bit row pointers, which do not overflow when rows are added."""
    return sparse.csr_matrix((x.data, x.indices, x.indptr.astype(np.int64)), shape=x.shape, copy=False)


def latent_var(n_latent: int) -> pd.DataFrame:
    """Names of the intrinsic latent's dimensions."""
    return pd.DataFrame(index=[f"z_int_{i}" for i in range(n_latent)])
