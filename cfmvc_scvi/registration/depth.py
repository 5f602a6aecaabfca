"""Rows that are no single cells (pseudobulk, wells, regions), known by their depth."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
from scvi import settings

from cfmvc_scvi._messages import shortened

#: Counts of a row, in the median, above which it holds more molecules than a cell gives: droplets and plates with
#: molecular identifiers give 500 to 50,000, pseudobulk and regions hundreds of thousands and more.
BULK_COUNTS = 100_000
#: Columns that are written where cells are added up (decoupler's `pseudobulk`).
_ADDED_UP = ("psbulk_cells", "psbulk_n_cells", "psbulk_counts")


def warn_of_bulk(library: np.ndarray, columns: Iterable[str]) -> None:
    """Warn where rows do not look like single cells, and say what holds for them.

    Parameters
    ----------
    library
        Counts of every row, shape (n,).
    columns
        Names of the columns of ``obs``.
    """
    depth = float(np.median(library))
    added_up = [name for name in columns if str(name).lower() in _ADDED_UP]
    if depth <= BULK_COUNTS and not added_up:
        return
    signs = [f"the median row has {depth:,.0f} counts, a cell has 500 to 50,000"] if depth > BULK_COUNTS else []
    signs += [f"obs has {shortened(added_up)}"] if added_up else []
    warnings.warn(
        f"The {len(library)} rows do not look like single cells ({'; '.join(signs)}), but like pseudobulk, wells or "
        "regions. Rows then count as cells: `get_perturbation_effect` and expected values compare groups of rows and "
        "hold; generated rows and drawn counts are rows like these, no cells, and with few rows per condition little "
        "is learned. Pass `sample_key=` the donor or animal, where several rows have one; where the single cells are "
        "at hand, give those. Reads of full-length protocols (Smart-seq) are as deep and may stay as they are.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
