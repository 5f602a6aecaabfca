"""Perturbation labels: their members, the control group, and labels of a presence matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cfmvc_scvi._constants import CONTROL_NAMES, NO_PERTURBATION
from cfmvc_scvi._messages import close_matches, shortened
from cfmvc_scvi.registration.conventions import looks_like_control, warn_of_other_controls
from cfmvc_scvi.registration.spelling import as_list, known_spelling, text_of


def split_label(label: str, delimiter: str | None, control_group: Sequence[str] = ()) -> list[str]:
    """Members of a label; the label itself without a delimiter.

    A label that is a control name is never split, even where it holds the delimiter.
    """
    if delimiter is None or label in control_group:
        return [label]
    members = [member.strip() for member in label.split(delimiter)]
    if any(not member for member in members):
        raise ValueError(
            f"Perturbation label {label!r} has an empty member when split at `combination_delimiter` {delimiter!r}."
        )
    return members


def find_control_group(levels: Sequence[str], control_group: str | Sequence[str] | None) -> list[str]:
    """Control levels of the perturbation column: those given, or the one with a usual name.

    Raises
    ------
    ValueError
        When a given level does not exist, or none or several levels have a usual control name.
    """
    if control_group is not None:
        wanted = [known_spelling(level, levels) for level in as_list(control_group)]
        missing = [level for level in wanted if level not in levels]
        if missing or not wanted:
            raise ValueError(
                f"`control_group` {missing or wanted} is not a level of the perturbation column."
                f"{close_matches(missing, levels)} Levels: {shortened(levels, 30)}."
            )
        return wanted
    usual = [level for level in levels if level.lower() in CONTROL_NAMES]
    if len(usual) == 1:
        warn_of_other_controls(levels, usual)
        return usual
    alike = [level for level in levels if looks_like_control(level)]
    found = (
        f"several levels look like one: {shortened(alike)}" if alike else "none of the levels has a usual control name"
    )
    offer = f" All of these: `control_group={shortened(alike, 30)}`." if alike else ""
    raise ValueError(
        f"Which perturbation is the control? {found}. Pass `control_group=` one (or a list) of {shortened(levels, 30)}."
        f"{offer}"
    )


def presence_labels(table: Any, key: str, delimiter: str) -> np.ndarray:
    """Label of every cell from a presence matrix, shape (n_cells,): the names of its columns, joined.

    Parameters
    ----------
    table
        ``adata.obsm[key]``: a DataFrame of 0 and 1, or of booleans, with one column per perturbation. A cell may
        have several; one without any is called ``"control"``.
    key
        Its key, for messages.
    delimiter
        Joins the names.
    """
    names, present = _presence(table, key)
    patterns, of_cell = np.unique(np.packbits(present, axis=1), axis=0, return_inverse=True)
    patterns = np.unpackbits(patterns, axis=1, count=len(names)).astype(bool)
    labels = [delimiter.join(sorted(names[row])) or NO_PERTURBATION for row in patterns]
    return np.array(labels, dtype=object)[of_cell.ravel()]


def presence_delimiter(table: Any, key: str, delimiter: str | None) -> str:
    """Delimiter of the labels of a presence matrix: the one given, or ``"+"``, where no column name holds it."""
    names, _ = _presence(table, key)
    chosen = "+" if delimiter is None else delimiter
    holding = [name for name in names if chosen in name]
    if holding:
        raise ValueError(
            f"Columns {shortened(holding, 5)} of adata.obsm[{key!r}] hold {chosen!r}, which joins the names of "
            "perturbations "
            "given together: pass another `combination_delimiter=`, such as '|'."
        )
    return chosen


def presence_controls(table: Any, key: str, control_group: str | Sequence[str] | None) -> list[str]:
    """Control names of a presence matrix: no perturbation at all, and columns that are control guides."""
    names = list(_presence(table, key)[0])
    if control_group is None:
        columns = [name for name in names if name.lower() in CONTROL_NAMES]
    else:
        given = [known_spelling(name, names) for name in as_list(control_group)]
        columns = [name for name in given if name != NO_PERTURBATION]
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(
                f"`control_group` {missing} is not a column of adata.obsm[{key!r}]."
                f"{close_matches(missing, names)} Columns: {shortened(names, 30)}. Cells without any "
                "perturbation are control in any case."
            )
    return [NO_PERTURBATION, *(name for name in columns if name != NO_PERTURBATION)]


def _presence(table: Any, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Names of the columns and the booleans of a presence matrix."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"adata.obsm[{key!r}] is a {type(table).__name__}, whose columns have no names: as `perturbation_key` it "
            "must be a DataFrame with one column per perturbation, "
            "`pd.DataFrame(matrix, index=adata.obs_names, columns=names)`."
        )
    names = np.array([text_of(name) for name in table.columns], dtype=object)
    if len(set(names)) < len(names):
        repeated = pd.Index(names)[pd.Index(names).duplicated()].unique().tolist()
        raise ValueError(
            f"adata.obsm[{key!r}] has more than one column named {shortened(repeated, 5)}: keep one of each."
        )
    values = table.to_numpy()
    present = values == 1
    if not (present | (values == 0)).all():
        raise ValueError(
            f"adata.obsm[{key!r}] has values other than 0 and 1. As `perturbation_key` it says which perturbations "
            "each cell has: threshold counts of guides first, e.g. `(table >= 5).astype(int)`."
        )
    return names, present
