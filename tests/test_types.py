"""Containers: rows of every field stay together, and what is missing stays missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi._types import CellSplit, CountBatch, FlowBatch, FlowContext, Part, at_least_float32, drawn, same_names


@pytest.fixture
def context() -> FlowContext:
    """Every field holds the number of its row, in another decade."""
    row = torch.arange(6)
    return FlowContext(
        row, row + 10, torch.stack([row + 20, row + 30], dim=1), row.float().unsqueeze(1), row.double().unsqueeze(1)
    )


@pytest.mark.parametrize("rows", [slice(1, 4), torch.tensor([5, 0, 5]), np.array([2]), torch.arange(6) > 3])
def test_rows_of_all_fields_stay_together(context, rows):
    part = context[rows]
    assert len(part) == len(torch.arange(6)[rows])
    assert torch.equal(part.labels - 10, part.batch) and torch.equal(
        part.further - part.batch[:, None], part.further * 0 + torch.tensor([20, 30])
    )
    assert torch.equal(part.continuous.ravel(), part.batch.float()) and part.spatial.dtype == torch.float64


def test_what_is_missing_stays_missing():
    bare = FlowContext(torch.zeros(3), torch.ones(3))
    for other in (bare[:2], bare.to("meta"), bare.with_batch(1)):
        assert other.further is None and other.continuous is None and other.spatial is None
    assert bare.to("meta").labels.device.type == "meta"


def test_codes_have_the_type_and_strata_have_not(context):
    assert [int(code[0]) for code in context.codes] == [0, 10, 20, 30]
    assert [int(code[0]) for code in context.strata_codes] == [0, 20, 30]


def test_another_batch_changes_the_batch_alone(context):
    other = context.with_batch(4)
    assert other.batch.tolist() == [4] * 6 and other.batch.dtype == context.batch.dtype
    assert other.labels is context.labels and context.batch.tolist() == list(range(6))


def test_batches_of_the_flow_move_as_a_whole(context):
    batch = FlowBatch(torch.zeros(6, 2), torch.ones(6, 2), context, torch.zeros(6, 3))
    moved = batch.to("meta")
    assert len(moved) == 6 and moved.condition is None
    assert {x.device.type for x in (moved.z0, moved.z1, moved.p, moved.context.batch)} == {"meta"}


def test_a_split_is_handed_out_in_copies():
    split = CellSplit(np.arange(3), np.arange(3, 5), np.arange(0))
    split.as_list()[0][:] = 9
    assert [part.tolist() for part in split.as_list()] == [[0, 1, 2], [3, 4], []]


def test_counts_that_are_normalised_and_cut_are_the_same_either_way(context):
    x = np.random.default_rng(0).poisson(1.0, (6, 4)).astype(np.float32)
    library = np.maximum(x.sum(axis=1), 1.0)
    batch = CountBatch(SparseRows.from_scipy(sparse.csr_matrix(x)), torch.from_numpy(library), context)
    expected = np.log1p(x / library[:, None] * 1e4)
    np.testing.assert_allclose(batch.lognorm.dense(), expected, rtol=1e-5)
    parts = list(batch.split(4))
    assert [len(part) for part in parts] == [4, 2]
    np.testing.assert_array_equal(torch.cat([part.counts.dense() for part in parts]), x)
    np.testing.assert_allclose(torch.cat([part.lognorm.dense() for part in parts]), expected, rtol=1e-5)


def test_precision_is_raised_and_never_lowered():
    dtypes = [at_least_float32(torch.ones(1, dtype=d)).dtype for d in (torch.bfloat16, torch.float32, torch.float64)]
    assert dtypes == [torch.float32, torch.float32, torch.float64]


@pytest.mark.parametrize("n", [3, 7, 8, 128])
def test_parts_make_up_the_batch(n):
    parts = [Part(index, 3, n) for index in range(3)]
    sizes = [part.rows.stop - part.rows.start for part in parts]
    assert [i for part in parts for i in range(n)[part.rows]] == list(range(n)) and max(sizes) - min(sizes) <= 1
    values = np.random.default_rng(0).normal(size=n)
    assert np.mean([values[part.rows].mean() * part.weight for part in parts]) == pytest.approx(values.mean())


def test_processes_together_draw_what_one_draws():
    def draw(n: int) -> torch.Tensor:
        return torch.rand(n, generator=torch.Generator().manual_seed(0))

    parts = [Part(index, 2, 5) for index in range(2)]
    pieces = [drawn(draw, part.rows.stop - part.rows.start, part) for part in parts]
    assert torch.equal(torch.cat(pieces), drawn(draw, 5, None))


def test_names_are_compared_whatever_type_they_have():
    names = pd.Index(["a", "b"], dtype=object)
    assert same_names(names, names.astype("string")) and same_names(names[:0], names[:0])
    assert not same_names(names, names[::-1]) and not same_names(names, names[:1])


def test_a_part_goes_along_to_a_device(context):
    batch = FlowBatch(torch.zeros(6, 2), torch.zeros(6, 2), context, torch.zeros(6, 1), part=Part(0, 2, 12))
    assert batch.to("meta").part == batch.part
