"""Names that mean the same: symbols, Ensembl identifiers, aliases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import pandas as pd
from anndata import AnnData

from cfmvc_scvi._messages import unknown_choice

#: What says which names mean the same.
Aliases: TypeAlias = "Mapping[str, str] | pd.DataFrame | AnnData | Callable[[str], str]"

#: The version behind an Ensembl identifier.
_VERSION = re.compile(r"^(ENS[A-Z]*\d{6,})\.\d+$")
#: What stands between several identifiers in one field.
_BETWEEN = "|"


def as_function(aliases: Aliases | None, to: str | None = None) -> Callable[[str], str]:
    """Function from a name to the one that is wanted; what is not known stays as it is.

    Parameters
    ----------
    aliases
        A mapping or function from name to name; or a table with a row per gene, all of whose text leads to the
        row's name. Of an AnnData it is ``var``.
    to
        Column of the table with the names that are wanted; ``None`` is its index.

    Raises
    ------
    ValueError
        For a column that is not there.
    TypeError
        For anything else.
    """
    if aliases is None:
        return str
    if isinstance(aliases, AnnData):
        aliases = cast(pd.DataFrame, aliases.var)
    if isinstance(aliases, pd.DataFrame):
        aliases = table_of_aliases(aliases, to)
    elif to is not None:
        raise ValueError("`to` names a column of a table of identifiers; `aliases` is none.")
    if isinstance(aliases, Mapping):
        known = {str(name): str(wanted) for name, wanted in aliases.items()}
        return lambda name: known.get(name, known.get(_VERSION.sub(r"\1", name), name))
    if callable(aliases):
        return lambda name: str(aliases(name))
    raise TypeError(
        f"`aliases` is a {type(aliases).__name__}; give a dict from name to name, a DataFrame with a row per gene, an "
        "AnnData whose `var` is such a table, or a function."
    )


def table_of_aliases(table: pd.DataFrame, to: str | None = None) -> dict[str, str]:
    """Every identifier of a table and the name it leads to.

    A name that is wanted itself leads to itself, whatever else it is an alias of. An alias of several names leads
    nowhere: which of them is meant cannot be told.

    Examples
    --------
    >>> genes = pd.DataFrame({"ensembl": ["ENSG1", "ENSG2"], "alias": ["P21|OLD", "OLD"]}, index=["CDKN1A", "RAC2"])
    >>> table_of_aliases(genes)
    {'CDKN1A': 'CDKN1A', 'RAC2': 'RAC2', 'ENSG1': 'CDKN1A', 'P21': 'CDKN1A', 'ENSG2': 'RAC2'}
    """
    if to is not None and to not in table.columns:
        raise ValueError(unknown_choice("to", to, list(table.columns)))
    wanted = table.index.to_series() if to is None else table[to]
    others = [column for name, column in table.items() if name != to and _is_text(column)]
    if to is not None and _is_text(table.index.to_series()):
        others.insert(0, table.index.to_series())
    known = {str(name): str(name) for name in wanted[wanted.notna()]}
    targets: dict[str, set[str]] = {}
    for row in range(len(table)):
        name = wanted.iloc[row]
        if not pd.isna(name):
            for alias in _identifiers(column.iloc[row] for column in others):
                targets.setdefault(alias, set()).add(str(name))
    return known | {alias: next(iter(to)) for alias, to in targets.items() if len(to) == 1 and alias not in known}


def _is_text(column: pd.Series) -> bool:
    return column.dtype == object or isinstance(column.dtype, (pd.CategoricalDtype, pd.StringDtype))


def _identifiers(fields: Iterable[Any]) -> Iterable[str]:
    for field in fields:
        if isinstance(field, str):
            yield from (_VERSION.sub(r"\1", part.strip()) for part in field.split(_BETWEEN) if part.strip())
