"""What one registration of an AnnData establishes, worked out once: columns, labels, doses, conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.data.fields import BaseAnnDataField

from cfmvc_scvi.registration.checks import check_anndata, validate, warn_of_design
from cfmvc_scvi.registration.conventions import warn_of_combinations
from cfmvc_scvi.registration.fields import make_fields
from cfmvc_scvi.registration.keys import (
    SetupKeys,
    build_vocabulary,
    cell_dosage,
    has_presence_matrix,
    perturbation_labels,
    resolve_keys,
)
from cfmvc_scvi.registration.vocabulary import Condition, PerturbationVocabulary, cell_conditions


@dataclass(frozen=True)
class CellConditions:
    """Condition of every cell of an AnnData.

    Attributes
    ----------
    code
        Index into ``conditions`` of every cell, 0 for control; shape (n_cells,).
    conditions
        The different conditions, control first.
    """

    code: np.ndarray
    conditions: list[Condition]

    @classmethod
    def of(cls, adata: AnnData, keys: SetupKeys, vocabulary: PerturbationVocabulary) -> CellConditions:
        """Conditions of the cells of any AnnData with the columns of a registration."""
        labels, dosage = perturbation_labels(adata, keys), cell_dosage(adata, keys.dosage_key)
        return cls(*cell_conditions(vocabulary, labels, dosage))

    @property
    def is_control(self) -> np.ndarray:
        """Which cells are unperturbed, also by a dose of 0; booleans, shape (n_cells,)."""
        return self.code == 0


def perturbed_cells(adata: AnnData, keys: SetupKeys, vocabulary: PerturbationVocabulary) -> np.ndarray:
    """Which cells of any AnnData are said to be perturbed already; booleans, shape (n_cells,).

    Data without the column, labels that are missing and doses that cannot be read say nothing.
    """
    if not has_presence_matrix(adata, keys.perturbation_key) and keys.perturbation_key not in adata.obs:
        return np.zeros(adata.n_obs, dtype=bool)
    frame = pd.DataFrame({"label": perturbation_labels(adata, keys)})
    has_doses = keys.dosage_key is not None and keys.dosage_key in adata.obs
    frame["dosage"] = cell_dosage(adata, keys.dosage_key) if has_doses else None
    codes, rows = pd.factorize(pd.MultiIndex.from_frame(frame), use_na_sentinel=False)
    known = [_is_perturbed(vocabulary, label, dose if has_doses else None) for label, dose in rows]
    return np.array(known, dtype=bool)[codes]


def _is_perturbed(vocabulary: PerturbationVocabulary, label: str, dosage: float | str | None) -> bool:
    if label in ("", "nan"):
        return False
    try:
        return not vocabulary.parse(label, dosage).is_control
    except ValueError:  # a dose that is missing or no number
        return not vocabulary.parse(label).is_control


@dataclass(frozen=True)
class Registration:
    """One AnnData as it is registered.

    Attributes
    ----------
    keys
        Where each field is found.
    is_matrix
        Whether the perturbations are a presence matrix in ``obsm``.
    vocabulary
        Saved state of the :class:`~cfmvc_scvi.registration.vocabulary.PerturbationVocabulary`; ``None`` for data that
        are set up for a model that has one.
    """

    keys: SetupKeys
    is_matrix: bool
    vocabulary: Mapping[str, Any] | None

    @classmethod
    def of(cls, adata: AnnData, *, is_new: bool, **arguments: Any) -> Registration:
        """Check an AnnData and find its fields.

        Parameters
        ----------
        adata
            The data.
        is_new
            Whether a model is to be made of them; else they are set up for a model that is there.
        **arguments
            Those of :meth:`cfmvc_scvi.CFMVC.setup_anndata`, which also says what is raised and warned of.
        """
        check_anndata(adata)
        keys = resolve_keys(adata, from_registry=not is_new, **arguments)
        validate(adata, keys, is_new=is_new)
        vocabulary = None
        if is_new:
            labels, dosage = perturbation_labels(adata, keys), cell_dosage(adata, keys.dosage_key)
            vocabulary = build_vocabulary(adata, keys, labels, dosage)
            found = cell_conditions(PerturbationVocabulary.from_registry(vocabulary), labels, dosage)
            warn_of_design(adata, keys, *found)
            if keys.combination_delimiter is None:
                warn_of_combinations(list(dict.fromkeys(labels.tolist())), keys.control_group or [])
        return cls(keys, has_presence_matrix(adata, keys.perturbation_key), vocabulary)

    def fields(self) -> list[BaseAnnDataField]:
        """scvi-tools' fields of the registration."""
        return make_fields(self.keys, self.vocabulary, presence_matrix=self.is_matrix)
