"""The words of errors: names that are close to a wrong one, lists cut short, genes that are not there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from numbers import Number
from typing import Any

#: Wrong names for which close ones are looked up: each of them is compared with every known name.
_MOST_LOOKED_UP = 20
_MOST_SHOWN = 5


def shortened(names: Iterable[Any], most: int = 10) -> str:
    """Text of a list of names or numbers, of which at most ``most`` are shown.

    Examples
    --------
    >>> shortened(["A", "B", "C"], most=2)
    "['A', 'B', ...]"
    >>> shortened([0.5, 10])
    '[0.5, 10]'
    """
    names = list(names)
    return f"[{', '.join(map(_quoted, names[:most]))}{', ...' if len(names) > most else ''}]"


def close_matches(words: Any, known: Iterable[Any], *, n: int = 2, cutoff: float = 0.6) -> str:
    """Sentence with the known names that look like the given ones, or nothing where there are none.

    Upper and lower case count as the same.

    Parameters
    ----------
    words
        A name that is not known, or several of them; of many, the first 20 are looked up.
    known
        Every name that is known.
    n
        Names to find for each word.
    cutoff
        Likeness from 0 to 1 that a name must reach (:func:`difflib.get_close_matches`).

    Returns
    -------
    A sentence that begins with a blank, to stand behind another one; or the empty string.

    Examples
    --------
    >>> "Unknown perturbation 'ifnb'." + close_matches("ifnb", ["control", "IFNB"])
    "Unknown perturbation 'ifnb'. Close matches: ['IFNB']."
    >>> close_matches("dexamethasone", ["control", "IFNB"])
    ''
    """
    words = [words] if isinstance(words, str) or not isinstance(words, Collection) else list(words)
    spellings: dict[str, list[str]] = {}
    for name in map(str, known):
        spellings.setdefault(name.casefold(), []).append(name)
    found: dict[str, None] = {}  # the keys keep the order: best match of the first word first
    for word in words[:_MOST_LOOKED_UP]:
        for match in difflib.get_close_matches(str(word).casefold(), spellings, n=n, cutoff=cutoff):
            found |= dict.fromkeys(spellings[match])
    return f" Close matches: {shortened(found, _MOST_SHOWN)}." if found else ""


def unknown_choice(argument: str, value: Any, allowed: Iterable[Any], most: int = 30) -> str:
    """Message for an argument whose value is not one of those allowed.

    Examples
    --------
    >>> unknown_choice("method", "UMAP", ["pca", "umap"])
    "Unknown `method` 'UMAP': choose one of ['pca', 'umap']. Close matches: ['umap']."
    """
    allowed = list(allowed)
    return (
        f"Unknown `{argument}` {_quoted(value)}: choose one of {shortened(allowed, most)}."
        f"{close_matches(value, allowed)}"
    )


def missing_genes(missing: Collection[str], there: Iterable[str], *, wanted: str, where: str = "this AnnData") -> str:
    """Message for genes that some cells do not have.

    Parameters
    ----------
    missing
        Names that were looked for and not found.
    there
        Names of the genes that the cells have.
    wanted
        Which genes were looked for, and how many, such as ``"the 2000 genes the model was trained on"``.
    where
        What was searched.

    Examples
    --------
    >>> message = missing_genes(["Isg15"], ["ISG15", "CD3D"], wanted="the 2 genes of the prediction", where="`real`")
    >>> message.partition(" Genes are matched")[0]
    "1 of the 2 genes of the prediction are not in `real`: ['Isg15']. Close matches: ['ISG15']."
    """
    return (
        f"{len(missing)} of {wanted} are not in {where}: {shortened(missing, _MOST_SHOWN)}."
        f"{close_matches(missing, there, n=1)} Genes are matched by name (`var_names`): check that both sides use "
        "the same identifiers (symbols or Ensembl)."
    )


def _quoted(name: Any) -> str:
    """Text in quotation marks, a number without them; the types of numpy look like those of Python."""
    return str(name) if isinstance(name, Number) else repr(str(name))
