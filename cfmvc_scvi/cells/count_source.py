"""Where the counts of stage 1 are: what the loader asks of them; in memory, on the device of the networks, on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse

from cfmvc_scvi._rows import CHUNK_ROWS, DiskRows
from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CountBatch, FlowContext
from cfmvc_scvi.cells.table import CellTable

#: Blocks of cells on disk that are mixed with each other before batches are cut from them.
_MIXED_BLOCKS = 16


class CountSource(ABC):
    """Gives the counts of any cells, with what stage 1 knows of them beside the counts.

    The loader chooses the rows: what a pass leaves out and the share of each process are the same for every source.

    Attributes
    ----------
    n_gathered
        Cells whose counts are gathered at a time, and then cut into batches; smaller batches would each pay for a call.
    """

    n_gathered: int = 1024

    def order(self, rows: np.ndarray, rng: np.random.Generator, n_together: int) -> np.ndarray:
        """The rows of a pass in a random order, each once; ``n_together`` in a row will be gathered together."""
        return rng.permutation(rows)

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


class DiskCounts(CountSource):
    """Counts on disk, read block by block.

    A pass goes through blocks of about a thousand neighbouring cells in random order; the cells of sixteen blocks are
    mixed before batches are cut from them. In memory is no more than these.
    """

    n_gathered = _MIXED_BLOCKS * CHUNK_ROWS

    def __init__(self, cells: CellTable) -> None:
        self.cells = replace(cells, context=stage1_context(cells.context))

    def order(self, rows: np.ndarray, rng: np.random.Generator, n_together: int) -> np.ndarray:
        """See :meth:`CountSource.order`; :func:`block_order`."""
        return block_order(rows, rng, n_together)

    def batches(self, rows: np.ndarray, size: int) -> Iterator[CountBatch]:
        """See :meth:`CountSource.batches`."""
        return self.cells.batch(rows).split(size)


def count_source(cells: CellTable) -> CountSource:
    """The source for cells in memory or on disk."""
    return DiskCounts(cells) if isinstance(cells.counts, DiskRows) else MemoryCounts(cells)


def block_order(
    rows: np.ndarray, rng: np.random.Generator, n_mixed: int = _MIXED_BLOCKS * CHUNK_ROWS, block: int = CHUNK_ROWS
) -> np.ndarray:
    """Rows in a random order in which neighbours on disk stay close to each other, so that few reads fetch many.

    Parameters
    ----------
    rows
        Rows, rising, shape (n,).
    rng
        Draws the order. Where the first block begins is drawn as well, so blocks differ between passes.
    n_mixed
        Rows of consecutive blocks that are permuted among each other.
    block
        Rows of a block.
    """
    rolled = np.roll(rows, -int(rng.integers(max(1, len(rows)))))
    blocks = np.split(rolled, range(block, len(rows), block))
    # the last block may be shorter: it comes last, so that mixtures begin at a block
    chosen = [*rng.permutation(len(blocks) - 1), len(blocks) - 1]
    order = np.concatenate([blocks[i] for i in chosen])
    return np.concatenate([rng.permutation(part) for part in np.split(order, range(n_mixed, len(rows), n_mixed))])


def stage1_context(context: FlowContext) -> FlowContext:
    """Codes and continuous covariates without the coordinates, which stage 1 does not read."""
    continuous = None if context.continuous is None else context.continuous.float()
    return replace(context, continuous=continuous, spatial=None)
