"""Nested Python values as JSON and arrays, and back: exact, and unable to run code.

What JSON has stays as it is: ``None``, booleans, integers, finite floats, text, lists, and dictionaries whose keys are
text that does not begin with ``$``. Everything else becomes a dictionary with one key that begins with ``$`` and names
the type, such as ``{"$tuple": [1, 2]}``. Numbers of arrays are kept aside under names, ``{"$array": "a0"}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy import sparse

#: Kinds of numbers that safetensors holds: bool, integers, floats.
_NUMBER_KINDS = "biuf"
#: Sparse matrices that consist of data, indices and indptr.
_SPARSE = {name: getattr(sparse, name) for name in ("csr_matrix", "csc_matrix", "csr_array", "csc_array")}


def to_plain(value: Any, where: str = "value") -> tuple[Any, dict[str, np.ndarray]]:
    """Split a value into what JSON can hold and a table of numeric arrays.

    Taken are ``None``, booleans, integers, floats, text, lists, tuples, sets, dictionaries with any such keys, numpy
    arrays and scalars, tensors, CSR and CSC matrices, and pandas data frames, series, indexes and categoricals.
    :func:`from_plain` gives back equal values of the same types; a tensor comes back on the CPU.

    Parameters
    ----------
    value
        The value.
    where
        Its name, for errors.

    Returns
    -------
    A value for :func:`json.dumps`, and the arrays that it names.

    Raises
    ------
    TypeError
        For a value of another type, saying where it is.

    Examples
    --------
    >>> to_plain({"shape": (2, 3), "scale": float("inf")})
    ({'shape': {'$tuple': [2, 3]}, 'scale': {'$float': 'inf'}}, {})
    """
    arrays: dict[str, np.ndarray] = {}
    return _Encoder(arrays).encode(value, where), arrays


def from_plain(plain: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Value that :func:`to_plain` has split.

    Parameters
    ----------
    plain
        Value as :func:`json.loads` returns it.
    arrays
        Arrays by name.

    Raises
    ------
    ValueError
        For anything that :func:`to_plain` does not write.

    Examples
    --------
    >>> from_plain({"shape": {"$tuple": [2, 3]}, "scale": {"$float": "inf"}}, {})
    {'shape': (2, 3), 'scale': inf}
    """
    try:
        return _decode(plain, arrays)
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"Not a value this version reads: {error!r}.") from error


class _Encoder:
    """Turns values into JSON and puts their numbers into ``arrays``; ``where`` is the name of a value, for errors."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def encode(self, value: Any, where: str) -> Any:
        for types, method in self._methods():
            if isinstance(value, types):
                return method(value, where)
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved: use None, "
            "numbers, text, lists, tuples, dictionaries, or arrays of numpy, scipy, torch or pandas."
        )

    def _methods(self) -> tuple[tuple[Any, Callable[[Any, str], Any]], ...]:
        """Types and how each is encoded; the first that fits is taken, so subclasses stand before their parents."""
        return (
            (type(None), self._same),
            (np.generic, self._scalar),  # before float and bool, of which some are subclasses
            ((bool, str), self._same),
            (int, lambda value, where: int(value)),
            (float, self._float),
            (list, lambda value, where: self._items(value, where)),
            (tuple, lambda value, where: {"$tuple": self._items(self._no_names(value, where), where)}),
            ((set, frozenset), lambda value, where: {f"${type(value).__name__}": self._items(_ordered(value), where)}),
            (Mapping, self._mapping),
            (np.ndarray, self._array),
            (torch.Tensor, self._tensor),
            (tuple(_SPARSE.values()), self._sparse),
            (pd.DataFrame, self._frame),
            (pd.Series, self._series),
            (pd.RangeIndex, self._range),
            (pd.MultiIndex, lambda value, where: {"$multiindex": self._items([*value], where), **self._names(value)}),
            (pd.Index, lambda value, where: {"$index": self._column(value, where), **self._name(value)}),
            (pd.Categorical, self._categorical),
        )

    def _same(self, value: Any, where: str) -> Any:
        return value

    def _float(self, value: float, where: str) -> Any:
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}

    def _no_names(self, value: tuple, where: str) -> tuple:
        if type(value) is not tuple:
            raise TypeError(f"{where} is a {type(value).__qualname__}: save a plain tuple or a dictionary instead.")
        return value

    def _items(self, values: Any, where: str) -> list:
        return [self.encode(item, f"{where}[{i}]") for i, item in enumerate(values)]

    def _mapping(self, value: Mapping, where: str) -> Any:
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {str(key): self.encode(item, f"{where}[{key!r}]") for key, item in value.items()}
        pairs = [[self.encode(k, where), self.encode(item, f"{where}[{k!r}]")] for k, item in value.items()]
        return {"$dict": pairs}

    def _store(self, array: np.ndarray) -> str:
        """Keep an array aside and return its name."""
        name = f"a{len(self.arrays)}"
        self.arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name

    def _array(self, value: np.ndarray, where: str) -> Any:
        if value.dtype.kind in _NUMBER_KINDS and value.dtype.itemsize <= 8:
            return {"$array": self._store(value.astype(value.dtype.newbyteorder("="), copy=False))}
        if value.dtype.kind in "OU":
            items = self._items(value.ravel().tolist(), where)
            return {"$objects": items, "shape": list(value.shape), "dtype": value.dtype.str}
        if value.dtype.kind in "mM":
            return {"$times": self._store(value.view(np.int64)), "dtype": value.dtype.str}
        raise TypeError(f"{where} is an array of type {value.dtype}, which cannot be saved.")

    def _scalar(self, value: np.generic, where: str) -> Any:
        return {"$scalar": self._array(np.asarray(value), where)}

    def _tensor(self, value: torch.Tensor, where: str) -> Any:
        value = value.detach().cpu()
        if value.is_sparse or value.is_quantized or value.is_complex():
            raise TypeError(f"{where} is a tensor of layout {value.layout} and type {value.dtype}: save a dense one.")
        if value.dtype == torch.bfloat16:
            return {"$tensor": self._store(value.contiguous().view(torch.int16).numpy()), "dtype": "bfloat16"}
        return {"$tensor": self._store(value.numpy())}

    def _sparse(self, value: Any, where: str) -> Any:
        parts = {name: self._store(getattr(value, name)) for name in ("data", "indices", "indptr")}
        return {"$sparse": type(value).__name__, "shape": list(value.shape), **parts}

    def _frame(self, value: pd.DataFrame, where: str) -> Any:
        columns = [self._column(value.iloc[:, i], f"{where}[{name!r}]") for i, name in enumerate(value.columns)]
        axes = {"columns": self.encode(value.columns, where), "index": self.encode(value.index, where)}
        return {"$frame": columns, **axes}

    def _series(self, value: pd.Series, where: str) -> Any:
        return {"$series": self._column(value, where), "index": self.encode(value.index, where), **self._name(value)}

    def _column(self, value: pd.Series | pd.Index, where: str) -> Any:
        """Values of a series or an index, without its name and labels."""
        if isinstance(value.dtype, pd.CategoricalDtype):
            return self._categorical(pd.Categorical(value), where)
        if isinstance(value.dtype, pd.StringDtype):
            items = [None if missing else item for item, missing in zip(value, value.isna(), strict=True)]
            return {"$strings": items, "dtype": str(value.dtype)}
        if not isinstance(value.dtype, np.dtype):
            raise TypeError(f"{where} has the pandas type {value.dtype}, which cannot be saved.")
        return self._array(value.to_numpy(), where)

    def _categorical(self, value: pd.Categorical, where: str) -> Any:
        return {
            "$categorical": self._store(np.asarray(value.codes)),
            "categories": self.encode(value.categories, where),
            "ordered": bool(value.ordered),
        }

    def _range(self, value: pd.RangeIndex, where: str) -> Any:
        return {"$range": [value.start, value.stop, value.step], **self._name(value)}

    def _name(self, value: pd.Series | pd.Index) -> dict[str, Any]:
        return {"name": self.encode(value.name, "name")}

    def _names(self, value: pd.MultiIndex) -> dict[str, Any]:
        return {"names": self.encode(list(value.names), "names")}


def _ordered(values: set | frozenset) -> list:
    """Members of a set in an order that does not depend on the process, so that equal sets give equal files."""
    return sorted(values, key=repr)


def _decode(plain: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if plain is None or isinstance(plain, (bool, int, float, str)):
        return plain
    if isinstance(plain, list):
        return [_decode(item, arrays) for item in plain]
    tags = [key for key in plain if key.startswith("$")]
    if not tags:
        return {key: _decode(item, arrays) for key, item in plain.items()}
    return _DECODERS[tags[0]](plain[tags[0]], plain, arrays)


def _decode_objects(items: list, plain: dict, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    dtype = np.dtype(plain["dtype"])
    if dtype.kind not in "OU":
        raise ValueError(f"An array of objects cannot have the type {dtype}.")
    out = np.empty(len(items), dtype=dtype)
    for i, item in enumerate(items):
        out[i] = _decode(item, arrays)
    return out.reshape(plain["shape"])


def _decode_times(name: str, plain: dict, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    dtype = np.dtype(plain["dtype"])
    if dtype.kind not in "mM":
        raise ValueError(f"An array of times cannot have the type {dtype}.")
    return arrays[name].view(dtype)


def _decode_tensor(name: str, plain: dict, arrays: Mapping[str, np.ndarray]) -> torch.Tensor:
    tensor = torch.from_numpy(arrays[name].copy())
    return tensor.view(torch.bfloat16) if plain.get("dtype") == "bfloat16" else tensor


def _decode_sparse(kind: str, plain: dict, arrays: Mapping[str, np.ndarray]) -> Any:
    parts = tuple(arrays[plain[name]] for name in ("data", "indices", "indptr"))
    matrix = _SPARSE[kind](parts, shape=tuple(plain["shape"]))
    matrix.check_format(full_check=True)
    return matrix


def _decode_frame(columns: list, plain: dict, arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    index = _decode(plain["index"], arrays)
    frame = pd.DataFrame({i: pd.Series(_decode(c, arrays), index=index) for i, c in enumerate(columns)}, index=index)
    frame.columns = _decode(plain["columns"], arrays)
    return frame


def _decode_strings(items: list, plain: dict, arrays: Mapping[str, np.ndarray]) -> pd.api.extensions.ExtensionArray:
    dtype = pd.api.types.pandas_dtype(plain["dtype"])
    if not isinstance(dtype, pd.StringDtype):
        raise ValueError(f"A column of text cannot have the type {dtype}.")
    return pd.array(items, dtype=dtype)


def _decode_categorical(codes: str, plain: dict, arrays: Mapping[str, np.ndarray]) -> pd.Categorical:
    of_cells = cast(Sequence[int], arrays[codes])  # pandas' stubs know no arrays here
    return pd.Categorical.from_codes(of_cells, _decode(plain["categories"], arrays), ordered=plain["ordered"])


#: How to decode what a tag names: ``(value behind the tag, the whole dictionary, arrays)``.
_DECODERS: dict[str, Callable[[Any, dict, Mapping[str, np.ndarray]], Any]] = {
    "$float": lambda text, plain, arrays: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text],
    "$tuple": lambda items, plain, arrays: tuple(_decode(items, arrays)),
    "$set": lambda items, plain, arrays: set(_decode(items, arrays)),
    "$frozenset": lambda items, plain, arrays: frozenset(_decode(items, arrays)),
    "$dict": lambda pairs, plain, arrays: {_decode(k, arrays): _decode(v, arrays) for k, v in pairs},
    "$array": lambda name, plain, arrays: arrays[name].copy(),
    "$objects": _decode_objects,
    "$times": _decode_times,
    "$scalar": lambda item, plain, arrays: _decode(item, arrays)[()],
    "$tensor": _decode_tensor,
    "$sparse": _decode_sparse,
    "$strings": _decode_strings,
    "$frame": _decode_frame,
    "$series": lambda column, plain, arrays: pd.Series(
        _decode(column, arrays), index=_decode(plain["index"], arrays), name=_decode(plain["name"], arrays)
    ),
    "$categorical": _decode_categorical,
    "$range": lambda ends, plain, arrays: pd.RangeIndex(*ends, name=_decode(plain["name"], arrays)),
    "$multiindex": lambda items, plain, arrays: pd.MultiIndex.from_tuples(
        _decode(items, arrays), names=_decode(plain["names"], arrays)
    ),
    "$index": lambda column, plain, arrays: pd.Index(_decode(column, arrays), name=_decode(plain["name"], arrays)),
}
