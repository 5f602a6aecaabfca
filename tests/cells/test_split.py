"""The split that both stages share."""

from types import SimpleNamespace

import numpy as np
import pytest

from cfmvc_scvi.cells.split import shard_of, split_cells

SIZES = [(None, None), (0.8, None), (0.7, 0.2), (0.5, 0.0), (1.0, None), (0.9, 0.1), (0.35, 0.65)]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 25, 101, 1000])
@pytest.mark.parametrize(("train", "validation"), SIZES)
def test_parts_are_sorted_disjoint_and_complete(n, train, validation):
    split = split_cells(n, train, validation, 0)
    parts = split.as_list()
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert len(split.train) >= 1


@pytest.mark.parametrize(("train", "validation"), SIZES)
def test_fractions_are_kept(train, validation):
    split = split_cells(1000, train, validation, 0)
    expected_train = 0.9 if train is None else train
    expected_validation = 1 - expected_train if validation is None else validation
    assert len(split.train) == pytest.approx(1000 * expected_train, abs=1)
    assert len(split.validation) == pytest.approx(1000 * expected_validation, abs=1)


@pytest.mark.parametrize("train", [None, 0.5, 0.75, 0.9, 0.95, 1.0])
def test_validation_takes_all_the_rest(train):
    """Whatever the rounding, at no number of cells is one left over for the test set."""
    assert all(len(split_cells(n, train, None, 0).test) == 0 for n in range(1, 200))


def test_seed_fixes_the_split():
    first, again, other = (split_cells(200, 0.8, None, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train, again.train)
    np.testing.assert_array_equal(first.validation, again.validation)
    assert not np.array_equal(first.train, other.train)


def test_global_random_state_is_left_alone():
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    split_cells(50, None, None, 3)
    assert np.random.rand() == expected


def test_copies_are_fresh():
    split = split_cells(50, None, None, 0)
    split.as_list()[0][:] = -1
    assert split.train.min() >= 0


@pytest.mark.parametrize(
    ("train", "validation"), [(0.0, None), (-0.1, 0.5), (1.1, None), (0.8, 0.3), (0.8, -0.1), (float("nan"), None)]
)
def test_impossible_sizes_are_refused(train, validation):
    with pytest.raises(ValueError, match="`train_size`.*sum of at most 1"):
        split_cells(100, train, validation, 0)


def test_few_cells_are_not_shared():
    trainer = SimpleNamespace(global_rank=2, world_size=3)
    assert shard_of(None, 100) == (0, 1) and shard_of(trainer, 3) == (2, 3) and shard_of(trainer, 2) == (0, 1)
