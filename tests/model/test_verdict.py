"""Verdicts on tables of scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi.model.verdict import judge

COLUMNS = ["pearson_delta", "mse_mean", "energy_distance", "variance_ratio_top"]


def table(**rows: list[float]) -> pd.DataFrame:
    named = {name.replace("_", " "): values for name, values in rows.items()}
    return pd.concat({"raw": pd.DataFrame.from_dict(named, orient="index", columns=COLUMNS)}, axis=1)


@pytest.mark.parametrize(
    ("model", "level", "worse"),
    [
        ([0.9, 0.1, 0.2, 1.1], "ahead", []),
        ([0.9, 0.1, 0.2, 2.0], "ahead", ["variance_ratio_top"]),  # no error, and three of four are won
        ([0.9, 0.1, 0.6, 1.1], "mixed", ["energy_distance"]),
        ([0.9, 0.4, 0.6, 1.1], "behind", ["mse_mean", "energy_distance"]),
        ([0.5, 0.3, 0.5, 1.3], "ahead", []),  # equal throughout: neither side
        ([np.nan, 0.4, 0.2, 1.1], "mixed", ["mse_mean"]),
    ],
)
def test_levels(model, level, worse):
    scores = table(M=model, mean_shift=[0.5, 0.3, 0.5, 1.3], **{"split-half_ceiling": [1.0, 0.0, 0.0, 1.0]})
    verdict = judge(scores, "M")
    assert verdict.level == level and verdict.worse_by == {"mean shift": worse}
    assert list(verdict.wins) == ["mean shift"]
    assert all(name in verdict.text() for name in worse)


def test_intervals_that_are_too_narrow_are_told_of():
    scores = table(M=[0.9, 0.1, 0.2, 1.1], no_change=[0.0, 0.3, 0.5, 1.3])
    assert not judge(scores, "M", 0.9).too_narrow and not judge(scores, "M").too_narrow
    narrow = judge(scores, "M", 0.58)
    assert narrow.too_narrow and "hold 58% of the genes" in narrow.text()
