"""Couplings: which source point is paired with which target point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

import numpy as np
import ot
import torch
from jaxtyping import Float, Int
from numpy.random import Generator
from scipy.optimize import linear_sum_assignment

from cfmvc_scvi._messages import unknown_choice

#: Points per optimal transport problem; its time per point grows about in proportion.
CHUNK_SIZE: Final = 256


class Coupling(ABC):
    """Pairs of indices into a source and a target sample."""

    @abstractmethod
    def pair(
        self, source: Float[np.ndarray, "n d"], target: Float[np.ndarray, "m d"], rng: Generator
    ) -> Int[np.ndarray, " m"]:
        """For every target row, the index of the source row it is paired with.

        Parameters
        ----------
        source
            Source points, shape (n, d).
        target
            Target points, shape (m, d).
        rng
            Random generator; the same state gives the same pairs.

        Returns
        -------
        Indices into ``source``, shape (m,).
        """


class IndependentCoupling(Coupling):
    """Every target point is paired with a source point drawn at random, with replacement."""

    def pair(
        self, source: Float[np.ndarray, "n d"], target: Float[np.ndarray, "m d"], rng: Generator
    ) -> Int[np.ndarray, " m"]:
        """See :meth:`Coupling.pair`."""
        return rng.integers(len(source), size=len(target))


class OTCoupling(Coupling):
    r"""Optimal transport for the squared Euclidean cost, exact within chunks of fixed size.

    The targets are cut into random chunks of at most ``chunk_size`` points, each with a fresh draw of sources;
    inside a chunk the plan :math:`\pi` minimises :math:`\sum_{ij} \pi_{ij} \lVert x_i - y_j \rVert^2` under uniform
    margins. As many sources as targets make it an assignment, for which the algorithm of Jonker and Volgenant
    (scipy) is about three times faster than the network simplex of POT. That one serves unequal sizes: few
    targets, which face up to ``chunk_size`` sources, or fewer sources than targets. Each target then draws its source
    from its column of the plan, so no point is dropped.
    """

    def __init__(self, chunk_size: int = CHUNK_SIZE) -> None:
        if chunk_size < 2:
            raise ValueError(f"`chunk_size` is {chunk_size}; an optimal transport chunk needs at least 2 points.")
        self.chunk_size = chunk_size

    def pair(
        self, source: Float[np.ndarray, "n d"], target: Float[np.ndarray, "m d"], rng: Generator
    ) -> Int[np.ndarray, " m"]:
        """See :meth:`Coupling.pair`."""
        pairs = np.empty(len(target), dtype=np.int64)
        n_chunks = max(1, -(-len(target) // self.chunk_size))
        for rows in np.array_split(rng.permutation(len(target)), n_chunks):
            candidates = self._source_chunk(len(source), len(rows), rng)
            pairs[rows] = candidates[_match(source[candidates], target[rows], rng)]
        return pairs

    def _source_chunk(self, n_source: int, n_target: int, rng: Generator) -> np.ndarray:
        wanted = n_target if 4 * n_target > self.chunk_size else self.chunk_size
        return rng.choice(n_source, size=min(n_source, wanted), replace=False)


def _match(source: Float[np.ndarray, "n d"], target: Float[np.ndarray, "m d"], rng: Generator) -> Int[np.ndarray, " m"]:
    """One source row per target row, by the exact transport plan of the two samples.

    Of the squared distances the products are enough: the squared lengths add the same to every plan. They are torch's,
    whose threads wait for work: those of another library's products would fight with them over the processor.
    """
    cost = (torch.from_numpy(source) @ torch.from_numpy(target).T).neg_().numpy()
    if len(source) == len(target):
        # the least cost of every source, then of every target taken off changes no assignment, and shortens the search
        cost -= cost.min(axis=1, keepdims=True)
        rows, columns = linear_sum_assignment(cost - cost.min(axis=0))
        return rows[np.argsort(columns)]
    cost -= cost.min()
    plan = ot.emd(ot.unif(len(source)), ot.unif(len(target)), cost, numItermax=1_000_000)
    cumulative = np.cumsum(plan, axis=0)
    draw = rng.random(len(target)) * cumulative[-1]
    return np.minimum((cumulative <= draw).sum(axis=0), len(source) - 1)


COUPLINGS: Final[dict[str, type[Coupling]]] = {"ot": OTCoupling, "independent": IndependentCoupling}


def get_coupling(name: str, **kwargs) -> Coupling:
    """Coupling of that name: ``"ot"`` or ``"independent"``."""
    if name not in COUPLINGS:
        raise ValueError(unknown_choice("coupling", name, sorted(COUPLINGS)))
    return COUPLINGS[name](**kwargs)
