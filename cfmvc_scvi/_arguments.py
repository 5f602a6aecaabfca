"""Checks of arguments that many functions share."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def whole_number(argument: str, value: Any, least: int = 1) -> int:
    """The value as an int where it is a whole number of at least ``least``.

    Raises
    ------
    TypeError
        For anything that is no whole number, ``128.0`` and ``True`` included.
    ValueError
        For a smaller one.

    Examples
    --------
    >>> whole_number("batch_size", 128)
    128
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"`{argument}` is {value!r}, of type {type(value).__name__}; it must be a whole number of at least "
            f"{least}, such as {max(least, 10)}."
        )
    if value < least:
        raise ValueError(f"`{argument}` is {value}; it must be a whole number of at least {least}.")
    return int(value)
