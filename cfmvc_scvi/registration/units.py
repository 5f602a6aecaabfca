"""In which unit an AnnData holds expression: predictions say it in ``uns["cfmvc"]``, other data hold counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from cfmvc_scvi.registration.counts import CountSummary, check_counts
from cfmvc_scvi.registration.keys import SetupKeys, counts_matrix, counts_name


def predicted_unit(adata: AnnData) -> str | None:
    """The ``return_type`` of a prediction; ``None`` for other data."""
    described = adata.uns.get("cfmvc", {})
    return described.get("return_type") if isinstance(described, dict) else None


def registered_counts(adata: AnnData, keys: SetupKeys) -> Any:
    """The counts of any AnnData where the model reads them, not yet checked.

    Raises
    ------
    KeyError
        When the registered layer is not there.
    ValueError
        For a prediction that holds no counts.
    """
    unit = predicted_unit(adata)
    if unit in ("lognorm", "latent") and (keys.layer is None or keys.layer not in adata.layers):
        raise ValueError(
            f"These cells are a prediction with `return_type={unit!r}`, and the model reads counts: predict them with "
            "`return_type='mean'` or 'counts'."
        )
    return counts_matrix(adata, keys.layer)


def check_units(adata: AnnData, counts: Any, keys: SetupKeys) -> CountSummary:
    """Raise unless cells that are given to a model hold counts, or what a prediction gave as expected counts.

    Parameters
    ----------
    adata
        The cells.
    counts
        Those of their counts that are read.
    keys
        Where the fields are.
    """
    expected = predicted_unit(adata) == "mean" and "log1p" not in adata.uns
    found = check_counts(
        counts,
        counts_name(keys.layer),
        allow_noncounts=keys.allow_noncounts or expected,
        warn=False,
        is_new=False,
    )
    rows = found.rows
    normalised = found.n_fractional > 0 and len(rows) > 2 and np.ptp(rows) < 1e-3 * rows.mean()
    if expected and normalised and not keys.allow_noncounts:
        raise ValueError(
            f"{counts_name(keys.layer)} of this prediction was normalised (every cell sums to {rows.mean():.6g}); the "
            "model reads the expected counts as they were predicted."
        )
    return found
