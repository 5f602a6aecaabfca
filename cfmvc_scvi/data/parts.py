"""What several AnnData have in common when their cells are put together: genes by name, and annotations."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import settings

from cfmvc_scvi._messages import missing_genes, shortened
from cfmvc_scvi._types import obs_of


def shared_genes(parts: Mapping[str, AnnData], genes: Sequence[str] | None = None) -> pd.Index:
    """Genes that all parts have.

    Parameters
    ----------
    parts
        The AnnData by the path that messages name them by, at least one.
    genes
        Genes to keep, in this order; ``None`` keeps those that all parts have, in the order of the first.

    Raises
    ------
    ValueError
        For genes that are not there, not unique, or not shared.
    """
    for path, adata in parts.items():
        if not adata.var_names.is_unique:
            repeated = adata.var_names[adata.var_names.duplicated()].unique()
            raise ValueError(
                f"Names of genes in {path!r} are not unique, e.g. {list(repeated[:3])}, and genes are matched by name: "
                "make them unique in the file first."
            )
    if genes is not None:
        return _chosen(parts, pd.Index([str(gene) for gene in genes]))
    names = next(iter(parts.values())).var_names
    for adata in parts.values():
        names = names[names.isin(adata.var_names)]
    fewest = min(parts, key=lambda path: parts[path].n_vars)
    if not len(names):
        examples = {path: list(adata.var_names[:3]) for path, adata in list(parts.items())[:5]}
        raise ValueError(f"The files share no gene by name: {examples}. Give all of them names of one kind.")
    if len(names) < parts[fewest].n_vars / 2:
        warnings.warn(
            f"The files share {len(names)} genes, fewer than half of the {parts[fewest].n_vars} of {fewest}: check "
            "that names are of one kind in all of them.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return names


def _chosen(parts: Mapping[str, AnnData], names: pd.Index) -> pd.Index:
    if not names.is_unique:
        raise ValueError(f"`genes` has repeated names: {shortened(sorted(set(names[names.duplicated()])))}.")
    for path, adata in parts.items():
        missing = names.difference(adata.var_names)
        if len(missing):
            raise ValueError(missing_genes(missing, adata.var_names, wanted=f"`genes` in {path}"))
    return names


def joined_annotations(parts: Mapping[str, AnnData], names: pd.Index, source_key: str | None = None) -> AnnData:
    """``obs``, ``obsm`` and ``uns`` of all parts, without counts.

    Parameters
    ----------
    parts
        The AnnData by name; cells keep their order, part after part.
    names
        Genes to keep.
    source_key
        Column of ``obs`` that gets the name of each cell's part; ``None`` adds none.

    Returns
    -------
    AnnData (n_cells, n_genes) without ``X``. ``obs`` has the columns of all parts, ``obsm`` what all have with the same
    width, ``var`` and ``uns`` are those of the first. Names of cells that occur in several parts get the name of the
    part behind them.
    """
    tables = [obs_of(adata) for adata in parts.values()]
    if source_key is not None and any(source_key in table for table in tables):
        raise ValueError(f"`source_key` {source_key!r} is a column of obs already: choose another, or None.")
    categorical = [
        column
        for column in dict.fromkeys(column for table in tables for column in table)
        if all(isinstance(t[column].dtype, pd.CategoricalDtype) for t in tables if column in t)
    ]
    plain = [t.astype({c: object for c in categorical if c in t}) for t in tables]
    obs = pd.concat(plain)
    obs = obs.astype(dict.fromkeys(categorical, "category"))
    origin = np.repeat(list(parts), [len(table) for table in tables])
    if not obs.index.is_unique:
        obs.index = [f"{cell}-{name}" for cell, name in zip(obs.index, origin, strict=True)]
    if source_key is not None:
        obs[source_key] = pd.Categorical(origin, categories=list(parts))
    first = next(iter(parts.values()))
    obsm = {}
    for key in first.obsm:
        found: list[Any] = [adata.obsm.get(key) for adata in parts.values()]
        if all(isinstance(part, np.ndarray) and part.shape[1:] == found[0].shape[1:] for part in found):
            obsm[key] = np.concatenate(found)
        elif all(isinstance(part, pd.DataFrame) and list(part) == list(found[0]) for part in found):
            obsm[key] = pd.concat(found).set_axis(obs.index)
    var = cast(pd.DataFrame, first.var).loc[names]
    return AnnData(obs=obs, var=var, obsm=obsm, uns=dict(first.uns))
