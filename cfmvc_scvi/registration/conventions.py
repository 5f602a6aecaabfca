"""Columns and control groups by their usual names, and the line that says what was taken and what was left out."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from anndata import AnnData
from scvi import settings

from cfmvc_scvi._constants import CONTROL_NAMES
from cfmvc_scvi._messages import shortened

#: A child of scvi-tools' logger, so that ``scvi.settings.verbosity`` decides what is shown.
logger = logging.getLogger("scvi.cfmvc")

#: Names of columns that are taken where the first one is not there and no other of them is.
USUAL_NAMES = {
    "labels_key": ("cell_type", "celltype", "cell_types", "cell_label", "cell.type"),
    "perturbation_key": ("perturbation", "condition", "treatment", "stim", "guide", "gene_target", "drug"),
}
#: Names of columns that may be a batch or a sample; which of the two only the user knows, so they are named alone.
BATCH_LIKE = ("batch", "donor", "sample", "replicate", "plate", "patient", "individual", "library", "lane", "channel")

#: Columns of a setup beside the covariates.
_ROLES = ("batch_key", "sample_key", "labels_key", "perturbation_key", "dosage_key")
#: What joins the names of perturbations given together, most usual first.
_DELIMITERS = ("+", "|", "&", ";", ",", "_")

#: What guides that cut nothing, or nothing that matters, are called, with or without a number behind it.
_CONTROL_GUIDE = re.compile(
    r"(sg|guide)?[-_ .]*(non[-_ .]*target(ing)?|safe[-_ .]*(target(ing)?|harbou?r)|nt|ntc"
    r"|(neg|negative)[-_ .]*(ctrl|control)"
    r"|ctrl|control|scrambled?|olfactory|aavs1|lacz|luciferase)([-_ .]*(guide|sg|control|ctrl))?[-_ .]*\d*",
    re.IGNORECASE,
)


def usual_column(argument: str, columns: Iterable[str]) -> str | None:
    """The column an argument stands for by its usual name; ``None`` where there is none, or several.

    The first name of :data:`USUAL_NAMES` wins; of the others, one must be there alone. Case does not count.
    """
    by_name = {str(column).lower(): str(column) for column in reversed(list(columns))}
    first, *others = USUAL_NAMES[argument]
    if first in by_name:
        return by_name[first]
    found = [by_name[name] for name in others if name in by_name]
    return found[0] if len(found) == 1 else None


def usual_columns(argument: str, columns: Iterable[str]) -> list[str]:
    """Every column with a usual name of an argument."""
    return [str(column) for column in columns if str(column).lower() in USUAL_NAMES[argument]]


def looks_like_control(level: str) -> bool:
    """Whether a level of the perturbation column is called like a control, such as ``non-targeting_001``.

    Examples
    --------
    >>> looks_like_control("non-targeting_001"), looks_like_control("safe-targeting"), looks_like_control("NT5E")
    (True, True, False)
    """
    return level.lower() in CONTROL_NAMES or _CONTROL_GUIDE.fullmatch(level) is not None


def warn_of_other_controls(levels: Sequence[str], taken: Sequence[str]) -> None:
    """Warn of levels that are called like controls and would be trained as perturbations."""
    others = [level for level in levels if level not in taken and looks_like_control(level)]
    if others:
        warnings.warn(
            f"{shortened(others)} are called like controls, and are trained as perturbations; the control is "
            f"{shortened(taken)}. If they are controls too, pass `control_group={shortened([*taken, *others], 30)}`; "
            f"if not, pass `control_group={shortened(taken)}` to say so.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )


def warn_of_combinations(levels: Sequence[str], controls: Sequence[str]) -> None:
    """Warn of levels that are others joined by a delimiter, and would be perturbations of their own.

    A control among the parts says that a perturbation was alone, as in ``A+ctrl``.
    """
    for delimiter in _DELIMITERS:
        parts = {level: [part for part in level.split(delimiter) if part not in controls] for level in levels}
        alone = {members[0] for members in parts.values() if len(members) == 1}
        joined = [level for level, members in parts.items() if len(members) > 1 and alone.issuperset(members)]
        if joined:
            warnings.warn(
                f"{shortened(joined, 5)} are other perturbations joined by {delimiter!r}, and are taken for "
                "perturbations of their own, which say nothing of their members. If they are combinations, pass "
                f"`combination_delimiter={delimiter!r}`.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
            return


def say_what_was_found(adata: AnnData, keys: Any) -> None:
    """Log one line: the columns that play a part, and those that look like a batch or sample and were left out.

    Parameters
    ----------
    adata
        The data.
    keys
        Their :class:`~cfmvc_scvi.registration.keys.SetupKeys`.
    """
    used = {*(getattr(keys, name) for name in _ROLES), *(keys.categorical_covariate_keys or [])}
    left_out = [str(name) for name in adata.obs if str(name).lower() in BATCH_LIKE and name not in used]
    parts = [
        f"perturbation {keys.perturbation_key!r} (control {shortened(keys.control_group, 3)})",
        f"cell type {_named(keys.labels_key)}",
        f"batch {_named(keys.batch_key)}",
        f"spatial {_named(keys.spatial_key)}",
        f"counts in {'X' if keys.layer is None else keys.layer!r}",
    ]
    parts += [f"sample {keys.sample_key!r}"] if keys.sample_key is not None else []
    hint = f"; left out, though called like a batch or sample: {shortened(left_out)}" if left_out else ""
    logger.info("CFMVC: %s%s.", ", ".join(parts), hint)


def _named(key: str | None) -> str:
    return "none" if key is None else repr(key)
