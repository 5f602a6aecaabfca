"""Genes by name: DataFrames that metrics are given are brought into one order before they become arrays."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import pandas as pd

from cfmvc_scvi._messages import missing_genes

_P = ParamSpec("_P")
_R = TypeVar("_R")


def by_gene_name(*arguments: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function take DataFrames (cells x genes) and Series (one value per gene) for some of its arguments.

    Those with names of genes, which are the columns or the index unless these are just numbered, are brought into the
    order of the first of them; arrays, which have no names, are taken to be in that order. Lists and mappings of
    matrices are looked into.

    Parameters
    ----------
    *arguments
        Names of the arguments that hold genes.

    Raises
    ------
    ValueError
        By the function, where one table lacks genes of another or has them twice.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            bound = signature.bind(*args, **kwargs)
            given = {name: bound.arguments[name] for name in arguments if name in bound.arguments}
            if any(map(_has_tables, given.values())):
                align = _Aligner()
                for name, value in given.items():
                    bound.arguments[name] = align(value, name)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


class _Aligner:
    """Brings tables into the order of the first that has names of genes."""

    def __init__(self) -> None:
        self.genes: pd.Index | None = None
        self.first = ""

    def __call__(self, value: Any, name: str) -> Any:
        """Arrays in place of tables."""
        if isinstance(value, Mapping):
            return {key: self(item, f"{name}[{key!r}]") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self(item, f"{name}[{i}]") for i, item in enumerate(value))
        if not isinstance(value, (pd.DataFrame, pd.Series)):
            return value
        names = value.columns if isinstance(value, pd.DataFrame) else value.index
        if isinstance(names, pd.RangeIndex):
            return value.to_numpy()
        if not names.is_unique:
            raise ValueError(f"`{name}` has more than one column named {names[names.duplicated()][0]!r}.")
        if self.genes is None:
            self.genes, self.first = names, name
        if len(names) != len(self.genes) or not names.isin(self.genes).all():
            larger, smaller = (self.genes, names) if len(names) <= len(self.genes) else (names, self.genes)
            missing = larger.difference(smaller)
            raise ValueError(
                f"`{name}` and `{self.first}` have different genes. "
                + missing_genes(missing, smaller, wanted=f"the {len(larger)} genes of one", where="the other")
            )
        at = self.genes
        return (value.loc[:, at] if isinstance(value, pd.DataFrame) else value.loc[at]).to_numpy()


def gene_names_of(*matrices: Any) -> pd.Index | None:
    """Names of the genes of the first DataFrame or Series that has any."""
    for matrix in matrices:
        names = getattr(matrix, "columns", getattr(matrix, "index", None)) if _has_tables(matrix) else None
        if names is not None and not isinstance(names, pd.RangeIndex):
            return names
    return None


def same_rows(first: Any, other: Any, names: tuple[str, str]) -> Any:
    """Rows of a second DataFrame in the order of a first one; anything else as it is.

    Raises
    ------
    ValueError
        Where both have names of rows, and not the same.
    """
    both = isinstance(first, pd.DataFrame) and isinstance(other, pd.DataFrame)
    if not both or isinstance(first.index, pd.RangeIndex) or isinstance(other.index, pd.RangeIndex):
        return other
    if len(first) != len(other) or not first.index.isin(other.index).all() or not other.index.is_unique:
        raise ValueError(f"`{names[0]}` and `{names[1]}` have different rows: give one for each perturbation in both.")
    return other.loc[first.index]


def _has_tables(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tables, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_tables, value))
    return isinstance(value, (pd.DataFrame, pd.Series))


def same_features(first: Any, other: Any) -> Any:
    """Columns of a second DataFrame in the order of a first one; anything else as it is."""
    if isinstance(first, pd.DataFrame) and isinstance(other, pd.DataFrame):
        return same_rows(first.T, other.T, ("embedding", "new_embedding")).T
    return other
