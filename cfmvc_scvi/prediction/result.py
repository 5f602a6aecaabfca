"""Annotations of predicted cells."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import anndata as ad
import pandas as pd

from cfmvc_scvi.prediction.request import Request
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.spelling import number_text

#: Columns that every result has of its own.
_WRITTEN = (
    "source_cell",
    "support",
    "support_distance",
    "support_reach",
    "n_support",
    "support_batch",
    "support_sample",
)


def result_obs(
    requests: Sequence[Request],
    sources: Mapping[str | None, SourceCells],
    support: Mapping[Request, Mapping[str, Any]],
    keys: SetupKeys,
    perturbation_column: str,
    draws: int,
    native: Mapping[str, Mapping[str, Any]] | None = None,
) -> pd.DataFrame:
    """Annotations of all rows of a prediction: one block per request, and within it one per draw.

    Parameters
    ----------
    requests
        What was asked for.
    sources
        The cells, by the cell type asked for.
    support
        Columns that say what the answers to a request rest on.
    keys
        Columns of the fields.
    perturbation_column
        Column that the perturbation is written to.
    draws
        Rows per cell.
    native
        Of columns whose levels are no text in the data: the levels by their text.
    """
    native = native or {}
    labels = list(dict.fromkeys(request.condition.label for request in requests))
    doses = _doses(requests)
    blocks = []
    for request, tag, dose in zip(requests, _tags(requests, doses), doses, strict=True):
        obs = _source_obs(sources[request.labels], keys, draws)
        if perturbation_column != keys.perturbation_key:
            obs = kept_aside(obs, [perturbation_column])
        levels = _as_in_data(labels, native.get(perturbation_column, {}))
        level = levels[labels.index(request.condition.label)]
        obs[perturbation_column] = pd.Categorical([level] * len(obs), categories=pd.Index(levels))
        if keys.dosage_key is not None:
            obs[keys.dosage_key] = dose
        if request.batch is not None and keys.batch_key is not None:
            [obs[keys.batch_key]] = _as_in_data([request.batch], native.get(keys.batch_key, {}))
        for name, values in support[request].items():
            obs[name] = values
        for draw in range(draws):
            block = obs if draws == 1 else obs.assign(draw=draw)
            suffix = f"_{tag}" if draws == 1 else f"_{tag}_{draw}"
            blocks.append(block.set_axis(block["source_cell"] + suffix))
    return _concatenate(blocks)


def kept_aside(obs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The same columns, those of these names with the ending ``_of_source``: a result has its own of these names."""
    renamed = {name: f"{name}_of_source" for name in names if name in obs}
    return obs.drop(columns=[name for name in renamed.values() if name in obs]).rename(columns=renamed)


def _as_in_data(labels: Sequence[str], native: Mapping[str, Any]) -> list[Any]:
    """Labels as the data have them, such as numbers, where they have all of them; else text."""
    return [native[label] for label in labels] if all(label in native for label in labels) else list(labels)


def _source_obs(source: SourceCells, keys: SetupKeys, draws: int) -> pd.DataFrame:
    """The cells' own columns, and their names."""
    obs = source.asked.obs
    obs = obs.loc[:, [name for name in obs if not str(name).startswith("_scvi")]].copy()
    written = [*_WRITTEN, *(["nearest_label"] if source.nearest.any() else []), *(["draw"] if draws > 1 else [])]
    obs = kept_aside(obs, written)
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
    levels = values[0].categories.append([v.categories for v in values[1:]]).unique()
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
        return [dose if isinstance(dose, str) else number_text(dose) for dose in doses]
    return [float(dose) for dose in doses]
