"""Blocks of populations: whole components, by size, and samples of them."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.calibration.blocks import blocks_by_size, gene_slices, pieces, sample_components


def test_blocks_are_the_components():
    component = np.array([3, 0, 3, 1, 0, 2])
    one, two = blocks_by_size(component)
    assert one.tolist() == [[3], [5]] and two.tolist() == [[1, 4], [0, 2]]


def test_samples_hold_whole_components():
    component = np.repeat(np.arange(500), 4)
    rows = sample_components(component, 300)
    assert len(rows) == 300 and (np.bincount(component[rows])[np.unique(component[rows])] == 4).all()
    np.testing.assert_array_equal(rows, sample_components(component, 300))
    assert (rows != sample_components(component, 300, seed=1)).any()


def test_samples_of_one_large_component_are_some_of_its_populations():
    rows = sample_components(np.zeros(1000, dtype=int), 300)
    assert len(rows) == 300 and (np.diff(rows) > 0).all()
    mixed = sample_components(np.r_[np.zeros(1000, dtype=int), np.arange(1, 1001)], 300)
    assert 100 < (mixed < 1000).sum() < 200


def test_few_populations_are_taken_in_their_order():
    assert sample_components(np.array([2, 0, 1]), 3).tolist() == [0, 1, 2]


def test_pieces_cover_every_block_and_gene_once():
    blocks = np.arange(70).reshape(35, 2)
    seen = np.zeros((70, 11), dtype=int)
    for some, slices in pieces(blocks, 11, 100):
        for genes in slices:
            assert some.size * 2 * (genes.stop - genes.start) <= 100
            seen[some.ravel(), genes] += 1
    assert (seen == 1).all()
    assert [len(list(pieces(np.arange(9)[None], 3, 1)))] == [1]
    assert gene_slices(3, 10, 1) == [slice(0, 1), slice(1, 2), slice(2, 3)]
