"""Pickles of numbers are read as pickle reads them; one that names anything else is refused, and nothing of it runs."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import subprocess

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi.data.vectors.pickles import UnsafePickleError, load_pickle

A = np.arange(6.0, dtype=np.float32).reshape(2, 3)


def through(value, protocol):
    return load_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        A,
        np.asfortranarray(A),
        A.astype(">f8"),
        A.astype(np.int16),
        A > 2,
        np.array(["A", "BB"]),
        np.array(["A", "BB"], dtype=object),
    ],
    ids=lambda value: f"{value.dtype}-{value.flags.f_contiguous}",
)
def test_arrays(value, protocol):
    found = through(value, protocol)
    assert found.dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers(protocol):
    found = through({"A": A[0], "B": [1.0, np.float64(2.5)], "C": (b"x", collections.OrderedDict(k=1))}, protocol)
    assert list(found) == ["A", "B", "C"] and found["B"] == [1.0, 2.5] and found["C"] == (b"x", {"k": 1})
    np.testing.assert_array_equal(found["A"], A[0])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_tables(protocol):
    mixed = pd.DataFrame({"x": [1, 2], "y": [0.5, 1.0], "z": [3, 4]}, index=["A", "B"])
    rows, columns, values = through(mixed, protocol)
    assert (rows, columns) == (["A", "B"], ["x", "y", "z"])
    np.testing.assert_array_equal(values, mixed)
    rows, columns, values = through(pd.DataFrame(A), protocol)
    assert (rows, columns) == ([0, 1], [0, 1, 2])
    np.testing.assert_array_equal(values, A)


class Hostile:
    """Runs a command when pickle reads it."""

    def __init__(self, call, *args):
        self.made_by = call, args

    def __reduce__(self):
        return self.made_by


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_code_does_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    for hostile in (
        Hostile(os.system, f"touch {trace}"),
        Hostile(subprocess.call, ["touch", str(trace)]),
        Hostile(eval, f"open({str(trace)!r}, 'w')"),
        Hostile(getattr, str, "join"),
        Hostile(np.load, str(trace)),
        Hostile(pd.read_pickle, str(trace)),
    ):
        data = pickle.dumps({"A": A[0], "B": hostile}, protocol=protocol)
        with pytest.raises(UnsafePickleError, match="The pickle asks for"):
            load_pickle(io.BytesIO(data))
        assert not trace.exists()
    pickle.loads(pickle.dumps(Hostile(os.system, f"touch {trace}")))
    assert trace.exists()  # so it would have run


@pytest.mark.parametrize(
    "name", [b"cpandas.core.frame\nDataFrame\n", b"ccollections\nOrderedDict\n", b"cnumpy\ndtype\n"]
)
def test_nothing_outside_is_changed(name):
    """A pickle may set attributes of what it is given: these are made for it alone."""
    data = b"\x80\x02" + name + b"N}X\x08\x00\x00\x00__init__K\x01s\x86b."  # BUILD of (None, {"__init__": 1})
    with contextlib.suppress(UnsafePickleError):
        load_pickle(io.BytesIO(data))
    assert len(pd.DataFrame({"a": [1]})) == 1 and collections.OrderedDict(a=1) == {"a": 1}
    np.testing.assert_array_equal(through(A, 2), A)


def test_types_that_are_no_numbers_are_refused():
    for value in (np.zeros(2, dtype=[("a", "f4"), ("b", "f4")]), np.array(["2020-01-01"], dtype="datetime64[D]")):
        with pytest.raises(UnsafePickleError):
            through(value, 4)


def test_other_tables_and_damage():
    with pytest.raises(UnsafePickleError, match="csv or parquet"):
        through(pd.DataFrame({"x": ["text", "more"]}), 4)
    with pytest.raises(UnsafePickleError, match="asks for"):
        through(pd.DataFrame({"x": [1.0]}, index=pd.MultiIndex.from_tuples([("a", "b")])), 4)
    with pytest.raises(UnsafePickleError, match="cannot be read"):
        load_pickle(io.BytesIO(pickle.dumps(A)[:-20]))
    with pytest.raises(UnsafePickleError, match="cannot be read"):
        load_pickle(io.BytesIO(b"no pickle"))
