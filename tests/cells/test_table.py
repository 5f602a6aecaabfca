"""Tables of cells: rows stay together, and chunks are whole units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from cfmvc_scvi.cells.table import ROW_UNIT, canonical


def test_rows_of_all_columns_stay_together(few_cells):
    taken = few_cells.take(np.array([7, 3, 7]))
    assert taken.obs["number"].tolist() == taken.context.continuous.ravel().tolist() == [7, 3, 7]
    np.testing.assert_array_equal(taken.counts.toarray(), few_cells.counts.toarray()[[7, 3, 7]])
    np.testing.assert_array_equal(taken.library, few_cells.library[[7, 3, 7]])


@pytest.mark.parametrize(("n", "whole"), [(1, 32), (31, 32), (32, 32), (33, 64)])
def test_padding_fills_units_with_the_first_cell(few_cells, n, whole):
    padded = few_cells.take(np.arange(n)).padded()
    assert len(padded) == whole and whole % ROW_UNIT == 0
    assert padded.obs["number"].tolist() == [*range(n), *[0] * (whole - n)]


@pytest.mark.parametrize("size", [1, 32, 40, 63, 64, 1000])
def test_chunks_are_whole_units_and_cover_every_row_once(few_cells, size):
    table = few_cells.take(np.tile(np.arange(40), 3))
    chunks = list(table.chunks(size))
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(120))
    assert all((chunk.stop - chunk.start) % ROW_UNIT == 0 for chunk in chunks[:-1])
    assert max(chunk.stop - chunk.start for chunk in chunks) <= max(size, ROW_UNIT)


@pytest.mark.parametrize("rows", [slice(5, 17), np.array([39, 0, 4])])
def test_a_batch_holds_the_counts_of_its_rows(few_cells, rows):
    batch = few_cells.batch(rows)
    np.testing.assert_array_equal(batch.counts.dense(), few_cells.counts.toarray()[rows])
    np.testing.assert_array_equal(batch.library, few_cells.library[rows])
    assert torch.equal(batch.context.labels, few_cells.context.labels[rows])


def test_doubled_entries_are_added_and_the_users_matrix_is_left_alone():
    twice = sparse.csr_matrix((np.array([1.0, 2.0, 4.0]), np.array([2, 0, 2]), np.array([0, 3])), (1, 3))
    assert not twice.has_canonical_format
    found = canonical(twice)
    np.testing.assert_array_equal(found.data, np.array([2.0, 5.0], dtype=np.float32))
    assert twice.nnz == 3 and found.dtype == np.float32
    assert canonical(found) is found or np.shares_memory(canonical(found).data, found.data)
