"""Checks of arguments that many functions share."""

import numpy as np
import pytest

from cfmvc_scvi._arguments import whole_number


@pytest.mark.parametrize("value", [1, 128, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_type(value):
    assert whole_number("n", value) == value and type(whole_number("n", value)) is int


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (128.0, TypeError), ("3", TypeError), (True, TypeError)]
)
def test_everything_else_is_refused_by_name(value, error):
    with pytest.raises(error, match=r"`batch_size` is .*whole number of at least 1"):
        whole_number("batch_size", value)
