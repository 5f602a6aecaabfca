"""Cells of an unknown type: the known type that stands for each."""

from __future__ import annotations

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
