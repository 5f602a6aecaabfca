"""Checks of arguments that many functions share."""

from __future__ import annotations

from numbers import Integral
from os import PathLike
from typing import Any

from anndata import AnnData


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


def cells_of(argument: str, value: Any) -> AnnData:
    """The value where it is an AnnData.

    Raises
    ------
    TypeError
        For anything else, with what to give.
    """
    if isinstance(value, AnnData):
        return value
    remedy = "give the cells as an AnnData, with raw counts"
    if _is_mudata(value):
        remedy = "give the AnnData of its RNA, such as `mdata['rna']`"
    elif isinstance(value, (str, PathLike)):
        remedy += ", such as `anndata.read_h5ad(path)`; a perturbation is asked for by `perturbation=`"
    raise TypeError(f"`{argument}` is {_shown(value)}; {remedy}.")


def cells_and_perturbation(adata: Any, perturbation: Any) -> tuple[AnnData | None, Any]:
    """Cells and perturbation of a call in which the perturbation may stand alone in the first place.

    Raises
    ------
    TypeError
        For what are no cells in the first place where a perturbation is given too.
    """
    if isinstance(perturbation, AnnData):
        raise TypeError(
            "`perturbation` is an AnnData: the cells come first and the perturbation second, as in "
            "`predict_perturbation(adata, 'P1')`."
        )
    if adata is None or isinstance(adata, AnnData):
        return adata, perturbation
    if _is_mudata(adata) or isinstance(adata, PathLike):
        return cells_of("adata", adata), perturbation
    if perturbation is not None:
        raise TypeError(
            f"`adata` is {_shown(adata)} and `perturbation` is {_shown(perturbation)}: the cells, an AnnData, come "
            "first and the perturbation second. Give the perturbation alone for the control cells of the registered "
            "data."
        )
    return None, adata


def _shown(value: Any) -> str:
    kind = type(value).__name__
    return f"{value!r}, a {kind}" if isinstance(value, str) else f"of type {kind}"


def _is_mudata(value: Any) -> bool:
    return type(value).__name__ == "MuData"  # which need not be installed
