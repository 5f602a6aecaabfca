"""Reads the cells of any AnnData: genes aligned by name, categories coded as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch import Tensor

from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._messages import close_matches, missing_genes, shortened
from cfmvc_scvi._rows import DiskRows, take_rows
from cfmvc_scvi._types import FlowContext, obs_of, same_names
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.registration.checks import check_finite_column, check_unique_genes
from cfmvc_scvi.registration.counts import check_counts
from cfmvc_scvi.registration.keys import SetupKeys, counts_matrix, counts_name


@dataclass(frozen=True)
class _Annotations:
    """What is known of the cells that are read, beside their counts."""

    obs: pd.DataFrame
    spatial: Any


class CellReader:
    """Reads the cells of any AnnData into the order a model was trained with.

    Parameters
    ----------
    field_registries
        Field registries of the trained model.
    var_names
        Genes of the trained model.
    keys
        Where the fields are in an AnnData.
    """

    def __init__(self, field_registries: Mapping[str, Any], var_names: Sequence[str], keys: SetupKeys) -> None:
        self.var_names = pd.Index(var_names)
        self.keys = keys
        self._batches = categories(field_registries, REGISTRY_KEYS.BATCH_KEY)
        self._labels = categories(field_registries, REGISTRY_KEYS.LABELS_KEY)
        self._samples = [] if keys.sample_key is None else categories(field_registries, REGISTRY_KEYS.SAMPLE_KEY)
        joint = field_registries.get(REGISTRY_KEYS.CAT_COVS_KEY, {}).get("state_registry", {})
        self._covariates: dict[str, Sequence[str]] = dict(joint.get("mappings", {}))
        spatial = field_registries.get(CFMVC_KEYS.SPATIAL_KEY, {}).get("summary_stats", {})
        self._n_spatial = spatial.get(f"n_{CFMVC_KEYS.SPATIAL_KEY}", 0)

    def read(
        self,
        adata: AnnData,
        *,
        rows: np.ndarray | None = None,
        batch: str | None = None,
        allow_unknown: bool = False,
    ) -> CellTable:
        """Cells of an AnnData.

        Parameters
        ----------
        adata
            Any AnnData with the model's genes, in any order.
        rows
            Cells to read, and to check; ``None`` is all.
        batch
            Batch to assume where the AnnData has no batch column.
        allow_unknown
            Code cell types that were not in training, or are not given, as -1 instead of refusing them.

        Raises
        ------
        KeyError
            For a column that is missing.
        ValueError
            For genes or categories that are missing or unknown, naming them.
        """
        counts = self._align_genes(adata)
        if rows is not None:
            counts = take_rows(counts, rows)
        cells = self._annotations(adata, rows)
        found = check_counts(
            counts, counts_name(self.keys.layer), allow_noncounts=self.keys.allow_noncounts, warn=False, is_new=False
        )
        if sparse.issparse(counts):
            counts = counts.tocsr()
        elif isinstance(counts, DiskRows):
            counts = counts.with_totals(found.rows)
        size_factor = self._size_factor(cells)
        library = found.rows if size_factor is None else size_factor
        return CellTable(
            counts=counts,
            obs=cells.obs,
            context=self._context(cells, batch, allow_unknown),
            library=np.maximum(library, 1.0).astype(np.float32),
            has_size_factor=size_factor is not None,
            whole=found.n_fractional == 0,
            sample=self._sample(cells),
        )

    def _align_genes(self, adata: AnnData) -> Any:
        matrix = counts_matrix(adata, self.keys.layer)
        if same_names(adata.var_names, self.var_names):
            return matrix
        check_unique_genes(adata)
        columns = adata.var_names.get_indexer(self.var_names)
        missing = self.var_names[columns < 0]
        if len(missing):
            wanted = f"the {len(self.var_names)} genes the model was trained on"
            raise ValueError(missing_genes(missing, adata.var_names, wanted=wanted))
        return matrix.with_columns(columns) if isinstance(matrix, DiskRows) else matrix[:, columns]

    def _annotations(self, adata: AnnData, rows: np.ndarray | None) -> _Annotations:
        key = self.keys.spatial_key
        spatial = adata.obsm[key] if key is not None and key in adata.obsm else None
        if rows is None:
            return _Annotations(obs_of(adata), spatial)
        return _Annotations(obs_of(adata).iloc[rows], None if spatial is None else np.asarray(spatial)[rows])

    def _context(self, cells: _Annotations, batch: str | None, allow_unknown: bool) -> FlowContext:
        labels = self._codes(cells, self.keys.labels_key, self._labels, "cell type", allow_unknown=allow_unknown)
        further = [self._codes(cells, key, levels, "covariate") for key, levels in self._covariates.items()]
        return FlowContext(
            batch=torch.as_tensor(self._codes(cells, self.keys.batch_key, self._batches, "batch", default=batch)),
            labels=torch.as_tensor(labels),
            further=torch.as_tensor(np.stack(further, axis=1)) if further else None,
            continuous=self._continuous(cells),
            spatial=self._spatial(cells),
        )

    def _codes(
        self,
        cells: _Annotations,
        key: str | None,
        levels: Sequence[str],
        what: str,
        *,
        default: str | None = None,
        allow_unknown: bool = False,
    ) -> np.ndarray:
        if key is None:
            return np.zeros(len(cells.obs), dtype=np.int64)
        names = [str(level) for level in levels]
        if key in cells.obs:
            n_missing = int(cells.obs[key].isna().sum())
            if n_missing and not allow_unknown:
                raise ValueError(
                    f"adata.obs[{key!r}], the {what}, is missing for {n_missing} cells: give each one of "
                    f"{shortened(names, 20)}, "
                    "or leave them out."
                )
            values = cells.obs[key].astype(str).to_numpy()
        elif default is not None:
            values = np.full(len(cells.obs), str(default))
        elif allow_unknown:
            return np.full(len(cells.obs), -1, dtype=np.int64)
        else:
            raise KeyError(
                f"The model needs the {what} of every cell, but {key!r} is not in adata.obs. There is: "
                f"{list(cells.obs.columns)}. Add the column, with levels of "
                f"{shortened(names, 20)}.{_nearest_hint(what)}"
            )
        found = pd.Index(names).get_indexer(pd.Index(values))
        unknown = sorted(set(values[found < 0]))
        if unknown and not allow_unknown:
            raise ValueError(unknown_level_message(what, f"adata.obs[{key!r}]", unknown, names))
        return found.astype(np.int64)

    def _continuous(self, cells: _Annotations) -> Tensor | None:
        names = self.keys.continuous_covariate_keys
        if not names:
            return None
        for name in names:
            if name not in cells.obs:
                raise KeyError(f"The model was trained with covariate {name!r}, which is not in adata.obs.")
            check_finite_column(cells.obs[name], f"adata.obs[{name!r}]")
        return torch.as_tensor(cells.obs[list(names)].to_numpy(dtype=np.float32))

    def _spatial(self, cells: _Annotations) -> Tensor | None:
        key = self.keys.spatial_key
        if key is None:
            return None
        if cells.spatial is None:
            raise KeyError(f"The model was trained with coordinates, but {key!r} is not in adata.obsm.")
        coordinates = np.asarray(cells.spatial, dtype=np.float32)
        if coordinates.shape[1] != self._n_spatial or not np.isfinite(coordinates).all():
            raise ValueError(
                f"adata.obsm[{key!r}] must hold {self._n_spatial} finite coordinates per cell; "
                f"its shape is {coordinates.shape}."
            )
        return torch.as_tensor(coordinates)

    def _sample(self, cells: _Annotations) -> np.ndarray | None:
        """Codes of the samples; cells to predict need none."""
        key = self.keys.sample_key
        if key is None or key not in cells.obs:
            return None
        return pd.Index(self._samples).get_indexer(pd.Index(cells.obs[key].astype(str))).astype(np.int64)

    def _size_factor(self, cells: _Annotations) -> np.ndarray | None:
        key = self.keys.size_factor_key
        if key is None:
            return None
        if key not in cells.obs:
            raise KeyError(
                f"The model was trained with library sizes from adata.obs[{key!r}], which this AnnData lacks."
            )
        check_finite_column(cells.obs[key], f"adata.obs[{key!r}]", positive=True)
        return cells.obs[key].to_numpy(dtype=np.float32)


def categories(field_registries: Mapping[str, Any], key: str) -> list[str]:
    """Levels of a categorical field, in the order of their codes."""
    return [str(level) for level in field_registries[key]["state_registry"]["categorical_mapping"]]


def unknown_level_message(what: str, where: str, unknown: Sequence[str], known: Sequence[str]) -> str:
    """Message for levels the model was not trained with."""
    return (
        f"{where} has {len(unknown)} {what} level(s) the model was not trained with: "
        f"{shortened(unknown)}.{close_matches(unknown, known)} "
        f"Known: {shortened(known, 30)}. Rename them to known levels, or train with control cells of the new ones."
        f"{_nearest_hint(what)}"
    )


def _nearest_hint(what: str) -> str:
    if what != "cell type":
        return ""
    return " `predict_perturbation(..., unknown_labels='nearest')` treats such cells as the most similar known type."
