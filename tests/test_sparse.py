"""Rows that are mostly zero: the same numbers as the dense matrix, by row and by column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._sparse import SparseRows


@pytest.fixture
def matrix() -> np.ndarray:
    x = np.random.default_rng(0).poisson(0.4, (9, 5)).astype(np.float32)
    x[4] = 0.0  # a row and a column without an entry
    x[:, 2] = 0.0
    return x


@pytest.fixture
def rows(matrix) -> SparseRows:
    return SparseRows.from_scipy(sparse.csr_matrix(matrix))


def test_dense_gives_the_matrix_back(matrix, rows):
    assert len(rows) == 9
    np.testing.assert_array_equal(rows.dense(), matrix)
    assert rows.density == pytest.approx((matrix > 0).mean())


def test_values_are_not_copied(matrix):
    counts = sparse.csr_matrix(matrix)
    assert np.shares_memory(SparseRows.from_scipy(counts).values.numpy(), counts.data)


def test_sums_by_row_and_by_column_are_the_two_products(matrix, rows):
    torch.manual_seed(0)
    left, right = torch.randn(5, 3), torch.randn(9, 3)
    x = torch.from_numpy(matrix)
    torch.testing.assert_close(rows.product(left), x @ left)
    torch.testing.assert_close(rows.transposed.product(right), x.T @ right)


@pytest.mark.parametrize("size", [1, 4, 9, 50])
def test_parts_one_after_another_are_the_whole(matrix, rows, size):
    parts = list(rows.parts(size))
    assert max(map(len, parts)) <= size
    np.testing.assert_array_equal(torch.cat([part.dense() for part in parts]), matrix)


def test_other_values_at_the_same_places(matrix, rows):
    np.testing.assert_array_equal(rows.with_values(rows.values * 3).dense(), 3 * matrix)
    np.testing.assert_array_equal(rows.dense(), matrix)


def test_no_rows_at_all():
    empty = SparseRows.from_scipy(sparse.csr_matrix((0, 4), dtype=np.float32))
    assert empty.dense().shape == (0, 4) and empty.density == 0
