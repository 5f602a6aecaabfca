"""What unit the cells of a plot are in, and whether they are of one condition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._messages import shortened
from cfmvc_scvi._types import obs_of

_HIGHEST = float(np.log1p(CP10K))


def described(cells: Any) -> dict[str, Any]:
    """What a prediction says of itself; nothing for other data."""
    found = cells.uns.get("cfmvc", {}) if isinstance(cells, AnnData) else {}
    return found if isinstance(found, dict) else {}


def expression_of(cells: AnnData, name: str, layer: str | None, call: dict[str, Any]) -> tuple[Any, bool]:
    """Matrix of cells, and whether it is log1p of counts per 10,000 already; else it holds counts.

    Parameters
    ----------
    cells
        The cells.
    name
        What they are called in messages.
    layer
        Layer that was asked for.
    call
        What the prediction that is drawn says of itself; its layer is taken where none was asked for.

    Raises
    ------
    KeyError
        For a layer that is not there.
    ValueError
        For latents, and for values that are no counts.
    """
    unit = described(cells).get("return_type")
    if unit == "latent":
        raise ValueError(f"`{name}` holds latents, not expression: predict with `return_type='mean'`.")
    if unit == "lognorm":
        return cells.X, True
    if layer is not None and layer not in cells.layers and unit is None:
        raise KeyError(f"`layer` {layer!r} is not among the layers of `{name}`, {_layers(cells)}.")
    chosen = call.get("layer") if layer is None else layer
    in_layer = chosen is not None and chosen in cells.layers
    matrix: Any = cells.layers[str(chosen)] if in_layer else cells.X
    where = f"{name}.layers[{chosen!r}]" if in_layer else f"{name}.X"
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    expected = unit == "mean" and (in_layer or "log1p" not in cells.uns)
    if not (expected or call.get("allow_noncounts")) and not np.array_equal(values, np.floor(values)):
        raise ValueError(
            f"{where} has fractional values, so these are no counts: they look normalised or log-transformed. "
            f"Pass `layer=`, the layer that holds the counts (there is {_layers(cells)}), or an array of log1p of "
            "counts per 10,000, cells x genes."
        )
    return matrix, False


def check_lognorm(x: np.ndarray, name: str) -> None:
    """Raise for an array that cannot be log1p of counts per 10,000, such as one of counts."""
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if high > 1.5 * _HIGHEST or (high > 1 and low >= 0 and np.array_equal(x, np.rint(x))):
        raise ValueError(
            f"`{name}` is an array from {low:g} to {high:g} that looks like counts, and arrays are log1p of counts "
            f"per 10,000 (0 to {_HIGHEST:.2f}, not whole numbers): pass `metrics.log1p_cp10k(counts)`, or an AnnData "
            "of counts."
        )


def check_one_condition(cells: Any, name: str, call: dict[str, Any]) -> None:
    """Raise for cells of several conditions: their mean is that of none.

    Which columns say the condition is known from the prediction that is drawn.
    """
    column = call.get("perturbation_column")
    if not isinstance(cells, AnnData) or column is None or column not in cells.obs:
        return
    columns = [key for key in (column, call.get("dosage_column")) if key is not None and key in cells.obs]
    delimiter = call.get("combination_delimiter")
    found = obs_of(cells)[columns].astype(str).drop_duplicates()
    found[column] = [_in_order(label, delimiter) for label in found[column]]
    found = found.drop_duplicates()
    if len(found) > 1:
        names = [" at ".join(row) for row in found.itertuples(index=False, name=None)]
        raise ValueError(
            f"`{name}` holds cells of {len(found)} conditions, {shortened(names, 5)}, and the plot is of one: pass one "
            f"of them, e.g. `{name}[{name}.obs[{column!r}] == {names[0].split(' at ')[0]!r}]`."
        )


def _in_order(label: str, delimiter: str | None) -> str:
    """A label with its members in one order."""
    if delimiter is None:
        return label.strip()
    return delimiter.join(sorted(part.strip() for part in label.split(delimiter)))


def _layers(cells: AnnData) -> list[str]:
    return [str(key) for key in cells.layers if key is not None]


def source_rows(predicted: Any, control: Any) -> np.ndarray | None:
    """Row of ``control`` that each prediction was made from, where all can be found."""
    if not (isinstance(predicted, AnnData) and isinstance(control, AnnData)) or "source_cell" not in predicted.obs:
        return None
    rows = control.obs_names.get_indexer(pd.Index(obs_of(predicted)["source_cell"].astype(str)))
    return None if (rows < 0).any() or not control.obs_names.is_unique else rows
