"""Pickles of arrays, tables and plain containers, read without running anything that they name."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

#: Kinds of numbers and text an array may hold: float, int, unsigned, boolean, text, bytes, and objects one by one.
_KINDS = "fiubUSO"


class UnsafePickleError(ValueError):
    """A pickle that asks for more than numbers, text and containers of these."""


class _Stand:
    """Takes what a pickle says of an object; nothing of the object's own class runs."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Stand):
    """A type of numbers: its text and, told afterwards, its byte order."""

    def resolve(self) -> np.dtype:
        """The type, where it is one of :data:`_KINDS`."""
        text = self.args[0] if self.args else None
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "="
        if not isinstance(text, str) or not text[:1].isalpha() or text[0] not in _KINDS or text[1:].strip("0123456789"):
            raise UnsafePickleError(f"The pickle has an array of type {text!r}; numbers and text are read.")
        return np.dtype(text).newbyteorder(order if order in ("<", ">") else "=")


class _Array(_Stand):
    """An array, of its shape, type and bytes."""

    def resolve(self) -> np.ndarray:
        """The array."""
        if not isinstance(self.state, tuple) or len(self.state) < 5:
            raise UnsafePickleError("The pickle has an array without values.")
        shape, dtype, is_fortran, raw = self.state[1:5]
        return _array(raw, dtype, shape, "F" if is_fortran else "C")


class _Index(_Stand):
    """An index of pandas."""

    def resolve(self) -> list[Any]:
        """Its labels."""
        said = self.args[1] if len(self.args) > 1 and isinstance(self.args[1], dict) else {}
        if "start" in said:
            return list(range(said["start"], said["stop"], said["step"]))
        labels = _resolved(said.get("data"))
        if not isinstance(labels, np.ndarray):
            raise UnsafePickleError("The pickle has a table whose names are no plain index: save it as csv or parquet.")
        return labels.tolist()


class _Frame(_Stand):
    """A table of pandas, as blocks of columns."""

    def resolve(self) -> tuple[list[Any], list[Any], np.ndarray]:
        """Names of rows, names of columns, and values."""
        manager = next((v for v in (self.state or {}).values() if isinstance(v, _Stand)), None)
        try:
            blocks, axes = manager.args[:2]  # pyright: ignore[reportOptionalMemberAccess]  # refused below
            columns, rows = (axis.resolve() for axis in axes)
            values = np.full((len(rows), len(columns)), np.nan)
            for block in blocks:
                part, place, _ = map(_resolved, block.args)
                values[:, place] = np.asarray(part).T
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # of another version of pandas
            raise UnsafePickleError(
                "The pickle has a table of pandas that holds text or is laid out in another way: save the numbers as "
                "csv or parquet."
            ) from error
        return rows, columns, values


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
        raise UnsafePickleError("The pickle has an array whose type or shape is not plain.")
    kind = dtype.resolve()
    if kind.kind == "O":
        out = np.empty(len(raw), dtype=object)
        out[:] = list(raw)
        return out.reshape(shape, order="F" if order == "F" else "C")
    return np.frombuffer(raw, dtype=kind).reshape(shape, order="F" if order == "F" else "C").copy()


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return _array(raw, dtype, (1,), "C")[0]


def _latin(text: str, encoding: str = "latin1") -> bytes:
    """How bytes are written in old protocols."""
    return text.encode("latin1")


def _stands() -> dict[str, Any]:
    """What is put in the place of every name that a pickle may ask for; made anew for every file.

    A pickle can set attributes of what it is given, so it is given classes and functions of its own.
    """

    def fresh(function: Callable) -> Callable:
        return lambda *args: function(*args)

    def kind(base: type) -> type:
        return type(base.__name__, (base,), {})

    array, frame, index = kind(_Array), kind(_Frame), kind(_Index)
    names: dict[str, Any] = {"numpy ndarray": kind(_Stand), "numpy dtype": kind(_Dtype)}
    for room in ("numpy._core", "numpy.core"):
        names |= {
            f"{room}.multiarray _reconstruct": array,
            f"{room}.multiarray scalar": fresh(_scalar),
            f"{room}.numeric _frombuffer": fresh(_array),
        }
    names |= {
        "_codecs encode": fresh(_latin),
        "collections OrderedDict": kind(OrderedDict),
        "builtins slice": slice,
        "__builtin__ slice": slice,
        "builtins bytearray": fresh(bytearray),
        "pandas.core.frame DataFrame": frame,
        "pandas.core.internals.managers BlockManager": kind(_Stand),
        "pandas._libs.internals _unpickle_block": kind(_Stand),
        "pandas.core.indexes.base _new_Index": index,
        "pandas.core.indexes.base Index": kind(_Stand),
        "pandas.core.indexes.range RangeIndex": kind(_Stand),
        "pandas RangeIndex": kind(_Stand),
        "pandas Index": kind(_Stand),
        "pandas DataFrame": frame,
    }
    return names


class _PlainUnpickler(pickle.Unpickler):
    """Knows the names of :func:`_stands` and refuses every other."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file)
        self._stands = _stands()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        stand = self._stands.get(f"{module} {name}")
        if stand is None:
            raise UnsafePickleError(
                f"The pickle asks for {module}.{name}, which could run code on this machine, so it is not read. "
                "Dictionaries, lists, numpy arrays and DataFrames of numbers are; of anything else, where you trust "
                "the file, save the vectors as npz, csv or parquet."
            )
        return stand

    def persistent_load(self, pid: Any) -> Any:
        """No objects from elsewhere."""
        raise UnsafePickleError("The pickle refers to objects outside it, so it is not read.")


def load_pickle(file: io.BufferedIOBase) -> Any:
    """Containers, numbers, text and arrays of a pickle; a table of pandas is a tuple (rows, columns, values).

    Every name that a pickle asks for is looked up in a list of stand-ins, which take down what the file says of the
    object; arrays are then made from the bytes. Code of the file, or of numpy and pandas by its order, does not run.

    Raises
    ------
    UnsafePickleError
        For a pickle that asks for anything else, naming it.
    """
    try:
        return _resolved(_PlainUnpickler(file).load())
    except UnsafePickleError:
        raise
    except Exception as error:  # damaged pickles raise about anything
        raise UnsafePickleError(f"The pickle cannot be read: {type(error).__name__}: {error}") from error


def _resolved(value: Any) -> Any:
    """The same with arrays and tables in the place of what stands for them."""
    if isinstance(value, (_Array, _Frame, _Dtype, _Index)):
        return value.resolve()
    if isinstance(value, dict):
        return {_resolved(key): _resolved(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolved(item) for item in value)
    if isinstance(value, _Stand):
        raise UnsafePickleError("The pickle holds an object that is neither an array nor a table.")
    return value
