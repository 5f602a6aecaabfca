"""Vectors of perturbations from files of any format, by the names that the data use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scvi import settings

from cfmvc_scvi._messages import close_matches, shortened, unknown_choice
from cfmvc_scvi.data.vectors.formats import Table, read_names, read_table
from cfmvc_scvi.data.vectors.identifiers import Aliases, as_function
from cfmvc_scvi.registration.conventions import looks_like_control
from cfmvc_scvi.registration.labels import split_label
from cfmvc_scvi.registration.spelling import as_list, is_missing, text_of

#: Endings of a file of names beside an array, after its own name without the ending.
_BESIDE = (".names.txt", ".txt", ".names.json", ".json")


def read_vectors(
    path: str | os.PathLike,
    *,
    wanted: Iterable[str] | None = None,
    delimiter: str | None = None,
    control_group: str | Sequence[str] | None = None,
    aliases: Aliases | None = None,
    to: str | None = None,
    names: Sequence[str] | str | os.PathLike | None = None,
    key: str | None = None,
    transpose: bool = False,
    duplicates: Literal["error", "mean"] = "error",
    unusable: Literal["error", "drop"] = "error",
) -> pd.DataFrame:
    """Vectors of perturbations from a file, by the names that the data use.

    Nothing is made up: a perturbation without a vector is reported and left out, never given zeros. No code of a
    file runs: arrays with Python objects, and pickles or ``.pt`` files that ask for more than numbers, text and
    containers of these, are refused.

    Parameters
    ----------
    path
        A file. Its ending says the format:

        - ``.csv``, ``.tsv``, ``.txt`` (tabs), also with ``.gz``, and ``.parquet`` (needs pyarrow): a row per name; the
          first column, or ``key``, has the names. In parquet the index has them, where there is one.
        - ``.npz``: an array of vectors and one of as many names (text); or an array for every name.
        - ``.npy``: an array of vectors; its names are ``names``, or beside it in ``<name>.names.txt``, ``<name>.txt``
          (one a line), ``<name>.names.json`` or ``<name>.json``.
        - ``.h5``, ``.hdf5``: the same as ``.npz``, as in STRING's files (``embeddings``, ``proteins``).
        - ``.pt``, ``.pth``: tensors, by torch's loader for weights alone: a dictionary from name to vector, or as
          ``.npz``.
        - ``.pkl``, ``.pickle``, also with ``.gz``: a dictionary from name to vector, as ``.npz``, or a DataFrame.
    wanted
        Labels of the perturbations that vectors are needed for, such as ``adata.obs["perturbation"]``; repeated and
        missing ones are fine. Only these are kept, and those without a vector are reported. ``None`` keeps all.
    delimiter
        Splits labels of ``wanted`` into perturbations given together, which need a vector each.
    control_group
        Labels of ``wanted`` that are controls and need no vector; ``None`` takes those with a usual name.
    aliases
        What leads from names of the file to names of the data: a dict from name to name; a DataFrame with a row per
        gene, in which all text (several identifiers in one field with ``|`` between them) leads to the name of the
        row; an AnnData, whose ``var`` is such a table; or a function from name to name. The version of an Ensembl
        identifier (``.5``) does not count. An alias of two genes leads nowhere. Names that it does not know stay.
    to
        Column of the table with the names of the data; ``None`` is its index.
    names
        Names of the rows where the file has none: a sequence, or a file of names.
    key
        Column of the names in a table, array of the vectors, or group in HDF5.
    transpose
        The file has a column per name and a row per feature, as DepMap's tables have.
    duplicates
        Several rows of one name, after mapping: ``"error"`` refuses them, ``"mean"`` averages them.
    unusable
        Rows with missing or infinite numbers, or of zeros alone, as some sources have for what they do not know (to a
        model zero is control): ``"error"`` refuses them, ``"drop"`` leaves them out and says so.

    Returns
    -------
    DataFrame (name x feature), float32. ``attrs`` says how it came about: ``source``, the file's name; ``renamed``, the
    number of names that were mapped; ``missing``, the names that were wanted and have no vector; ``dropped``, names
    whose numbers were not finite.

    Warns
    -----
    UserWarning
        Where wanted names have no vector, or rows were dropped: how many, which, and names that look like them.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        For a file that is no table of vectors, rows without names, repeated names, unusable numbers, and where no
        name that is wanted is there.

    Examples
    --------
    >>> table = pd.DataFrame({"a": [0.5, 1.0], "b": [2.0, 3.0]}, index=["ENSG00000185885", "ENSG00000187608"])
    >>> table.to_csv("vectors.csv")
    >>> symbols = {"ENSG00000185885": "IFITM1", "ENSG00000187608": "ISG15"}
    >>> read_vectors("vectors.csv", aliases=symbols, wanted=["ISG15+ctrl", "IFITM1"], delimiter="+")
              a    b
    ISG15   1.0  3.0
    IFITM1  0.5  2.0
    """
    path = Path(path)
    if duplicates not in ("error", "mean"):
        raise ValueError(unknown_choice("duplicates", duplicates, ("error", "mean")))
    if unusable not in ("error", "drop"):
        raise ValueError(unknown_choice("unusable", unusable, ("error", "drop")))
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; the current folder is {os.getcwd()!r}.")
    table = read_table(path, key)
    if transpose:
        table = Table(np.asarray(table.values).T, table.features, table.names)
    given, values = _named(table, names, path)
    to_wanted = as_function(aliases, to)
    labels = [to_wanted(name) for name in given]
    renamed = sum(label != name for label, name in zip(labels, given, strict=True))
    rows, missing = np.arange(len(labels)), []
    if wanted is not None:
        needed = needed_names(wanted, delimiter, control_group)
        rows, missing = _rows_of(needed, labels, path)
    labels, values = [labels[row] for row in rows], np.asarray(values[rows], dtype=np.float64)
    labels, values, dropped = _usable(labels, values, unusable, path)
    features = range(values.shape[1]) if table.features is None else table.features
    frame = pd.DataFrame(values, index=pd.Index(labels, dtype=object), columns=[str(name) for name in features])
    frame = _unique(frame, duplicates, path).astype(np.float32)
    frame.attrs = {"source": path.name, "renamed": renamed, "missing": missing, "dropped": dropped}
    if missing or dropped:
        _warn(missing, dropped, given + labels, path)
    return frame


def needed_names(
    labels: Iterable[str], delimiter: str | None = None, control_group: str | Sequence[str] | None = None
) -> list[str]:
    """Perturbations that labels are made of, in the order of their first mention, without controls.

    Examples
    --------
    >>> needed_names(["A+B", "control", "B+ctrl", None], delimiter="+")
    ['A', 'B']
    """
    if isinstance(labels, str):
        raise TypeError(f"`wanted` is the text {labels!r}; give a list of labels, or a column such as adata.obs[...].")
    controls = None if control_group is None else {text_of(label) for label in as_list(control_group)}
    found: dict[str, None] = {}
    for label in dict.fromkeys(text_of(label) for label in labels if not is_missing(label)):
        for name in split_label(label, delimiter, sorted(controls or ())):
            if not (looks_like_control(name) if controls is None else name in controls):
                found[name] = None
    return list(found)


def _named(table: Table, names: Sequence[str] | str | os.PathLike | None, path: Path) -> tuple[list[str], np.ndarray]:
    """Names and vectors, as many of each."""
    values = np.asarray(table.values)
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise ValueError(
            f"{path.name!r} holds an array of shape {values.shape} and type {values.dtype}; vectors are an array of "
            "numbers (names, features)."
        )
    if names is not None:
        given = read_names(Path(names)) if isinstance(names, (str, os.PathLike)) else [str(name) for name in names]
    elif table.names is not None:
        given = [text_of(name).strip() for name in table.names]
    else:
        stem = path.name.split(".")[0]
        beside = [path.with_name(stem + ending) for ending in _BESIDE]
        found = next((file for file in beside if file != path and file.is_file()), None)
        if found is None:
            raise ValueError(
                f"{path.name!r} has {len(values)} vectors without names: pass `names=`, a list or a file with one name "
                f"a line, or put {stem + _BESIDE[0]!r} beside it."
            )
        given = read_names(found)
    if len(given) != len(values):
        raise ValueError(f"There are {len(given)} names for the {len(values)} vectors of {path.name!r}.")
    return given, values


def _rows_of(needed: list[str], labels: list[str], path: Path) -> tuple[np.ndarray, list[str]]:
    """Rows with the names that are needed, in their order, and the names without a row."""
    places: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        places.setdefault(label, []).append(row)
    missing = [name for name in needed if name not in places]
    if not needed or len(missing) == len(needed):
        raise ValueError(
            f"None of the {len(needed)} perturbations wanted, {shortened(needed, 5)}, is among the {len(labels)} names "
            f"of {path.name!r}, {shortened(labels, 5)}.{close_matches(missing, labels)} Where these are identifiers of "
            "another kind, pass a table of both as `aliases`."
        )
    return np.concatenate([places[name] for name in needed if name in places]), missing


def _usable(labels: list[str], values: np.ndarray, unusable: str, path: Path) -> tuple[list[str], np.ndarray, list]:
    good = np.flatnonzero(np.isfinite(values).all(axis=1) & (values != 0).any(axis=1))
    bad = [labels[row] for row in np.setdiff1d(np.arange(len(labels)), good)]
    if bad and (unusable == "error" or len(bad) == len(labels)):
        raise ValueError(
            f"{len(bad)} of {len(labels)} vectors of {path.name!r} have missing or infinite numbers, or zeros alone: "
            f"{shortened(bad)}. Leave these names out by `unusable='drop'`, or fill in numbers and save the table anew."
        )
    return [labels[row] for row in good], values[good], bad


def _unique(frame: pd.DataFrame, duplicates: str, path: Path) -> pd.DataFrame:
    if frame.index.is_unique:
        return frame
    repeated = list(dict.fromkeys(frame.index[frame.index.duplicated()]))
    if duplicates == "error":
        raise ValueError(
            f"{len(repeated)} names have several vectors in {path.name!r}: {shortened(repeated)}. Average them by "
            "`duplicates='mean'`, or correct `aliases` or the file."
        )
    return frame.groupby(level=0, sort=False).mean()


def _warn(missing: list[str], dropped: list[str], known: list[str], path: Path) -> None:
    parts = []
    if missing:
        parts.append(
            f"{len(missing)} perturbations have no vector in {path.name!r}: {shortened(missing, 10)}."
            f"{close_matches(missing, dict.fromkeys(known), n=1)}"
        )
    if dropped:
        parts.append(f"{len(dropped)} vectors have missing or infinite numbers, or zeros alone: {shortened(dropped)}.")
    warnings.warn(
        f"{' '.join(parts)} They are left out, not filled in; `attrs` of the table lists them.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
