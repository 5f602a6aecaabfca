"""Cells of a type the model does not know, and the known type that stands for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi.cells.table import CellTable

#: Code of a cell type that was not in training.
UNKNOWN = -1


def with_nearest_labels(cells: CellTable, profiles: np.ndarray, candidates: np.ndarray) -> tuple[CellTable, np.ndarray]:
    """Give every cell of an unknown type the known type it is most like.

    Each cell goes, on its own, to the type whose mean control expression has the highest Pearson correlation with the
    cell's log1p of counts per 10,000, over all genes of the model.

    Parameters
    ----------
    cells
        Cells; those of an unknown type have the code :data:`UNKNOWN`.
    profiles
        Mean log1p CP10k of the control cells of every known type, shape (n_labels, n_genes).
    candidates
        Codes of the types to choose from.

    Returns
    -------
    The cells with known types, and whether each had an unknown one, shape (n_cells,).
    """
    labels = cells.context.labels.numpy()
    unknown = labels == UNKNOWN
    if not unknown.any():
        return cells, unknown
    rows = np.flatnonzero(unknown)
    centered = profiles[candidates] - profiles[candidates].mean(axis=1, keepdims=True)
    directions = (centered / np.linalg.norm(centered, axis=1, keepdims=True)).astype(np.float64)
    chosen = cells.take(rows)
    codes = np.empty(len(rows), dtype=np.int64)
    for chunk in chosen.chunks(2048):
        y = np.log1p(chosen.dense(chunk) / chosen.library[chunk, None] * CP10K).astype(np.float64)
        # the length of a cell's vector does not change which type is nearest
        codes[chunk] = candidates[np.argmax((y - y.mean(axis=1, keepdims=True)) @ directions.T, axis=1)]
    known = cells.context.labels.clone()
    known[rows] = known.new_tensor(codes)
    return replace(cells, context=replace(cells.context, labels=known)), unknown
