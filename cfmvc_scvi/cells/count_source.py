"""Where the counts of stage 1 are: what the loader asks of them; in memory, and on the device of the networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse

from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CountBatch, FlowContext
from cfmvc_scvi.cells.table import CellTable


class CountSource(ABC):
    """Gives the counts of any cells, with what stage 1 knows of them beside the counts.

    A source elsewhere, such as on disk, writes :meth:`batches`. The loader chooses the rows: their order, what a pass
    leaves out, and the share of each process are the same for every source.
    """

    @abstractmethod
    def batches(self, rows: np.ndarray, size: int) -> Iterator[CountBatch]:
        """Batches of the cells at some rows, in that order.

        Parameters
        ----------
        rows
            Cells, integer, shape (n,); a cell may occur more than once.
        size
            Cells per batch; the last batch may have fewer.
        """

    def bytes_on_device(self) -> int | None:
        """Memory that all counts would take on a device; ``None`` where they cannot be kept there."""
        return None

    def to_device(self, device: torch.device) -> CountSource:
        """The same counts kept on a device, for a source whose :meth:`bytes_on_device` is not ``None``."""
        raise ValueError(f"{type(self).__name__} cannot keep its counts on {device}: pass `data_on_device=False`.")


class MemoryCounts(CountSource):
    """Counts of all cells in memory, as the user's own CSR matrix where it is one; no copy of it is made."""

    def __init__(self, cells: CellTable) -> None:
        counts = cells.counts if sparse.issparse(cells.counts) else sparse.csr_matrix(cells.counts)
        self.cells = replace(cells, counts=counts, context=stage1_context(cells.context))

    def batches(self, rows: np.ndarray, size: int) -> Iterator[CountBatch]:
        """See :meth:`CountSource.batches`."""
        return self.cells.batch(rows).split(size)

    def bytes_on_device(self) -> int:
        """See :meth:`CountSource.bytes_on_device`."""
        return 8 * self.cells.counts.nnz + 64 * len(self.cells)

    def to_device(self, device: torch.device) -> DeviceCounts:
        """See :meth:`CountSource.to_device`."""
        return DeviceCounts(self, device)


class DeviceCounts(CountSource):
    """The same on a device: batches are gathered there, and nothing but the order goes there in an epoch."""

    def __init__(self, host: MemoryCounts, device: torch.device) -> None:
        cells, counts = host.cells, host.cells.counts
        if not counts.has_canonical_format:
            counts = counts.copy()
            counts.sum_duplicates()
        self.device = device
        self.starts = counts.indptr.astype(np.int64)
        self.values = torch.from_numpy(counts.data.astype(np.float32, copy=False)).to(device)
        self.genes = torch.from_numpy(counts.indices.astype(np.int32, copy=False)).to(device)
        self.context = cells.context.to(device)
        self.library = torch.from_numpy(cells.library).to(device)
        self.n_genes = counts.shape[1]
        self.has_size_factor = cells.has_size_factor
        self.whole = cells.whole

    def batches(self, rows: np.ndarray, size: int) -> Iterator[CountBatch]:
        """See :meth:`CountSource.batches`."""
        return self._batch(rows).split(size)

    def _batch(self, rows: np.ndarray) -> CountBatch:
        lengths = self.starts[rows + 1] - self.starts[rows]
        starts = np.r_[0, np.cumsum(lengths)]
        at, shift, lengths = (
            torch.from_numpy(x).to(self.device) for x in (rows, self.starts[rows] - starts[:-1], lengths)
        )
        cell = torch.repeat_interleave(lengths, output_size=int(starts[-1]))
        entry = torch.arange(len(cell), device=self.device) + shift.index_select(0, cell)
        genes = self.genes.index_select(0, entry)
        return CountBatch(
            counts=SparseRows(self.values.index_select(0, entry), genes, starts, self.n_genes),
            library=self.library.index_select(0, at),
            context=self.context[at],
            has_size_factor=self.has_size_factor,
            whole=self.whole,
        )


def stage1_context(context: FlowContext) -> FlowContext:
    """Codes and continuous covariates without the coordinates, which stage 1 does not read."""
    continuous = None if context.continuous is None else context.continuous.float()
    return replace(context, continuous=continuous, spatial=None)
