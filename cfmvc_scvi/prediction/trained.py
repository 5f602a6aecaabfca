"""What was trained on: conditions and cell types with the number of their cells, and perturbations without any."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scvi import settings

from cfmvc_scvi._base import ConditionKey
from cfmvc_scvi._messages import shortened
from cfmvc_scvi.cells.latents import LatentCache


def trained_conditions(cache: LatentCache, train: np.ndarray) -> tuple[list[tuple[ConditionKey, int]], list[int]]:
    """Conditions and cell types that occur together among the training cells, and the number of these cells."""
    labels = cache.cells.context.labels.numpy()[train]
    pairs = sorted(Counter(zip(cache.condition[train].tolist(), labels.tolist(), strict=True)).items())
    return [(cache.conditions[code].key, label) for (code, label), _ in pairs], [n for _, n in pairs]


def confounded_with_batch(cache: LatentCache, rows: np.ndarray) -> list[ConditionKey]:
    """Conditions all of whose cells are in batches without control cells, among these rows."""
    batch, condition = cache.cells.context.batch.numpy()[rows], cache.condition[rows]
    beside_controls = np.isin(batch, batch[condition == 0])
    return [cache.conditions[code].key for code in np.setdiff1d(condition, condition[beside_controls]).tolist()]


def warn_of_untrained(names: Sequence[str], cache: LatentCache, train: np.ndarray) -> None:
    """Name the perturbations that no training cell has; without a vector the model cannot know them."""
    trained = {member for code in np.unique(cache.condition[train]) for member in cache.conditions[code].members}
    untrained = [name for name in names if name not in trained]
    if untrained:
        warnings.warn(
            f"No training cell had {shortened(untrained)}: all of its cells fell among the validation or test cells. "
            "It cannot be predicted. Train on more cells (`train_size`), or leave it out.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
