"""Reference cells: which control cells stand for their type, and how the networks see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.calibration.reference import ReferenceCells, StoredReference
from cfmvc_scvi.flow import get_solver


def test_few_cells_are_all_kept_and_many_are_drawn(world, latent_cache):
    few = StoredReference.sample(world.cache, np.array([3, 8, 9]), np.random.default_rng(0))
    np.testing.assert_array_equal(few.z, world.cache.posterior.mean[[3, 8, 9]])
    np.testing.assert_array_equal(few.counts.toarray(), world.cache.cells.counts[[3, 8, 9]].toarray())
    np.testing.assert_array_equal(few.library, world.cache.cells.library[[3, 8, 9]])
    first, same, other = (StoredReference.sample(world.cache, world.rows, np.random.default_rng(s)) for s in (0, 0, 1))
    assert len(first.z) == 128 and len(np.unique(first.z, axis=0)) == 128
    np.testing.assert_array_equal(first.z, same.z)
    assert not np.array_equal(first.z, other.z)


def test_saved_and_read_again(world):
    stored = StoredReference.sample(world.cache, np.arange(5), np.random.default_rng(0))
    saved = stored.to_saved()
    assert set(saved["context"]) == {"batch", "labels"}  # what the cells lack is not saved
    again = StoredReference.from_saved(saved)
    np.testing.assert_array_equal(again.z, stored.z)
    assert torch.equal(again.context.labels, stored.context.labels) and again.context.further is None


@pytest.fixture
def reference(world):
    stored = StoredReference.sample(world.cache, np.arange(30), np.random.default_rng(0))
    return ReferenceCells.of(stored, world.module, get_solver("midpoint", 4))


def test_nothing_done_moves_nothing_and_something_moves_every_cell(world, reference):
    solver = get_solver("midpoint", 4)
    still = reference.moved(np.zeros(2, dtype=np.float32), world.module, solver)
    assert torch.equal(still, reference.z)
    assert torch.equal(reference.decoded(still, world.module), reference.log_share)
    moved = reference.moved(np.array([1.0, 0.0], dtype=np.float32), world.module, solver)
    assert (moved != reference.z).any(dim=1).all()
    assert not torch.equal(reference.decoded(moved, world.module), reference.log_share)


def test_shares_are_shares_and_levels_are_those_of_counts(world, reference):
    torch.testing.assert_close(reference.log_share.exp().sum(dim=1), torch.ones(30))
    np.testing.assert_allclose(np.expm1(reference.lognorm).sum(axis=1), 1e4, rtol=1e-4)
    assert (reference.level > 0).all() and (reference.level < np.log1p(1e4)).all()
