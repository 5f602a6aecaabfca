"""Annotations of predicted cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import anndata as ad
import numpy as np
import pandas as pd

from cfmvc_scvi.prediction.request import Request
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.registration.keys import SetupKeys


def result_obs(
    requests: Sequence[Request],
    sources: Mapping[str | None, SourceCells],
    support: Mapping[Request, tuple[pd.Categorical, float, np.ndarray | None]],
    keys: SetupKeys,
    perturbation_column: str,
    draws: int,
) -> pd.DataFrame:
    """Annotations of all rows of a prediction: one block per request, and within it one per draw.

    Parameters
    ----------
    requests
        What was asked for.
    sources
        The cells, by the cell type asked for.
    support
        Support of every cell of a request, the distance of its condition, and the training cells behind every cell.
    keys
        Columns of the fields.
    perturbation_column
        Column that the perturbation is written to.
    draws
        Rows per cell.
    """
    labels = list(dict.fromkeys(request.condition.label for request in requests))
    doses = _doses(requests)
    blocks = []
    for request, tag, dose in zip(requests, _tags(requests, doses), doses, strict=True):
        obs = _source_obs(sources[request.labels], keys)
        obs[perturbation_column] = pd.Categorical([request.condition.label] * len(obs), categories=labels)
        if keys.dosage_key is not None:
            obs[keys.dosage_key] = dose
        if request.batch is not None and keys.batch_key is not None:
            obs[keys.batch_key] = request.batch
        obs["support"], obs["support_distance"], n_support = support[request]
        if n_support is not None:
            obs["n_support"] = n_support
        for draw in range(draws):
            block = obs if draws == 1 else obs.assign(sample=draw)
            suffix = f"_{tag}" if draws == 1 else f"_{tag}_{draw}"
            blocks.append(block.set_axis(block["source_cell"] + suffix))
    return _concatenate(blocks)


def _source_obs(source: SourceCells, keys: SetupKeys) -> pd.DataFrame:
    """The cells' own columns, and their names."""
    obs = source.asked.obs
    obs = obs.loc[:, [name for name in obs if not str(name).startswith("_scvi")]].copy()
    obs["source_cell"] = obs.index.astype(str)
    if source.nearest.any():
        obs["nearest_label"] = source.labels
    return obs


def _concatenate(blocks: list[pd.DataFrame]) -> pd.DataFrame:
    """Blocks of rows as one, names made unique; columns stay categorical."""
    if len(blocks) == 1:
        obs = blocks[0].copy()
    else:
        for name in blocks[0]:
            columns = [block[name] for block in blocks]
            if isinstance(columns[0].dtype, pd.CategoricalDtype) or len({str(c.dtype) for c in columns}) > 1:
                _unify(blocks, name)
        obs = pd.concat(blocks)
    if not obs.index.is_unique:
        obs.index = ad.utils.make_index_unique(cast("pd.Index[str]", pd.Index(obs.index)))
    return obs.rename_axis(None)


def _unify(blocks: list[pd.DataFrame], name: Hashable) -> None:
    """Give a column the same categories in all blocks."""
    values = [pd.Categorical(block[name]) for block in blocks]
    levels = pd.Index([]).append([v.categories for v in values]).unique()
    for block, value in zip(blocks, values, strict=True):
        block[name] = value.set_categories(levels)


def _tags(requests: Sequence[Request], doses: Sequence[float | str]) -> list[str]:
    """What is appended to a cell's name: the label, with dose and batch where labels alone are not unique."""
    tags = [request.condition.label for request in requests]
    if len(set(tags)) == len(tags):
        return tags
    tags = [
        f"{tag}@{dose}" if request.condition.members else tag
        for tag, dose, request in zip(tags, doses, requests, strict=True)
    ]
    return [tag if r.batch is None else f"{tag}@{r.batch}" for tag, r in zip(tags, requests, strict=True)]


def _doses(requests: Sequence[Request]) -> list[float] | list[str]:
    """Dose of every request as it was given: numbers, or text where any has one dose per member."""
    doses = [0.0 if request.dosage is None else request.dosage for request in requests]
    if any(isinstance(dose, str) for dose in doses):
        return [dose if isinstance(dose, str) else f"{dose:g}" for dose in doses]
    return [float(dose) for dose in doses]
