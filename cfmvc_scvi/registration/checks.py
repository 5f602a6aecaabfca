"""Checks of data at the entrance: what the model cannot be right on is refused, what it may be wrong on is named."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scvi import settings

from cfmvc_scvi._messages import shortened
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.registration.counts import CountSummary, check_counts
from cfmvc_scvi.registration.depth import warn_of_bulk
from cfmvc_scvi.registration.keys import SetupKeys, counts_matrix, counts_name
from cfmvc_scvi.registration.spelling import text_of, texts_of
from cfmvc_scvi.registration.vocabulary import Condition

#: Texts that a missing value turns into.
_MISSING_TEXT = ("", "nan", "NaN", "<NA>")


def check_anndata(adata: AnnData) -> None:
    """Refuse what no column could make right; comes before the columns are looked up.

    Raises
    ------
    TypeError
        For anything but an AnnData.
    ValueError
        For a view, no cells, no genes, and names of genes that are not unique.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"`adata` is a {type(adata).__name__}; an AnnData is needed (cells x genes, with raw counts).")
    if not isinstance(adata.obs, pd.DataFrame):
        raise TypeError(
            f"adata.obs is a {type(adata.obs).__name__}, which is not in memory, as `read_lazy` leaves it: open the "
            "file with `cfmvc_scvi.data.open_counts(path)`, which leaves the counts alone on disk."
        )
    if adata.is_view:
        raise ValueError(
            "`adata` is a view of another AnnData, and registration writes into it: call `adata = adata.copy()` first."
        )
    if 0 in adata.shape:
        raise ValueError(f"`adata` is empty: it has {adata.n_obs} cells and {adata.n_vars} genes.")
    check_unique_genes(adata)


def validate(adata: AnnData, keys: SetupKeys, *, is_new: bool = True) -> None:
    """Refuse data the model cannot be right on, with the reason and the remedy.

    Parameters
    ----------
    adata
        The data to register.
    keys
        Where the fields are.
    is_new
        Whether a model is to be trained on them; what makes training unsafe is then warned about.

    Raises
    ------
    TypeError
        For containers and number types that cannot be read, naming the conversion to call.
    ValueError
        For values that are missing or cannot be.
    """
    categorical = [keys.batch_key, keys.labels_key, keys.sample_key, keys.perturbation_key]
    categorical += keys.categorical_covariate_keys or []
    categorical = [key for key in categorical if key is not None and key in adata.obs]
    for key in categorical:
        check_categories(adata.obs[key], f"adata.obs[{key!r}]")
    for key in (keys.size_factor_key, *(keys.continuous_covariate_keys or [])):
        if key is not None:
            check_finite_column(obs_of(adata)[key], f"adata.obs[{key!r}]", positive=key == keys.size_factor_key)
    if keys.spatial_key is not None:
        _check_coordinates(adata.obsm[keys.spatial_key], f"adata.obsm[{keys.spatial_key!r}]", is_new)
    where = counts_name(keys.layer)
    if keys.layer is None and adata.X is None:
        raise TypeError(f"adata.X is None: pass `layer=`, one of {list(adata.layers)}, that holds the counts.")
    counts = check_counts(counts_matrix(adata, keys.layer), where, allow_noncounts=keys.allow_noncounts, warn=is_new)
    if is_new:
        _warn_of_names(adata)
        _warn_of_levels(adata, [key for key in categorical if key != keys.perturbation_key])
        _warn_of_empty(adata, counts, where)
        library = counts.rows
        if keys.size_factor_key is not None:
            _warn_of_small_libraries(obs_of(adata)[keys.size_factor_key], counts, keys.size_factor_key)
            library = obs_of(adata)[keys.size_factor_key].to_numpy(dtype=float)
        warn_of_bulk(library, map(str, adata.obs))


# ---- columns ----------------------------------------------------------------------------------------------------


def check_categories(column: pd.Series, where: str) -> None:
    """Raise for categories that are missing, empty, or the same when written as text."""
    n_missing = int(column.isna().sum())
    if n_missing:
        raise ValueError(
            f"{where} is missing for {n_missing} cells: name them or leave them out, e.g. "
            f"`adata = adata[{where}.notna()].copy()`."
        )
    levels = list(column.unique())
    _check_types(column, levels, where)
    empty = [level for level in levels if str(level).strip() in _MISSING_TEXT]
    if empty:
        n_cells = int(column.isin(empty).sum())
        raise ValueError(
            f"{where} is {str(empty[0])!r} for {n_cells} cells, an empty name or a missing value written as text: name "
            f"these cells or leave them out, e.g. `adata = adata[~{where}.isin({[str(e) for e in empty]})].copy()`."
        )
    names = pd.Index([text_of(level) for level in levels])
    if not names.is_unique:
        raise ValueError(
            f"{where} has levels of different types, or with blanks around them, that read the same: "
            f"{shortened(sorted(names[names.duplicated()]), 5)}. Make "
            f"it one spelling, e.g. `{where} = {where}.astype(str).str.strip()`."
        )


def _check_types(column: pd.Series, levels: list, where: str) -> None:
    """Raise for dates, which are written in many ways, and for text beside numbers, which cannot be sorted."""
    remedy = f"Make it text: `{where} = {where}.astype(str)`."
    dates = [level for level in levels if isinstance(level, (datetime.date, datetime.timedelta, np.datetime64))]
    if dates:
        raise ValueError(f"{where} holds dates, such as {dates[0]}, which are no category. {remedy}")
    kinds = sorted({type(level).__name__ for level in levels if not isinstance(level, str)})
    if kinds and any(isinstance(level, str) for level in levels):
        names = pd.Index([text_of(level) for level in levels])
        if names.is_unique:
            raise ValueError(f"{where} holds text beside values of type {', '.join(kinds)}. {remedy}")


def check_finite_column(column: pd.Series, where: str, positive: bool = False) -> None:
    """Raise unless a numeric column is finite, and positive where asked."""
    numbers = column.astype(object) if isinstance(column.dtype, pd.CategoricalDtype) else column
    values = pd.to_numeric(numbers, errors="coerce").to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"{where} has {int((~np.isfinite(values)).sum())} values that are missing or not numbers.")
    if positive and (values <= 0).any():
        raise ValueError(f"{where} has {int((values <= 0).sum())} values that are not positive.")
    if not pd.api.types.is_numeric_dtype(column):
        raise ValueError(f"{where} holds numbers as {column.dtype}: convert it, `{where} = {where}.astype(float)`.")


def check_unique_genes(adata: AnnData) -> None:
    """Raise unless every gene has a name of its own."""
    if not adata.var_names.is_unique:
        repeated = adata.var_names[adata.var_names.duplicated()].unique()
        raise ValueError(
            f"adata.var_names are not unique ({len(repeated)} names occur more than once, e.g. {list(repeated[:3])}), "
            "and genes are matched by name: call `adata.var_names_make_unique()` first."
        )


def _check_coordinates(coordinates: Any, where: str, is_new: bool) -> None:
    values = np.asarray(coordinates)
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise ValueError(
            f"{where} must be numbers of shape (n_cells, n_dimensions); it is {values.dtype} {values.shape}."
        )
    n_bad = int((~np.isfinite(values)).any(axis=1).sum())
    if n_bad:
        raise ValueError(
            f"{where} has coordinates that are not finite for {n_bad} cells: leave them out, e.g. "
            f"`adata = adata[numpy.isfinite({where}).all(axis=1)].copy()`, or pass `spatial_key=None`."
        )
    n_same = int(pd.DataFrame(values).duplicated(keep=False).sum())
    if n_same and is_new:
        _warn(
            f"{n_same} of {len(values)} cells in {where} share their coordinates with another cell: check that "
            "sections were not laid over each other and that a missing position was not written as 0."
        )


# ---- warnings ---------------------------------------------------------------------------------------------------


def _warn_of_names(adata: AnnData) -> None:
    n_repeated = int(adata.obs_names.duplicated().sum())
    if n_repeated:
        _warn(
            f"{n_repeated} of the names in adata.obs_names occur before: `source_cell` of predictions will not tell "
            "these cells apart. Call `adata.obs_names_make_unique()` first."
        )


def _warn_of_levels(adata: AnnData, keys: Iterable[str]) -> None:
    for key in keys:
        column, where = adata.obs[key], f"adata.obs[{key!r}]"
        counts = column.astype(str).value_counts()
        single = counts.index[counts == 1]
        if len(counts) > max(20, len(column) // 2):
            _warn(
                f"{where} has {len(counts)} levels for {len(column)} cells: it looks like a measurement or a name "
                "rather than a category."
            )
        elif len(single):
            _warn(
                f"{where} has {len(single)} levels with one cell: {shortened(single)}. Nothing can be learned "
                "about them: "
                "leave these cells out or join the levels with others."
            )


def _warn_of_empty(adata: AnnData, counts: CountSummary, where: str) -> None:
    n_cells, n_genes = int((counts.rows == 0).sum()), int((counts.columns == 0).sum())
    if n_cells:
        _warn(
            f"{n_cells} cells have no counts in {where}, e.g. {shortened(adata.obs_names[counts.rows == 0], 3)}: they "
            "count as cells with a library of 1 and teach the model nothing. Call `scanpy.pp.filter_cells(adata, "
            "min_counts=1)`."
        )
    if n_genes:
        _warn(
            f"{n_genes} genes have no counts in {where}, e.g. {shortened(adata.var_names[counts.columns == 0], 3)}: "
            "nothing can be predicted for them. Call `scanpy.pp.filter_genes(adata, min_counts=1)`."
        )


def _warn_of_small_libraries(library: pd.Series, counts: CountSummary, key: str) -> None:
    n_small = int((library.to_numpy(dtype=float) < counts.rows / 2).sum())
    if n_small > 0.05 * len(library):
        _warn(
            f"adata.obs[{key!r}] is less than half the sum of the counts for {n_small} of {len(library)} cells: "
            "`size_factor_key` is the cell's library size in counts (all its genes), not a normalisation factor around "
            "1."
        )


def warn_of_design(adata: AnnData, keys: SetupKeys, condition: np.ndarray, conditions: list[Condition]) -> None:
    """Warn where the data cannot tell a perturbation from something else.

    Parameters
    ----------
    adata, keys
        The registered data and their fields.
    condition
        Index of every cell's condition, 0 for control.
    conditions
        The conditions.
    """
    if not (condition > 0).any():
        return
    sizes = np.bincount(condition, minlength=len(conditions))
    single = [conditions[code].label for code in np.flatnonzero(sizes == 1) if code]
    if single:
        _warn(
            f"{len(single)} perturbations have one cell: {shortened(single)}. An effect cannot be told from "
            "the cell's own "
            "noise: leave these cells out, or predict them from a vector (`perturbation_embedding_key`)."
        )
    if not (condition == 0).any():
        _warn(
            "No cell is control: the control levels are only members of combinations, or have doses. Stage 2 needs "
            "control cells to start from."
        )
        return
    if keys.labels_key is not None:
        lacking = _levels_without_control(texts_of(obs_of(adata)[keys.labels_key]), condition)
        if lacking:
            _warn(
                f"{len(lacking)} levels of adata.obs[{keys.labels_key!r}] have perturbed cells but no control cells: "
                f"{shortened(lacking)}. They are paired with control cells of other levels, so differences between the "
                "levels pass for effects: add control cells or leave these levels out."
            )
    if keys.batch_key is not None:
        batch = adata.obs[keys.batch_key].astype(str).to_numpy()
        confounded = _warn_of_confounding(batch, keys.batch_key, condition, conditions)
        if keys.labels_key is not None and not confounded:
            labels = np.unique(texts_of(obs_of(adata)[keys.labels_key]).astype(str), return_inverse=True)[1]
            _warn_of_unlinked_batches(batch, keys.batch_key, labels, condition)
    if keys.sample_key is not None:
        _warn_of_samples(adata.obs[keys.sample_key].astype(str).to_numpy(), keys.sample_key, condition, conditions)


def _warn_of_confounding(batch: np.ndarray, key: str, condition: np.ndarray, conditions: list[Condition]) -> bool:
    """Warn of perturbations measured only in batches without controls; whether there are any."""
    lacking = np.isin(batch, _levels_without_control(batch, condition))
    elsewhere = set(condition[~lacking].tolist())
    confounded = [
        (conditions[code].label, sorted(set(batch[condition == code])))
        for code in np.unique(condition[lacking]).tolist()
        if code not in elsewhere
    ]
    if confounded:
        named = ", ".join(f"{label!r} (only in {shortened(where, 3)})" for label, where in confounded[:10])
        _warn(
            f"{len(confounded)} perturbations are confounded with adata.obs[{key!r}]: {named}"
            f"{', ...' if len(confounded) > 10 else ''}. No control cell was measured in the same batches, so their "
            "effect cannot be told from that of the batch."
        )
    return bool(confounded)


def _warn_of_unlinked_batches(batch: np.ndarray, key: str, labels: np.ndarray, condition: np.ndarray) -> None:
    """Warn of batches without a population in common with others, even through third ones."""
    names, of_batch = np.unique(batch, return_inverse=True)
    _, of_kind = np.unique(np.stack([labels, condition]), axis=1, return_inverse=True)
    pairs = np.ones(len(batch)), (of_batch, len(names) + of_kind.ravel())
    n_nodes = len(names) + int(of_kind.max()) + 1
    n_parts, part = connected_components(sparse.coo_matrix(pairs, (n_nodes, n_nodes)), directed=False)
    if n_parts > 1:
        groups = [shortened(names[part[: len(names)] == one].tolist(), 3) for one in range(n_parts)]
        _warn(
            f"adata.obs[{key!r}] falls into {n_parts} groups that have no cell type with the same perturbation in "
            f"common: {' | '.join(groups[:5])}{' | ...' if n_parts > 5 else ''}. Their differences may be technical or "
            "biological, and `batch=` moves cells by both."
        )


def _warn_of_samples(sample: np.ndarray, key: str, condition: np.ndarray, conditions: list[Condition]) -> None:
    """Warn of perturbations whose effect cannot be told from the difference of two samples."""
    controls = set(sample[condition == 0])
    single = []
    for code in np.unique(condition[condition > 0]).tolist():
        samples = set(sample[condition == code])
        if len(samples) == 1 and not samples & controls:
            single.append(conditions[code].label)
    if single:
        _warn(
            f"{len(single)} perturbations are confounded with adata.obs[{key!r}]: {shortened(single)}. Each was "
            "measured in one sample that has no control cells, so its effect cannot be told from the difference "
            "between samples."
        )
    if not _has_replicates(sample, condition):
        _warn(
            f"No condition has two samples in adata.obs[{key!r}], so the variance between samples is not known: "
            "intervals are about these samples, not about others like them."
        )


def _has_replicates(sample: np.ndarray, condition: np.ndarray) -> bool:
    pairs = np.unique(np.stack([condition, np.unique(sample, return_inverse=True)[1]]), axis=1)
    return bool((np.bincount(pairs[0]) > 1).any())


def _levels_without_control(levels: np.ndarray, condition: np.ndarray) -> list[str]:
    return sorted(set(levels[condition > 0]) - set(levels[condition == 0]))


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=settings.warnings_stacklevel)
