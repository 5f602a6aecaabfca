"""Members as places in a table: the same sums, products and groups as the vectors laid out."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi.registration.members import Members, numbered, pair_overlap


def units(*conditions: tuple[int, ...], n_features: int = 6, dose: float = 1.0) -> Members:
    """Unit vectors of these features, given together."""
    most = max(map(len, conditions))
    index = np.array([[*condition, *[-1] * (most - len(condition))] for condition in conditions], dtype=np.int32)
    return Members(index, np.where(index < 0, 0, dose).astype(np.float32), None, n_features)


def as_table(members: Members) -> Members:
    """The same conditions with their vectors in a table."""
    return Members(members.index, members.weight, np.eye(members.n_features), members.n_features)


CONDITIONS = units((0,), (1, 2), (2,), (0,), (), (4, 5), (3,), dose=0.5)


@pytest.mark.parametrize("members", [CONDITIONS, as_table(CONDITIONS)], ids=["units", "table"])
def test_says_what_the_vectors_say(members):
    dense = CONDITIONS.dense().astype(float)
    np.testing.assert_array_equal(members.dense(), dense)
    sums = members.sums()
    np.testing.assert_array_equal(sums if isinstance(sums, np.ndarray) else sums.toarray(), dense.sum(axis=1))
    np.testing.assert_allclose(members.length(), np.linalg.norm(dense.sum(axis=1), axis=1))
    assert members.combined().tolist() == [False, True, False, False, False, True, False]
    assert len(set(members.kinds())) == 6 and members.kinds()[0] == members.kinds()[3]
    vectors = np.random.default_rng(0).normal(size=(3, 6))
    np.testing.assert_allclose(members.products(vectors), dense @ vectors.T)
    rows = np.array([[0, 1, 2], [3, 5, 4]])
    expected = np.stack([np.einsum("iaf,jbf->ijab", dense[block], dense[block]) for block in rows])
    overlap, pairs = members.block_overlaps(rows)
    np.testing.assert_allclose(overlap, expected.sum(axis=(-2, -1)))
    np.testing.assert_allclose(pairs, pair_overlap(expected), atol=1e-12)


@pytest.mark.parametrize("members", [CONDITIONS, as_table(CONDITIONS)], ids=["units", "table"])
def test_components_share_features_directly_or_by_way_of_others(members):
    found = members.components()
    assert found[0] == found[3] and found[1] == found[2]
    assert len(set(found)) == 5  # control shares nothing


def test_components_of_a_table_are_those_of_its_features():
    table = np.array([[1.0, 0, 0, 0], [2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])
    found = Members(np.arange(5)[:, None], np.ones((5, 1), dtype=np.float32), table, 4).components()
    assert found[0] == found[1] == found[2] and len(set(found)) == 3
    full = Members(np.arange(5)[:, None], np.ones((5, 1), dtype=np.float32), np.ones((5, 3)), 3)
    assert len(set(full.components())) == 1


def test_vectors_given_as_they_are():
    dense = np.random.default_rng(1).normal(size=(4, 2, 3))
    dense[2, 1] = 0
    members = Members.of_dense(dense)
    np.testing.assert_array_equal(members.dense(), dense)
    assert members.combined().tolist() == [True, True, False, True]
    np.testing.assert_array_equal(members.take(np.array([2, 0])).dense(), dense[[2, 0]])


def test_compact_keeps_the_vectors_in_use():
    table = np.random.default_rng(2).normal(size=(100, 3))
    members = Members(np.array([[7, -1], [3, 7]]), np.array([[1, 0], [2, 1]], dtype=np.float32), table, 3)
    small = members.compact()
    assert small.table is not None and len(small.table) == 2
    np.testing.assert_array_equal(small.dense(), members.dense())
    assert CONDITIONS.compact() is CONDITIONS
    for saved in (small.to_saved(), members.dense()):
        np.testing.assert_array_equal(Members.from_saved(saved).dense(), members.dense())


def test_rows_are_numbered_by_their_values():
    assert numbered(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])).tolist() == [1, 0, 1]


def test_many_unit_vectors_take_memory_by_condition_and_not_by_their_square():
    members = units(*[(k,) for k in range(20_000)], n_features=20_000)
    arrays = [members.index, members.weight, members.components(), members.kinds(), members.length()]
    assert sum(array.nbytes for array in arrays) < 1_000_000 and members.sums().nnz == 20_000
    assert len(set(members.components())) == 20_000


def test_distance_is_the_nearest_in_vectors():
    rng = np.random.default_rng(0)
    table, vector = rng.normal(size=(6, 4)), rng.normal(size=4)
    dense = Members(np.arange(6)[:, None], np.ones((6, 1), dtype=np.float32), table, 4)
    expected = min(np.linalg.norm(table - vector, axis=1).min(), np.linalg.norm(vector))
    assert dense.distance(vector) == pytest.approx(expected) and dense.distance(table[2]) == 0.0
    units = Members(np.array([[0, 2], [1, -1]]), np.array([[1, 1], [0.3, 0]], dtype=np.float32), None, 4)
    laid_out = np.array([[1.0, 0, 1, 0], [0, 0.3, 0, 0], [0, 0, 0, 0]])
    for vector in ([1, 0, 0.9, 0], [0, 1, 0, 1], [0.1, 0.1, 0, 0]):
        assert units.distance(vector) == pytest.approx(np.linalg.norm(laid_out - vector, axis=1).min())
    assert Members(np.zeros((0, 1), dtype=int), np.zeros((0, 1)), None, 4).distance(np.ones(4)) == 2.0


# ---- pairs within conditions ----------------------------------------------------------------------------------------


def products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("iaf,jbf->ijab", first, second)


def test_pair_overlap_is_the_inner_product_of_the_pair_tensors():
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(4, 3, 5)), rng.normal(size=(2, 2, 5))

    def tensor(members):
        """Sum over k < j of the symmetric part of the outer product."""
        pairs = [(k, j) for k in range(len(members)) for j in range(k + 1, len(members))]
        return sum((np.outer(members[k], members[j]) + np.outer(members[j], members[k])) / 2 for k, j in pairs)

    expected = [[(tensor(a) * tensor(b)).sum() for b in second] for a in first]
    np.testing.assert_allclose(pair_overlap(products(first, second)), expected, rtol=1e-9)


def test_single_perturbations_and_control_have_no_pairs():
    one = np.zeros((1, 3, 4))
    one[0, 1] = [1.0, 2.0, 0.0, -1.0]
    two = np.random.default_rng(7).normal(size=(5, 2, 4))
    np.testing.assert_allclose(pair_overlap(products(one, two)), 0.0, atol=1e-12)
    np.testing.assert_array_equal(pair_overlap(products(np.zeros((1, 2, 4)), two)), np.zeros((1, 5)))


def test_joined_conditions_are_both():
    first = Members(np.array([[0, 1], [1, -1]]), np.array([[1, 0.5], [1, 0]], dtype=np.float32), None, 2)
    second = Members(np.array([[2]]), np.ones((1, 1), dtype=np.float32), None, 3)
    both = first.joined(second)
    assert both.n_features == 3
    np.testing.assert_array_equal(both.sums().toarray(), [[1, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    table = np.array([[1.0, 2.0], [3.0, 4.0]])
    dense = Members(np.array([[1]]), np.ones((1, 1), dtype=np.float32), table, 2)
    np.testing.assert_array_equal(dense.joined(dense).sums(), [[3, 4], [3, 4]])
