"""Nested values as JSON and arrays: the same value of the same type comes back, or an error says what cannot."""

from __future__ import annotations

import json
import math
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from cfmvc_scvi.io.codec import from_plain, to_plain


def there_and_back(value):
    plain, arrays = to_plain(value)
    return from_plain(json.loads(json.dumps(plain)), {name: array.copy() for name, array in arrays.items()})


def assert_same(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    elif isinstance(first, (np.ndarray, np.generic)):
        assert first.dtype == second.dtype and first.shape == second.shape
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, float):
        assert first == second or (math.isnan(first) and math.isnan(second))
        assert math.copysign(1, first) == math.copysign(1, second) or math.isnan(first)
    else:
        assert first == second


keys = st.one_of(st.text(max_size=5), st.integers(-3, 3), st.tuples(st.integers(0, 3), st.text(max_size=2)), st.none())
arrays = st.sampled_from(["f4", "f8", "f2", "i1", "i4", "i8", "u2", "?"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    arrays,
    st.frozensets(st.integers(0, 5)),
    st.sampled_from([np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("a")]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(values)
def test_nested_values_come_back(value):
    assert_same(there_and_back(value), value)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.csc_array])
def test_sparse_matrices_come_back(kind):
    matrix = kind(np.array([[0, 2, 0], [1, 0, 0]], dtype=np.float32))
    found = there_and_back([matrix])[0]
    assert type(found) is kind and found.dtype == matrix.dtype and found.shape == matrix.shape
    np.testing.assert_array_equal(found.toarray(), matrix.toarray())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_come_back(dtype, shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    found = there_and_back({"a": tensor, 3: tensor.t()})
    assert found["a"].dtype == dtype and torch.equal(found["a"], tensor) and torch.equal(found[3], tensor.t())


def test_frames_and_categories_come_back():
    frame = pd.DataFrame(
        {"a": [1.0, np.nan], "b": pd.Categorical(["x", "y"], ["y", "x", "z"], ordered=True), 3: ["p", None]},
        index=pd.Index(["r1", "r2"], name="epoch"),
    )
    frame["when"] = pd.to_datetime(["2020-01-01", "2021-01-01"])
    found = there_and_back({"frame": frame, "index": frame.index, "rows": pd.RangeIndex(2, 8, 2, name="n")})
    pd.testing.assert_frame_equal(found["frame"], frame)
    pd.testing.assert_index_equal(found["index"], frame.index)
    assert found["rows"].equals(pd.RangeIndex(2, 8, 2)) and found["rows"].name == "n"
    objects = pd.DataFrame(columns=["loss"])
    objects.index.name = "epoch"
    objects.loc[0, "loss"] = 1.25
    found = there_and_back(objects)
    pd.testing.assert_frame_equal(found, objects)
    assert found.dtypes.tolist() == [np.dtype(object)]
    text = pd.DataFrame({"t": pd.array(["a", None], dtype="string")})
    pd.testing.assert_frame_equal(there_and_back(text), text)
    series = pd.Series([1, 2], index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", "y"]), name="s")
    pd.testing.assert_series_equal(there_and_back(series), series)


def test_text_arrays_of_categories_come_back():
    for array in (np.array(["a", "bc"]), np.array(["a", 1, None, True], dtype=object), np.array([0, 1, 5])):
        assert_same(there_and_back(array), array)


class Anything:
    pass


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"a": [Anything()]}, r"model\['a'\]\[0\] is a .*Anything, which cannot be saved: use None"),
        ({"f": len}, r"model\['f'\] is a builtins.builtin_function"),
        (namedtuple("Named", "x")(1), "model is a Named: save a plain tuple"),
        (np.array([1 + 2j]), "complex"),
        (b"bytes", "bytes"),
    ],
)
def test_other_values_are_refused_with_their_place(value, what):
    with pytest.raises(TypeError, match=what):
        to_plain(value, "model")


@pytest.mark.parametrize(
    "plain",
    [
        {"$unknown": 1},
        {"$array": "missing"},
        {"$sparse": "Anything", "shape": [1, 1]},
        {"$objects": [1], "shape": [7], "dtype": "O"},
        {"$objects": [1], "shape": [1], "dtype": "f8"},
        {"$dict": [[[], 1]]},
        {"$float": "__import__('os')"},
        {"$times": "a0", "dtype": "f8"},
        {"$strings": [1], "dtype": "Int64"},
    ],
)
def test_what_was_not_written_by_us_is_refused(plain):
    with pytest.raises(ValueError, match=r".+"):
        from_plain(plain, {"a0": np.zeros(1)})


def test_sparse_matrices_with_wrong_indices_are_refused():
    plain, arrays = to_plain(sparse.csr_matrix(np.eye(3)))
    arrays["a1"] = arrays["a1"] + 100
    with pytest.raises(ValueError, match="index|indices"):
        from_plain(plain, arrays)
