"""Grounds of an answer in the batch and the sample that it is about: what was trained on there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cfmvc_scvi.cells.latents import LatentCache

#: What was trained on in a batch or sample, from most to least; see :meth:`Places.grounds`.
PLACE_LEVELS = ("seen", "controls only", "no controls", "unknown")


def trained_places(cache: LatentCache, train: np.ndarray) -> dict[str, np.ndarray]:
    """Populations of the training cells with the batches and samples they were measured in.

    Returns
    -------
    ``"pair"`` (row of :func:`~cfmvc_scvi.prediction.trained.trained_conditions`), ``"batch"`` and ``"sample"`` (-1
    without samples): codes of the different combinations, each of shape (n_combinations,).
    """
    context = cache.cells.context
    populations = np.stack([cache.condition[train], context.labels.numpy()[train]])
    pair = np.unique(populations, axis=1, return_inverse=True)[1].ravel()
    sample = cache.cells.sample
    samples = np.full(len(train), -1) if sample is None else sample[train]
    found = np.unique(np.stack([pair, context.batch.numpy()[train], samples]), axis=1).astype(np.int64)
    return dict(zip(("pair", "batch", "sample"), found, strict=True))


@dataclass(frozen=True)
class Places:
    """What was trained on where, for one kind of place: batches or samples.

    Attributes
    ----------
    known
        Perturbations given together, code of the cell type and code of the place of every population in training.
    """

    known: frozenset[tuple[tuple[str, ...], int, int]]

    @classmethod
    def of(cls, populations: Iterable[tuple[tuple[str, ...], int]], pair: np.ndarray, place: np.ndarray) -> Places:
        """From the populations of training and the result of :func:`trained_places`."""
        named = list(populations)
        return cls(frozenset((*named[i], at) for i, at in zip(pair.tolist(), place.tolist(), strict=True)))

    def grounds(self, members: tuple[str, ...], labels: np.ndarray, places: np.ndarray) -> pd.Categorical:
        """What answers about one condition rest on in their places.

        Parameters
        ----------
        members
            Perturbations of the condition.
        labels, places
            Codes of the cell types and of the places, below 0 where they were not in training; shape (n,).

        Returns
        -------
        ``"seen"``: the condition was trained on there in this cell type, beside control cells; ``"controls only"``:
        control cells of this type were, the condition was not; ``"no controls"``: no control cell of this type was;
        ``"unknown"``: nothing was. Shape (n,).
        """
        there = {place for *_, place in self.known}
        pairs, of_cell = np.unique(np.stack([labels, places]), axis=1, return_inverse=True)
        levels = []
        for label, place in pairs.T.tolist():
            if place not in there:
                levels.append("unknown")
            elif ((), label, place) not in self.known:
                levels.append("no controls")
            else:
                levels.append("seen" if (members, label, place) in self.known else "controls only")
        return pd.Categorical(np.array(levels, dtype=object)[of_cell.ravel()], categories=list(PLACE_LEVELS))

    def where(self, members: tuple[str, ...], labels: Iterable[int]) -> list[int]:
        """Codes of the places where a condition was trained on beside control cells, in any of these cell types."""
        wanted = set(labels)
        there = {(label, place) for m, label, place in self.known if m == members and label in wanted}
        return sorted({place for label, place in there if ((), label, place) in self.known})
