"""In which unit an AnnData holds expression: predictions say it in ``uns["cfmvc"]``, other data hold counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData

from cfmvc_scvi._rows import row_sums
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.registration.keys import SetupKeys, counts_name
from cfmvc_scvi.registration.spelling import text_of, texts_of


def predicted_unit(adata: AnnData) -> str | None:
    """The ``return_type`` of a prediction; ``None`` for other data."""
    described = adata.uns.get("cfmvc", {})
    return described.get("return_type") if isinstance(described, dict) else None


def check_holds_counts(adata: AnnData, keys: SetupKeys) -> None:
    """Raise for a prediction that holds no counts where the model reads them."""
    unit = predicted_unit(adata)
    if unit in ("lognorm", "latent") and (keys.layer is None or keys.layer not in adata.layers):
        raise ValueError(
            f"These cells are a prediction with `return_type={unit!r}`, and the model reads counts: predict them with "
            "`return_type='mean'` or 'counts'."
        )


def may_be_fractional(adata: AnnData, keys: SetupKeys) -> bool:
    """Whether fractional values pass: of data that were set up so, and of predictions that are expected counts."""
    return keys.allow_noncounts or (predicted_unit(adata) == "mean" and "log1p" not in adata.uns)


def check_expected(counts: Any, keys: SetupKeys) -> None:
    """Raise where expected counts of a prediction were normalised since: every cell has the same sum."""
    rows = row_sums(counts)
    if len(rows) > 2 and np.ptp(rows) < 1e-3 * rows.mean():
        raise ValueError(
            f"{counts_name(keys.layer)} of this prediction was normalised (every cell sums to {rows.mean():.6g}); the "
            "model reads the expected counts as they were predicted."
        )


def as_registered(adata: AnnData, levels: Mapping[str, Sequence[Any] | np.ndarray]) -> AnnData:
    """The same cells with levels spelled as a model knows them; ``adata`` itself where they are.

    Parameters
    ----------
    adata
        Cells; nothing is written into them, and their counts are not copied.
    levels
        Levels that the model knows, by the column of ``obs``.
    """
    changed: dict[str, np.ndarray] = {}
    for key, known in levels.items():
        if key not in adata.obs:
            continue
        own = {text_of(level): level for level in known}
        column = obs_of(adata)[key]
        texts = texts_of(column)
        odd = ~column.astype(str).isin([str(level) for level in known]).to_numpy() & np.isin(texts, list(own))
        if odd.any():
            changed[key] = column.to_numpy(dtype=object, copy=True)
            changed[key][odd] = [own[text] for text in texts[odd]]
    if not changed:
        return adata
    parts: dict[str, Any] = {"layers": dict(adata.layers), "obsm": dict(adata.obsm), "uns": adata.uns}
    return AnnData(adata.X, obs=obs_of(adata).assign(**changed), var=cast(pd.DataFrame, adata.var), **parts)
