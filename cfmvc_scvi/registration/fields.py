"""scvi-tools' fields as this model registers them: codes that names cannot change, and the perturbation vocabulary."""

# fields of AnnData alone, where scvi-tools' have MuData as well
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS
from scvi.data.fields import (
    BaseAnnDataField,
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    ObsmField,
)

from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._rows import is_on_disk
from cfmvc_scvi.registration.keys import SetupKeys


class CountsField(LayerField):
    """Counts; of those on disk, scvi-tools looks at no values: it cannot read all datasets, and they are checked."""

    def validate_field(self, adata: AnnData) -> None:
        """scvi-tools' check, without that of the values where they are on disk."""
        self.is_count_data = not is_on_disk(self.get_field_data(adata))
        super().validate_field(adata)


class FirstSeenObsField(CategoricalObsField):
    """Levels coded in the order of their first cell; unused ones are dropped.

    Random start values belong to codes. Were codes alphabetical, a model of renamed levels would start, and so end,
    elsewhere.
    """

    def register_field(self, adata: AnnData) -> dict:
        """Codes and levels of scvi-tools' field, renumbered."""
        state = super().register_field(adata)
        codes, order = _first_seen(adata.obs[self.attr_key].to_numpy())
        adata.obs[self.attr_key] = codes
        return state | {self.CATEGORICAL_MAPPING_KEY: state[self.CATEGORICAL_MAPPING_KEY][order]}


class SampleField(FirstSeenObsField):
    """Samples; further data may have others."""

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Keep the codes of the source; new samples get codes behind them."""
        return super().transfer_field(state_registry, adata_target, **kwargs | {"extend_categories": True})


class FirstSeenJointObsField(CategoricalJointObsField):
    """The same for several columns."""

    def register_field(self, adata: AnnData) -> dict:
        """Codes and levels of scvi-tools' field, renumbered."""
        state = super().register_field(adata)
        table = cast(pd.DataFrame, adata.obsm[self.attr_key])
        mappings = dict(state[self.MAPPINGS_KEY])
        for key in self.attr_keys:
            table[key], order = _first_seen(table[key].to_numpy())
            mappings[key] = mappings[key][order]
        counts = [len(mappings[key]) for key in self.attr_keys]
        return state | {self.MAPPINGS_KEY: mappings, self.N_CATS_PER_KEY: counts}


class _WithVocabulary(BaseAnnDataField if TYPE_CHECKING else object):
    """Keeps the perturbation vocabulary in the registry, so that it is saved with the model."""

    _vocabulary: Mapping[str, Any] | None

    def register_field(self, adata: AnnData) -> dict:
        """State of scvi-tools' field plus the vocabulary."""
        return super().register_field(adata) | {"vocabulary": self._vocabulary}

    def transfer_field(self, state_registry: dict, adata_target: AnnData, *args: Any, **kwargs: Any) -> dict:
        """Keep the vocabulary of the source."""
        state = super().transfer_field(state_registry, adata_target, *args, **kwargs)
        return state | {"vocabulary": state_registry["vocabulary"]}


class PerturbationField(_WithVocabulary, CategoricalObsField):
    """Perturbation labels in a column of ``obs``."""

    def __init__(self, key: str, vocabulary: Mapping[str, Any] | None) -> None:
        super().__init__(CFMVC_KEYS.PERTURBATION_KEY, key)
        self._vocabulary = vocabulary


class PerturbationMatrixField(_WithVocabulary, ObsmField):
    """Presence of each perturbation, in a DataFrame in ``obsm``."""

    def __init__(self, key: str, vocabulary: Mapping[str, Any] | None) -> None:
        super().__init__(CFMVC_KEYS.PERTURBATION_KEY, key)
        self._vocabulary = vocabulary


def make_fields(
    keys: SetupKeys, vocabulary: Mapping[str, Any] | None, *, presence_matrix: bool
) -> list[BaseAnnDataField]:
    """The scvi-tools fields of a registration.

    Parameters
    ----------
    keys
        Where each field is found.
    vocabulary
        Saved state of the vocabulary of the AnnData that is registered; ``None`` where it is taken from a model.
    presence_matrix
        Whether the perturbations are a presence matrix in ``obsm``.
    """
    perturbation = PerturbationMatrixField if presence_matrix else PerturbationField
    fields: list[BaseAnnDataField] = [
        CountsField(REGISTRY_KEYS.X_KEY, keys.layer),
        FirstSeenObsField(REGISTRY_KEYS.BATCH_KEY, keys.batch_key),
        FirstSeenObsField(REGISTRY_KEYS.LABELS_KEY, keys.labels_key),
        perturbation(keys.perturbation_key, vocabulary),
        FirstSeenJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, keys.categorical_covariate_keys),
        NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, keys.continuous_covariate_keys),
        NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, keys.size_factor_key, required=False),
    ]
    if keys.sample_key is not None:
        fields.append(SampleField(REGISTRY_KEYS.SAMPLE_KEY, keys.sample_key))
    if keys.spatial_key is not None:
        fields.append(ObsmField(CFMVC_KEYS.SPATIAL_KEY, keys.spatial_key))
    return fields


def vocabulary_state(field_registries: Mapping[str, Any]) -> Mapping[str, Any]:
    """The vocabulary among the field registries of a model."""
    return field_registries[CFMVC_KEYS.PERTURBATION_KEY]["state_registry"]["vocabulary"]


def _first_seen(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes in the order of their first appearance, and the old code of every new one."""
    new, old = pd.factorize(codes)
    return new.astype(codes.dtype), np.asarray(old)
