"""Registration of an AnnData: which column plays which part."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import settings

from cfmvc_scvi._constants import AUTO, CONVENTIONAL_OBS, CONVENTIONAL_OBSM
from cfmvc_scvi._messages import close_matches
from cfmvc_scvi._rows import DiskRows, is_on_disk, with_one_index_type
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.registration.conventions import USUAL_NAMES, say_what_was_found, usual_column, usual_columns
from cfmvc_scvi.registration.labels import (
    find_control_group,
    presence_controls,
    presence_delimiter,
    presence_labels,
    split_label,
)
from cfmvc_scvi.registration.spelling import as_list, texts_of
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary, cell_conditions, read_embedding


@dataclass(frozen=True)
class SetupKeys:
    """Where each field is found in the AnnData; ``None`` where it is not used."""

    layer: str | None
    batch_key: str | None
    labels_key: str | None
    perturbation_key: str
    control_group: list[str]
    combination_delimiter: str | None
    dosage_key: str | None
    perturbation_embedding_key: str | None
    spatial_key: str | None
    categorical_covariate_keys: list[str] | None
    continuous_covariate_keys: list[str] | None
    size_factor_key: str | None
    allow_noncounts: bool = False
    sample_key: str | None = None


def resolve_keys(
    adata: AnnData,
    *,
    layer: str | None,
    perturbation_key: Any,
    control_group: str | Sequence[str] | None,
    from_registry: bool = False,
    **keys: Any,
) -> SetupKeys:
    """Replace :data:`~cfmvc_scvi.AUTO` by what is there and check that every given key exists.

    With ``from_registry`` the arguments are those of a saved model, whose control and embedding new data may lack.
    """
    batch_key, labels_key = (
        _resolve(argument, keys[argument], adata.obs.columns, CONVENTIONAL_OBS, "adata.obs")
        for argument in ("batch_key", "labels_key")
    )
    perturbation_key = _resolve_perturbation(adata, perturbation_key)
    spatial_key = _resolve("spatial_key", keys["spatial_key"], adata.obsm.keys(), CONVENTIONAL_OBSM, "adata.obsm")
    for argument in ("dosage_key", "size_factor_key", "sample_key"):
        _require(argument, keys[argument], adata.obs.columns, "adata.obs")
    for argument in ("categorical_covariate_keys", "continuous_covariate_keys"):
        keys[argument] = None if keys[argument] is None else as_list(keys[argument])
        for key in keys[argument] or []:
            _require(argument, key, adata.obs.columns, "adata.obs")
    _require("layer", layer, adata.layers.keys(), "adata.layers")
    if not from_registry:
        _require("perturbation_embedding_key", keys["perturbation_embedding_key"], adata.uns.keys(), "adata.uns")
    delimiter = keys["combination_delimiter"]
    if has_presence_matrix(adata, perturbation_key):
        table = adata.obsm[perturbation_key]
        delimiter = presence_delimiter(table, perturbation_key, delimiter)
        controls = presence_controls(table, perturbation_key, control_group)
    else:
        levels = sorted(set(texts_of(adata.obs[perturbation_key].dropna())))
        controls = list(control_group or ()) if from_registry else find_control_group(levels, control_group)
    resolved: dict[str, Any] = {"batch_key": batch_key, "labels_key": labels_key, "spatial_key": spatial_key}
    resolved["combination_delimiter"] = delimiter
    found = SetupKeys(
        layer=layer,
        perturbation_key=perturbation_key,
        control_group=controls,
        **(keys | resolved),
    )
    if not from_registry:
        say_what_was_found(adata, found)
    return found


def build_vocabulary(adata: AnnData, keys: SetupKeys, labels: np.ndarray, dosage: np.ndarray | None) -> dict[str, Any]:
    """State of the :class:`PerturbationVocabulary` of an AnnData, from the label and dose of every cell."""
    levels = pd.unique(labels)
    found = [m for level in levels for m in split_label(level, keys.combination_delimiter, keys.control_group)]
    members = [name for name in dict.fromkeys(found) if name not in keys.control_group]
    if not members:
        warnings.warn(
            f"{keys.perturbation_key!r} holds only control cells ({keys.control_group}): the VAE can be "
            "trained with `train_vae()`, but there is no perturbation for the flow to learn.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    embedding_key = keys.perturbation_embedding_key
    embedding = None if embedding_key is None else read_embedding(adata.uns[embedding_key], embedding_key)
    vocabulary = PerturbationVocabulary(keys.control_group, members, keys.combination_delimiter, embedding)
    if dosage is not None:
        vocabulary.reference_dose = _largest_doses(vocabulary, labels, dosage)
    return vocabulary.to_registry(embedding)


def has_presence_matrix(adata: AnnData, perturbation_key: str) -> bool:
    """Whether the perturbations are a matrix in ``obsm`` rather than a column of ``obs``."""
    return perturbation_key not in adata.obs and perturbation_key in adata.obsm


def perturbation_labels(adata: AnnData, keys: SetupKeys) -> np.ndarray:
    """Perturbation label of every cell, shape (n_cells,), strings."""
    if has_presence_matrix(adata, keys.perturbation_key):
        assert keys.combination_delimiter is not None  # presence_delimiter() has found one
        table = adata.obsm[keys.perturbation_key]
        return presence_labels(table, keys.perturbation_key, keys.combination_delimiter)
    return texts_of(obs_of(adata)[keys.perturbation_key])


def cell_dosage(adata: AnnData, dosage_key: str | None) -> np.ndarray | None:
    """Dose of every cell, numeric or delimited text; ``None`` without a dosage column."""
    if dosage_key is None:
        return None
    column = obs_of(adata)[dosage_key]
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float)
    return texts_of(column)


def counts_matrix(adata: AnnData, layer: str | None) -> Any:
    """The counts as they are stored; of counts on disk, what reads them by rows.

    Raises
    ------
    KeyError
        When the layer is not there; the message says what is.
    """
    if layer is not None and layer not in adata.layers:
        there = [str(name) for name in adata.layers if name is not None]
        raise KeyError(
            f"The counts are read from adata.layers[{layer!r}], which this AnnData does not have. There is: adata.X, "
            f"and layers {there}. Where its counts are in adata.X, call "
            f"`adata.layers[{layer!r}] = adata.X.copy()` first."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if isinstance(matrix, DiskRows):
        return matrix
    return DiskRows(matrix, counts_name(layer)) if is_on_disk(matrix) else with_one_index_type(matrix)


def counts_name(layer: str | None) -> str:
    """Where the counts are, for messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _resolve(argument: str, key: Any, available: Iterable[str], names: Mapping[str, str], where: str) -> str | None:
    if key is AUTO and argument in USUAL_NAMES:
        return usual_column(argument, available)
    if key is AUTO:
        return names[argument] if names[argument] in available else None
    _require(argument, key, available, where)
    return key


def _resolve_perturbation(adata: AnnData, key: Any) -> str:
    """The column of ``obs`` or the matrix in ``obsm`` that says what was done to each cell."""
    if key is AUTO:
        key = usual_column("perturbation_key", adata.obs.columns)
    if key is None:
        raise ValueError(
            "CFMVC needs to know what was done to each cell: pass `perturbation_key=`, a column of adata.obs, or a "
            f"presence matrix in adata.obsm. There is: {list(adata.obs.columns)} in obs, {list(adata.obsm)} in obsm."
            f"{_several(usual_columns('perturbation_key', adata.obs.columns))}"
        )
    if not has_presence_matrix(adata, key):
        _require("perturbation_key", key, [*adata.obs.columns, *adata.obsm.keys()], "adata.obs, nor in adata.obsm")
    return key


def _require(argument: str, key: str | None, available: Iterable[str], where: str) -> None:
    available = [str(name) for name in available]
    if key is None or key in available:
        return
    raise KeyError(
        f"`{argument}` {key!r} is not in {where}.{close_matches(key, available, n=3)} There is: {available}."
    )


def _largest_doses(vocabulary: PerturbationVocabulary, labels: np.ndarray, dosage: np.ndarray) -> dict[str, float]:
    largest: dict[str, float] = {}
    for condition in cell_conditions(vocabulary, labels, dosage)[1]:
        for member, dose in zip(condition.members, condition.doses, strict=True):
            largest[member] = max(dose, largest.get(member, 0.0))
    return largest


def _several(found: list[str]) -> str:
    return f" Several have a usual name: {found}." if len(found) > 1 else ""
