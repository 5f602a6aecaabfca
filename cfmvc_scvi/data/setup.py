"""Registration of an AnnData: which column plays which part, checked once at the entrance."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS, settings
from scvi.data.fields import (
    BaseAnnDataField,
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    ObsmField,
)

from cfmvc_scvi._constants import AUTO, CFMVC_KEYS, CONVENTIONAL_OBS, CONVENTIONAL_OBSM
from cfmvc_scvi.data.perturbation import (
    PerturbationVocabulary,
    cell_conditions,
    find_control_group,
    read_embedding,
    split_label,
)

logger = logging.getLogger(__name__)


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


class PerturbationField(CategoricalObsField):
    """Perturbation labels, with the vocabulary kept in the registry so that it is saved with the model."""

    def __init__(self, keys: SetupKeys, source: Mapping[str, Any] | None = None) -> None:
        super().__init__(CFMVC_KEYS.PERTURBATION_KEY, keys.perturbation_key)
        self._keys = keys
        self._source = source

    def register_field(self, adata: AnnData) -> dict:
        """Categories of scvi-tools' field plus the vocabulary."""
        return super().register_field(adata) | {"vocabulary": build_vocabulary(adata, self._keys)}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Keep the vocabulary of the source."""
        state = super().transfer_field(state_registry, adata_target, **kwargs)
        return state | {"vocabulary": state_registry["vocabulary"]}


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
    batch_key, labels_key, perturbation_key = (
        _resolve(argument, key, adata.obs.columns, CONVENTIONAL_OBS, "adata.obs")
        for argument, key in (
            ("batch_key", keys["batch_key"]),
            ("labels_key", keys["labels_key"]),
            ("perturbation_key", perturbation_key),
        )
    )
    if perturbation_key is None:
        raise ValueError(
            "CFMVC needs to know what was done to each cell: pass `perturbation_key=`, a column of adata.obs. "
            f"There is: {list(adata.obs.columns)}."
        )
    spatial_key = _resolve("spatial_key", keys["spatial_key"], adata.obsm.keys(), CONVENTIONAL_OBSM, "adata.obsm")
    for argument in ("dosage_key", "size_factor_key"):
        _require(argument, keys[argument], adata.obs.columns, "adata.obs")
    for argument in ("categorical_covariate_keys", "continuous_covariate_keys"):
        for key in keys[argument] or []:
            _require(argument, key, adata.obs.columns, "adata.obs")
    _require("layer", layer, adata.layers.keys(), "adata.layers")
    if not from_registry:
        _require("perturbation_embedding_key", keys["perturbation_embedding_key"], adata.uns.keys(), "adata.uns")
    levels = sorted(adata.obs[perturbation_key].dropna().astype(str).unique())
    found = SetupKeys(
        layer=layer,
        perturbation_key=perturbation_key,
        control_group=list(control_group) if from_registry else find_control_group(levels, control_group),
        **(keys | {"batch_key": batch_key, "labels_key": labels_key, "spatial_key": spatial_key}),
    )
    _log_choices(found)
    return found


def validate(adata: AnnData, keys: SetupKeys) -> None:
    """Refuse data the model cannot be right on, with the reason."""
    if adata.is_view:
        raise ValueError(
            "`adata` is a view of another AnnData, and registration writes into it: call `adata = adata.copy()` first."
        )
    for key in (keys.batch_key, keys.labels_key, keys.perturbation_key, *(keys.categorical_covariate_keys or [])):
        if key is not None:
            _check_categories(adata, key)
    for key in (keys.size_factor_key, *(keys.continuous_covariate_keys or [])):
        if key is not None:
            check_finite_column(adata.obs[key], f"adata.obs[{key!r}]", positive=key == keys.size_factor_key)
    if keys.spatial_key is not None and not np.isfinite(np.asarray(adata.obsm[keys.spatial_key], dtype=float)).all():
        raise ValueError(f"adata.obsm[{keys.spatial_key!r}] has coordinates that are not finite.")
    check_counts(counts_matrix(adata, keys.layer), "adata.X" if keys.layer is None else f"adata.layers[{keys.layer!r}]")


def make_fields(keys: SetupKeys) -> list[BaseAnnDataField]:
    """The scvi-tools fields of a registration."""
    fields: list[BaseAnnDataField] = [
        LayerField(REGISTRY_KEYS.X_KEY, keys.layer, is_count_data=True),
        CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, keys.batch_key),
        CategoricalObsField(REGISTRY_KEYS.LABELS_KEY, keys.labels_key),
        PerturbationField(keys),
        CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, keys.categorical_covariate_keys),
        NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, keys.continuous_covariate_keys),
        NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, keys.size_factor_key, required=False),
    ]
    if keys.spatial_key is not None:
        fields.append(ObsmField(CFMVC_KEYS.SPATIAL_KEY, keys.spatial_key))
    return fields


def build_vocabulary(adata: AnnData, keys: SetupKeys) -> dict[str, Any]:
    """State of the :class:`PerturbationVocabulary` of an AnnData."""
    levels = sorted(adata.obs[keys.perturbation_key].astype(str).unique())
    members = {m for level in levels for m in split_label(level, keys.combination_delimiter, keys.control_group)} - set(
        keys.control_group
    )
    if not members:
        warnings.warn(
            f"adata.obs[{keys.perturbation_key!r}] holds only control cells ({keys.control_group}): the VAE can be "
            "trained with `train_vae()`, but there is no perturbation for the flow to learn.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    embedding_key = keys.perturbation_embedding_key
    embedding = None if embedding_key is None else read_embedding(adata.uns[embedding_key], embedding_key)
    vocabulary = PerturbationVocabulary(keys.control_group, sorted(members), keys.combination_delimiter, embedding)
    dosage = cell_dosage(adata, keys.dosage_key)
    if dosage is not None:
        labels = adata.obs[keys.perturbation_key].astype(str).to_numpy()
        vocabulary.reference_dose = _largest_doses(vocabulary, labels, dosage)
    return vocabulary.to_registry(embedding)


def cell_dosage(adata: AnnData, dosage_key: str | None) -> np.ndarray | None:
    """Dose of every cell, numeric or delimited text; ``None`` without a dosage column."""
    if dosage_key is None:
        return None
    column = adata.obs[dosage_key]
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float)
    return column.astype(str).to_numpy()


def counts_matrix(adata: AnnData, layer: str | None) -> Any:
    """The counts as they are stored."""
    return adata.X if layer is None else adata.layers[layer]


def check_counts(matrix: Any, where: str) -> None:
    """Raise unless every entry is a finite, non-negative whole number.

    Raises
    ------
    TypeError
        For containers that scvi-tools cannot read, naming the conversion to call.
    ValueError
        For missing, infinite, negative or fractional values.
    """
    if isinstance(matrix, sparse.sparray):
        raise TypeError(
            f"{where} is a scipy sparse array ({type(matrix).__name__}), which scvi-tools cannot read: "
            "convert it with `scipy.sparse.csr_matrix(...)`."
        )
    if not (sparse.issparse(matrix) or isinstance(matrix, np.ndarray)):
        raise TypeError(
            f"{where} is a {type(matrix).__name__}, which is not in memory: load the data first, "
            "`adata = adata.to_memory()`."
        )
    values = matrix.data if sparse.issparse(matrix) else matrix
    if values.size == 0:
        raise ValueError(f"{where} is empty.")
    smallest = values.min()
    if not np.isfinite(smallest) or not np.isfinite(values.max()):
        raise ValueError(f"{where} has values that are missing or infinite; counts are needed.")
    if smallest < 0:
        raise ValueError(f"{where} has negative values (smallest {smallest}); raw counts are needed.")
    if not np.issubdtype(values.dtype, np.integer) and _has_fractions(values):
        raise ValueError(
            f"{where} has fractional values: it looks normalised or log-transformed. CFMVC needs raw counts; where "
            "they are in a layer, pass `layer=`."
        )


def _has_fractions(values: np.ndarray, size: int = 1 << 22) -> bool:
    """Whether any number is not whole, looked at in pieces: no copy of all numbers is made."""
    pieces = np.array_split(values, max(1, values.size // size))
    return any(bool((piece != np.floor(piece)).any()) for piece in pieces)


def check_finite_column(column: pd.Series, where: str, positive: bool = False) -> None:
    """Raise unless a numeric column is finite, and positive where asked."""
    values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has {int((~np.isfinite(values)).sum())} values that are missing or not numbers.")
    if positive and (values <= 0).any():
        raise ValueError(f"{where} has {int((values <= 0).sum())} values that are not positive.")


def registered_conditions(
    adata: AnnData, keys: SetupKeys, vocabulary: PerturbationVocabulary
) -> tuple[np.ndarray, list[Any]]:
    """Condition index of every cell and the conditions; see :func:`cell_conditions`."""
    labels = adata.obs[keys.perturbation_key].astype(str).to_numpy()
    return cell_conditions(vocabulary, labels, cell_dosage(adata, keys.dosage_key))


def _resolve(argument: str, key: Any, available: Iterable[str], names: Mapping[str, str], where: str) -> str | None:
    if key is AUTO:
        return names[argument] if names[argument] in available else None
    _require(argument, key, available, where)
    return key


def _require(argument: str, key: str | None, available: Iterable[str], where: str) -> None:
    available = [str(name) for name in available]
    if key is None or key in available:
        return
    close = difflib.get_close_matches(str(key), available, n=3)
    hint = f" Did you mean {close}?" if close else ""
    raise KeyError(f"`{argument}` {key!r} is not in {where}.{hint} There is: {available}.")


def _check_categories(adata: AnnData, key: str) -> None:
    column = adata.obs[key]
    n_missing = int(column.isna().sum())
    if n_missing:
        raise ValueError(
            f"adata.obs[{key!r}] is missing for {n_missing} cells: name them or leave them out, e.g. "
            f"`adata = adata[adata.obs[{key!r}].notna()].copy()`."
        )


def _largest_doses(vocabulary: PerturbationVocabulary, labels: np.ndarray, dosage: np.ndarray) -> dict[str, float]:
    largest: dict[str, float] = {}
    for condition in cell_conditions(vocabulary, labels, dosage)[1]:
        for member, dose in zip(condition.members, condition.doses, strict=True):
            largest[member] = max(dose, largest.get(member, 0.0))
    return largest


def _log_choices(keys: SetupKeys) -> None:
    logger.info(
        "CFMVC set up with batch: %s, labels: %s, perturbation: %s (control: %s), spatial: %s.",
        *(keys.batch_key, keys.labels_key, keys.perturbation_key, keys.control_group, keys.spatial_key),
    )
