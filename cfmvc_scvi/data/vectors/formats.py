"""Files of vectors: one reader for every format, each gives names and numbers as they stand there."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pandas as pd
import torch

from cfmvc_scvi._messages import shortened, unknown_choice
from cfmvc_scvi.data.vectors.pickles import load_pickle


@dataclass(frozen=True)
class Table:
    """What a file says.

    Attributes
    ----------
    values
        Numbers, shape (n_names, n_features).
    names
        Name of every row; ``None`` where the file has none.
    features
        Name of every column; ``None`` where the file has none.
    """

    values: Any
    names: Sequence[Any] | None = None
    features: Sequence[Any] | None = None


def read_table(path: Path, key: str | None) -> Table:
    """Names and numbers of a file.

    Raises
    ------
    ValueError
        For an ending that is not one of :data:`FORMATS`, and for contents that are no vectors.
    """
    ending = next((end for end in sorted(FORMATS, key=len, reverse=True) if path.name.lower().endswith(end)), None)
    if ending is None:
        raise ValueError(
            f"The ending of {path.name!r} says no format: files that end with {shortened(FORMATS, 30)} are read."
        )
    return FORMATS[ending](path, key)


def read_names(path: Path) -> list[str]:
    """Names of a file: a JSON list, or one name a line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json":
        found = json.loads(text)
        if not isinstance(found, list):
            raise ValueError(f"{path.name!r} holds a {type(found).__name__}; names are read from a JSON list.")
        return [str(name) for name in found]
    return [line.strip() for line in text.splitlines() if line.strip()]


# ---- tables ---------------------------------------------------------------------------------------------------


def _delimited(separator: str) -> Callable[[Path, str | None], Table]:
    def read(path: Path, key: str | None) -> Table:
        # the column of the names is text as it stands: a gene called NA is no missing value
        head = [str(name) for name in pd.read_csv(path, sep=separator, nrows=0).columns]
        place = _position(head, key, path)
        frame = pd.read_csv(path, sep=separator, converters={place: str})
        return _of_frame(frame.set_index(frame.columns[place]), path)

    return read


def _parquet(path: Path, key: str | None) -> Table:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: `pip install 'cfmvc_scvi[parquet]'`.") from error
    if key is not None or isinstance(frame.index, pd.RangeIndex):
        frame = frame.set_index(frame.columns[_position(list(map(str, frame.columns)), key, path)])
    return _of_frame(frame, path)


def _position(columns: list[str], key: str | None, path: Path) -> int:
    """Column of the names: that of the key, or the first."""
    if key is None:
        return 0
    if key not in columns:
        raise ValueError(f"{path.name!r} has no column {key!r}. {unknown_choice('key', key, columns)}")
    return columns.index(key)


def _of_frame(frame: pd.DataFrame, path: Path) -> Table:
    text = [name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if text or not len(frame.columns):
        raise ValueError(
            f"{path.name!r} has columns that are no numbers: {shortened(text)}. The first column, or the one given as "
            "`key`, holds the names, and all others numbers: leave further columns out of the file."
            if text
            else f"{path.name!r} has no columns of numbers beside the names; is its ending that of its format?"
        )
    return Table(frame.to_numpy(), list(frame.index), list(frame.columns))


# ---- arrays ---------------------------------------------------------------------------------------------------


def _npy(path: Path, key: str | None) -> Table:
    try:
        return _of_object(np.load(path, allow_pickle=False), path, key)
    except ValueError as error:
        raise _no_objects(error, path) from error


def _npz(path: Path, key: str | None) -> Table:
    with np.load(path, allow_pickle=False) as file:
        try:
            return _of_object({name: file[name] for name in file.files}, path, key)
        except ValueError as error:
            raise _no_objects(error, path) from error


def _no_objects(error: ValueError, path: Path) -> ValueError:
    if "pickle" not in str(error):
        return error
    return ValueError(
        f"{path.name!r} is damaged, or holds Python objects, which are not read because they could run code. Save "
        "names as text: `np.array(names, dtype=str)`."
    )


def _hdf5(path: Path, key: str | None) -> Table:
    with h5py.File(path, "r") as file:
        group = None if key is None else file.get(key)
        where, wanted = (group, None) if isinstance(group, h5py.Group) else (file, key)
        found: dict[str, Any] = {}
        for name, item in cast("Mapping[str, Any]", where).items():
            if isinstance(item, h5py.Dataset):
                is_text = h5py.check_string_dtype(item.dtype) is not None
                found[name] = np.asarray(item.asstr()[()], dtype=object) if is_text else item[()]
        if not found:
            raise ValueError(
                f"{path.name!r} has no arrays at its top, but {shortened(where)}: give one of these as `key`, such as "
                "'species/9606'."
            )
        return _of_object(found, path, wanted)


def _torch(path: Path, key: str | None) -> Table:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path.name!r} is not read: it is damaged, or holds more than tensors, text and containers of these, "
            f"which could run code. Where you trust the file, save the vectors as npz. torch says: {str(error)[:200]}"
        ) from error
    return _of_object(found, path, key)


def _pickle(path: Path, key: str | None) -> Table:
    opened = gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")
    with opened as file:
        return _of_object(load_pickle(cast(Any, file)), path, key)


def _of_object(found: Any, path: Path, key: str | None) -> Table:
    """Names and numbers in what a file of arrays holds.

    An array has no names. A table is a tuple (rows, columns, values). In a dictionary a two-dimensional array is
    the vectors and a list of as many names their names; else its keys are names, and its values vectors.
    """
    if isinstance(found, tuple) and len(found) == 3:
        return Table(found[2], found[0], found[1])
    if not isinstance(found, Mapping):
        return Table(_as_array(found, path))
    arrays = {str(name): _as_array(value, path) for name, value in found.items()}
    texts = [value for value in arrays.values() if value.ndim == 1 and value.dtype.kind in "US"]
    tables = [name for name, value in arrays.items() if value.ndim == 2 and (len(value) > 1 or texts)]
    if key is not None:
        if key not in tables:
            raise ValueError(f"{path.name!r}: {unknown_choice('key', key, tables)}")
        tables = [key]
    if not tables:
        return _of_vectors(arrays, path)
    if len(tables) > 1:
        raise ValueError(f"{path.name!r} has several arrays of vectors, {shortened(tables)}: give one as `key`.")
    values = arrays[tables[0]]
    of_rows = next((i for i, text in enumerate(texts) if len(text) == len(values)), None)
    others = [text for i, text in enumerate(texts) if i != of_rows and len(text) == values.shape[1]]
    names = None if of_rows is None else _decoded(texts[of_rows])
    return Table(values, names, _decoded(others[0]) if others else None)


def _of_vectors(arrays: dict[str, np.ndarray], path: Path) -> Table:
    """One array for every name."""
    text = [name for name, value in arrays.items() if value.dtype.kind not in "fiub"]
    if text or not arrays:
        raise ValueError(f"{path.name!r} holds no vectors, but {shortened(text or arrays)}.")
    flat = {name: value.reshape(-1) for name, value in arrays.items()}
    lengths = pd.Series({name: len(value) for name, value in flat.items()})
    usual = int(lengths.mode().iloc[0])
    odd = lengths[lengths != usual]
    if len(odd):
        raise ValueError(
            f"{path.name!r} has vectors of different lengths: most have {usual} numbers, {shortened(odd.index, 5)} "
            f"{odd.iloc[0]}. Leave these out, or give `key` where one array holds all vectors."
        )
    return Table(np.stack(list(flat.values())), list(flat))


def _as_array(value: Any, path: Path) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float32 if value.is_floating_point() else value.dtype).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{path.name!r} has vectors whose parts have different lengths.") from error
    if array.dtype == object:
        is_text = all(isinstance(item, (str, bytes)) for item in array.flat)
        try:
            return np.array(_decoded(array)) if is_text and array.size else array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path.name!r} holds {type(value).__name__} objects that are neither numbers nor text."
            ) from error
    return array


def _decoded(names: np.ndarray) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]


#: Reader of every ending.
FORMATS: dict[str, Callable[[Path, str | None], Table]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _delimited(","),
    ".csv.gz": _delimited(","),
    ".tsv": _delimited("\t"),
    ".tsv.gz": _delimited("\t"),
    ".txt": _delimited("\t"),
    ".txt.gz": _delimited("\t"),
    ".parquet": _parquet,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".pt": _torch,
    ".pth": _torch,
    ".pkl": _pickle,
    ".pickle": _pickle,
    ".pkl.gz": _pickle,
    ".pickle.gz": _pickle,
}
