"""How labels and doses are written: one spelling for each, whatever the type they come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd


def text_of(value: Any) -> str:
    """Text of a label: blanks around it left out, types of numpy read like those of Python.

    Examples
    --------
    >>> text_of(" ctrl "), text_of(np.int64(3)), text_of(np.array("P1"))
    ('ctrl', '3', 'P1')
    """
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0:
        value = value.item() if not isinstance(value, np.datetime64) else value
    return str(value).strip()


def texts_of(column: pd.Series | pd.Index | np.ndarray) -> np.ndarray:
    """Text of every label of a column, shape (n,), strings; missing values are ``"nan"``."""
    codes, levels = pd.factorize(np.asarray(column, dtype=object), use_na_sentinel=False)
    texts = np.array(["nan" if pd.isna(level) else text_of(level) for level in levels], dtype=object)
    return texts[codes] if len(codes) else np.empty(0, dtype=object)


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: ``None``, NaN, or an empty text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (np.ndim(value) == 0 and bool(pd.isna(value)))


def as_list(value: Any) -> list[Any]:
    """Elements of a list, tuple, set, array, index or column; any single value, text included, as a list of itself.

    Examples
    --------
    >>> as_list("donor"), as_list(("donor", "sex")), as_list(np.int64(2))
    (['donor'], ['donor', 'sex'], [2])
    """
    if isinstance(value, (str, bytes, Number)) or np.ndim(value) == 0 and hasattr(value, "__array__"):
        return [value.item() if isinstance(value, (np.generic, np.ndarray)) else value]
    if isinstance(value, Iterable):
        return list(value)
    return [value]


def known_spelling(value: Any, known: Sequence[str]) -> str:
    """The known name that a value means: the same text, or for a number a name of the same number; else its text.

    Examples
    --------
    >>> known_spelling(1, ["1.0", "2.0"]), known_spelling(" T ", ["T"]), known_spelling("B", ["T"])
    ('1.0', 'T', 'B')
    """
    text = text_of(value)
    alike = [name for name in known if name.strip() == text]
    if alike:
        return alike[0]
    if isinstance(value, (str, bool, np.bool_)) or not isinstance(value, (Number, np.generic)):
        return text
    same = [name for name in known if _number(name) == float(value)]  # type: ignore[arg-type]
    return same[0] if len(same) == 1 else text


def number_text(number: float) -> str:
    """Shortest text of a number that reads back to the same number, without an exponent.

    Examples
    --------
    >>> number_text(2000000.0), number_text(0.1234567), number_text(1e-7)
    ('2000000', '0.1234567', '0.0000001')
    """
    return np.format_float_positional(float(number), trim="-")


def split_doses(text: str, delimiter: str | None) -> list[str]:
    """Doses in a text, one per member; the sign of an exponent (``2e+06``) is no delimiter.

    Examples
    --------
    >>> split_doses("2e+06+1", "+"), split_doses("0.5", "+"), split_doses("1+2", None)
    (['2e+06', '1'], ['0.5'], ['1+2'])
    """
    if delimiter is None or _number(text) is not None:
        return [text]
    return re.split(rf"(?<![0-9.][eE]){re.escape(delimiter)}", text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
