"""Cells of an unknown type: the known type that stands for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cfmvc_scvi.cells.nearest import UNKNOWN, with_nearest_labels


def relabelled(cells, name="type9"):
    other = cells.copy()
    other.obs["cell_type"] = other.obs["cell_type"].astype(str).replace("type2", name)
    return other


def test_nearest_is_the_best_correlated_profile(trained, cells):
    table = trained._reader.read(relabelled(cells), allow_unknown=True)
    assert set(table.context.labels.tolist()) == {UNKNOWN, trained.cell_types.index("type1")}
    profiles = trained.calibration_.state.profiles
    filled, unknown = with_nearest_labels(table, profiles, np.array([0, 1]))
    y = np.log1p(cells.X.toarray() / table.library[:, None] * 1e4)
    for i in np.flatnonzero(unknown)[:20]:
        scores = [np.corrcoef(y[i], profile)[0, 1] for profile in profiles]
        assert filled.context.labels[i] == np.argmax(scores)


def unknown(few_cells, n: int):
    """The same cells, the first ``n`` of unknown type."""
    labels = few_cells.context.labels.clone()
    labels[:n] = UNKNOWN
    return replace(few_cells, context=replace(few_cells.context, labels=labels))


def test_known_cells_are_handed_back(few_cells):
    found, was_unknown = with_nearest_labels(few_cells, np.eye(6), np.arange(6))
    assert found is few_cells and not was_unknown.any()


def test_a_cell_is_nearest_to_itself_at_any_level_and_scale(few_cells):
    """Profiles that are the cells' own expression, moved and stretched: a correlation of one."""
    y = np.log1p(few_cells.counts.toarray()[:10] / few_cells.library[:10, None] * 1e4)
    profiles = np.linspace(0.1, 3.0, 10)[:, None] * y + np.linspace(-5.0, 5.0, 10)[:, None]
    found, was_unknown = with_nearest_labels(unknown(few_cells, 10), profiles, np.arange(10))
    assert found.context.labels[:10].tolist() == list(range(10)) and was_unknown.tolist() == [True] * 10 + [False] * 30
    assert found.context.labels[10:].equal(few_cells.context.labels[10:])


def test_only_candidates_are_chosen(few_cells):
    y = np.log1p(few_cells.counts.toarray()[:10] / few_cells.library[:10, None] * 1e4)
    found, _ = with_nearest_labels(unknown(few_cells, 10), y, np.array([4, 7]))
    assert set(found.context.labels[:10].tolist()) == {4, 7} and found.context.labels[4] == 4
