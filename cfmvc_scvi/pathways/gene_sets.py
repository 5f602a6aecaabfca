"""Gene sets: from GMT files, dictionaries and tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd


def read_gmt(path: str | os.PathLike) -> dict[str, list[str]]:
    r"""Gene sets of a GMT file, as MSigDB, Enrichr and WikiPathways give them.

    A line is a set: its name, a description, and its genes, with tabs between them.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Dictionary from the name of a set to its genes.

    Raises
    ------
    ValueError
        For a line without a gene, and for a name that is there twice.

    Examples
    --------
    >>> _ = Path("sets.gmt").write_text("INTERFERON\tfrom here\tISG15\tIFI6\n")
    >>> read_gmt("sets.gmt")
    {'INTERFERON': ['ISG15', 'IFI6']}
    """
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = (part.strip() for part in line.split("\t"))
        genes = [gene for gene in rest[1:] if gene]
        if not genes:
            raise ValueError(
                f"Line {number} of {str(path)!r} has no genes: a line of a GMT file is a name, a description and "
                "genes, with tabs between them."
            )
        if name in sets:
            raise ValueError(f"{str(path)!r} has the set {name!r} twice, the second time in line {number}: rename one.")
        sets[name] = genes
    return sets


def as_network(gene_sets: Any) -> pd.DataFrame:
    """Gene sets as decoupler takes them: ``source`` (the set), ``target`` (a gene) and perhaps ``weight``.

    Parameters
    ----------
    gene_sets
        A dictionary from set to genes, a path of a GMT file, or such a table.

    Raises
    ------
    TypeError
        For anything else.
    ValueError
        For a table without these columns, or without rows.
    """
    if isinstance(gene_sets, (str, os.PathLike)):
        gene_sets = read_gmt(gene_sets)
    if isinstance(gene_sets, pd.DataFrame):
        if not {"source", "target"} <= set(gene_sets.columns):
            raise ValueError(
                f"`gene_sets` has the columns {list(gene_sets.columns)}; decoupler's tables have `source`, the set, "
                "and `target`, the gene, and may have `weight`."
            )
        network = gene_sets[[name for name in ("source", "target", "weight") if name in gene_sets]]
    elif isinstance(gene_sets, Mapping):
        rows = [(str(name), str(gene)) for name, genes in gene_sets.items() for gene in _genes(name, genes)]
        network = pd.DataFrame(rows, columns=["source", "target"])
    else:
        raise TypeError(
            f"`gene_sets` is a {type(gene_sets).__name__}; give a dict from set to genes, the path of a GMT file, or a "
            "DataFrame with `source` and `target`."
        )
    if network.empty:
        raise ValueError("`gene_sets` is empty: give at least one set with genes.")
    return network.drop_duplicates(["source", "target"]).reset_index(drop=True)


def _genes(name: Any, genes: Iterable[str]) -> Iterable[str]:
    if isinstance(genes, str):
        raise TypeError(f"The set {name!r} is the text {genes!r}; give a list of genes.")
    return genes
