"""Small containers that several layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._sparse import SparseRows


@dataclass(frozen=True)
class FlowContext:
    """What the flow knows of a cell beside its latent; all fields have one row per cell.

    Attributes
    ----------
    batch, labels
        Codes of batch and cell type, each (n,), integer.
    further
        Codes of further categorical covariates (n, n_further), integer, or ``None``.
    continuous
        Continuous covariates (n, n_continuous), or ``None``.
    spatial
        Coordinates (n, n_spatial) in the data's units, or ``None``.
    """

    batch: Tensor
    labels: Tensor
    further: Tensor | None = None
    continuous: Tensor | None = None
    spatial: Tensor | None = None

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, rows: Tensor | slice | np.ndarray) -> FlowContext:
        return self._map(lambda x: x[rows])

    def to(self, device: torch.device | str) -> FlowContext:
        """The same on another device."""
        return self._map(lambda x: x.to(device))

    @property
    def strata_codes(self) -> tuple[Tensor, ...]:
        """Codes of batch and further covariates: what is known of a cell's origin, its type left out."""
        return (self.batch, *(() if self.further is None else self.further.unbind(dim=1)))

    @property
    def codes(self) -> tuple[Tensor, ...]:
        """Codes of all categorical covariates: batch, cell type, further ones."""
        batch, *further = self.strata_codes
        return (batch, self.labels, *further)

    def with_batch(self, code: int) -> FlowContext:
        """The same cells in another batch."""
        return replace(self, batch=torch.full_like(self.batch, code))

    def _map(self, function: Callable[[Tensor], Tensor]) -> FlowContext:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class Part:
    """The cells of a batch that one of several processes has: neighbours, as many as the others have or one more.

    Attributes
    ----------
    index, count
        Number of the process, from 0, and number of processes.
    n
        Cells of the whole batch, at least ``count``.
    """

    index: int
    count: int
    n: int

    @property
    def rows(self) -> slice:
        """Rows of the whole batch."""
        return slice(self.index * self.n // self.count, (self.index + 1) * self.n // self.count)

    @property
    def weight(self) -> float:
        """Factor of the mean over these cells that makes the mean over the processes the one over the whole batch."""
        return self.count * (self.rows.stop - self.rows.start) / self.n


def drawn(draw: Callable[[int], Tensor], n: int, part: Part | None) -> Tensor:
    """Random numbers for ``n`` cells; for those of one process, its rows of what is drawn for the whole batch.

    All processes draw from the same state, so together they have the numbers that one process would have.

    Parameters
    ----------
    draw
        Draws for a number of cells, one row per cell.
    n
        Cells at hand.
    part
        Which cells of the batch these are; ``None`` for all.
    """
    return draw(n) if part is None else draw(part.n)[part.rows]


@dataclass(frozen=True)
class FlowBatch:
    """Paired points of stage 2: sources, targets, and what is known of the targets.

    ``condition`` holds one code, shape (n,), for all targets of one perturbation vector ``p``; ``part`` says which
    cells of a batch these are that several processes share.
    """

    z0: Tensor
    z1: Tensor
    context: FlowContext
    p: Tensor
    condition: Tensor | None = None
    part: Part | None = None

    def __len__(self) -> int:
        return len(self.z0)

    def to(self, device: torch.device | str) -> FlowBatch:
        """The same on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "part"}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class CellSplit:
    """Rows of training, validation and test cells; both stages use the same."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def as_list(self) -> list[np.ndarray]:
        """Fresh copies in the order scvi-tools' ``external_indexing`` takes (it writes into them)."""
        return [self.train.copy(), self.validation.copy(), self.test.copy()]


@dataclass(frozen=True)
class CountBatch:
    """Counts of some cells, the entries that are not zero alone, and what stage 1 knows of the cells beside them.

    Attributes
    ----------
    counts
        Counts, shape (n, n_genes), float32.
    library
        Library size per cell, shape (n,), float32, at least 1.
    context
        Codes and continuous covariates, one row per cell.
    has_size_factor
        Whether the library sizes are size factors; else they are the sums of the counts.
    whole
        Whether all counts are whole numbers.
    normalized
        :attr:`lognorm`, where it is known.
    part
        Which cells of a batch these are that several processes share; ``None`` for all.
    """

    counts: SparseRows
    library: Tensor
    context: FlowContext
    has_size_factor: bool = False
    whole: bool = True
    normalized: SparseRows | None = None
    part: Part | None = None

    def __len__(self) -> int:
        return len(self.library)

    @cached_property
    def lognorm(self) -> SparseRows:
        """log1p of counts per 10,000, shape (n, n_genes)."""
        if self.normalized is not None:
            return self.normalized
        scale = (CP10K / self.library).index_select(0, self.counts.rows)
        return self.counts.with_values(torch.mul(scale, self.counts.values).log1p_())

    def to(self, device: torch.device | str) -> CountBatch:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("counts", "library", "context")}
        return replace(self, **moved, normalized=None)

    def split(self, size: int) -> Iterator[CountBatch]:
        """The same cells in batches of this size; what does not fill one comes last."""
        values, end = self.lognorm.values, 0
        for start, counts in zip(range(0, len(self), size), self.counts.parts(size), strict=True):
            cells, first, end = slice(start, start + size), end, end + len(counts.values)
            yield replace(
                self,
                counts=counts,
                library=self.library[cells],
                context=self.context[cells],
                normalized=counts.with_values(values[first:end]),
            )


def at_least_float32(x: Tensor) -> Tensor:
    """The same in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def same_names(one: pd.Index, other: pd.Index) -> bool:
    """Whether the names are the same in the same order, as whatever type of text they are kept."""
    return len(one) == len(other) and bool((one.to_numpy(dtype=object) == other.to_numpy(dtype=object)).all())


def obs_of(adata: AnnData) -> pd.DataFrame:
    """Annotations of the cells. Of data that are read lazily they are of another class, which is not registered."""
    return cast(pd.DataFrame, adata.obs)
