"""Couplings: optimal pairs, margins, determinism."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cfmvc_scvi.flow import IndependentCoupling, OTCoupling, get_coupling


@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_ot_is_the_optimal_assignment(n):
    rng = np.random.default_rng(n)
    source, target = rng.normal(size=(n, 3)), rng.normal(size=(n, 3)) + 1.0
    pairs = OTCoupling().pair(source, target, rng)
    cost = cdist(source, target, "sqeuclidean")
    rows, columns = linear_sum_assignment(cost)
    assert sorted(pairs) == list(range(n))
    np.testing.assert_array_equal(pairs[columns], rows)


def test_ot_is_monotone_in_one_dimension():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(200, 1)), rng.gamma(2.0, size=(200, 1))
    pairs = OTCoupling().pair(source, target, rng)
    assert (np.diff(source[pairs][np.argsort(target[:, 0]), 0]) > 0).all()


def test_fewer_sources_than_targets_share_the_targets_evenly():
    """Three targets per source: the plan is a hard assignment with equal loads."""
    rng = np.random.default_rng(1)
    source, target = rng.normal(size=(20, 2)), rng.normal(size=(60, 2))
    pairs = OTCoupling().pair(source, target, rng)
    np.testing.assert_array_equal(np.bincount(pairs, minlength=20), np.full(20, 3))
    rows, columns = linear_sum_assignment(cdist(source.repeat(3, axis=0), target, "sqeuclidean"))
    best = cdist(source, target, "sqeuclidean")[rows // 3, columns].sum()
    assert ((source[pairs] - target) ** 2).sum() == pytest.approx(best)


@pytest.mark.parametrize(("n", "m"), [(5, 3), (4, 6), (9, 7)])
def test_sources_are_used_evenly_on_average_for_unequal_sizes(n, m):
    rng = np.random.default_rng(2)
    source, target = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    draws = np.array([OTCoupling().pair(source, target, rng) for _ in range(3000)])
    assert draws.shape == (3000, m)
    share = np.bincount(draws.ravel(), minlength=n) / draws.size
    np.testing.assert_allclose(share, 1 / n, atol=5 * np.sqrt(1 / n / draws.size) + 1e-3)


def test_a_target_draws_from_its_column_of_the_plan():
    """Two sources and one target: half of the mass each, however far they are."""
    rng = np.random.default_rng(3)
    draws = [OTCoupling().pair(np.array([[0.0], [9.0]]), np.array([[0.1]]), rng)[0] for _ in range(2000)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.05)


def test_a_source_without_mass_for_a_target_is_never_drawn():
    rng = np.random.default_rng(4)
    source, target = np.array([[0.0], [10.0]]), np.array([[9.0], [1.0], [11.0], [-1.0]])
    for _ in range(50):
        np.testing.assert_array_equal(OTCoupling().pair(source, target, rng), [1, 0, 1, 0])


@pytest.mark.parametrize("name", ["ot", "independent"])
def test_pairs_depend_on_the_generator_alone(name):
    data = np.random.default_rng(5)
    source, target = data.normal(size=(40, 2)), data.normal(size=(300, 2))
    coupling = get_coupling(name)
    first, again, other = (coupling.pair(source, target, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_independent_is_uniform_and_ignores_position():
    rng = np.random.default_rng(6)
    source, target = np.arange(10.0)[:, None], np.zeros((20_000, 1))
    pairs = IndependentCoupling().pair(source, target, rng)
    counts = np.bincount(pairs, minlength=10)
    chi2 = ((counts - 2000) ** 2 / 2000).sum()
    assert chi2 < 27.9  # 0.999 quantile, 9 degrees of freedom


@pytest.mark.parametrize(("n", "m"), [(100, 100), (50, 130), (300, 65), (3, 100)])
def test_chunks_serve_every_target(n, m):
    rng = np.random.default_rng(7)
    source, target = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    pairs = OTCoupling(chunk_size=16).pair(source, target, rng)
    assert pairs.shape == (m,)
    assert pairs.min() >= 0
    assert pairs.max() < n


def test_chunks_stay_close_to_the_optimum():
    rng = np.random.default_rng(8)
    source, target = rng.normal(size=(400, 2)), rng.normal(size=(400, 2)) + 3.0

    def cost(coupling) -> float:
        pairs = coupling.pair(source, target, np.random.default_rng(0))
        return ((source[pairs] - target) ** 2).sum(axis=1).mean()

    whole, chunked, independent = cost(OTCoupling(400)), cost(OTCoupling(100)), cost(IndependentCoupling())
    # every chunk draws its sources anew, so the sum may fall on either side of the optimum of the whole
    assert abs(chunked - whole) < 0.2 * (independent - whole)


def test_equal_points_do_not_break_the_plan():
    pairs = OTCoupling().pair(np.zeros((5, 2)), np.zeros((8, 2)), np.random.default_rng(0))
    assert set(pairs) <= set(range(5))


@pytest.mark.parametrize("size", [1, 0, -5])
def test_too_small_chunks_are_refused(size):
    with pytest.raises(ValueError, match=f"`chunk_size` is {size}"):
        OTCoupling(chunk_size=size)


def test_unknown_coupling_names_the_choices():
    with pytest.raises(ValueError, match=r"'sinkhorn'.*'independent', 'ot'"):
        get_coupling("sinkhorn")


def test_get_coupling_passes_arguments():
    assert get_coupling("ot", chunk_size=64).chunk_size == 64
