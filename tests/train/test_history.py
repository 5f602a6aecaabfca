"""Histories of several fits as one."""

from __future__ import annotations

import pandas as pd
import pytest

from cfmvc_scvi.train.history import merge_histories


def history(**columns: list[float]) -> dict[str, pd.DataFrame]:
    return {name: pd.DataFrame({name: values}).rename_axis("epoch") for name, values in columns.items()}


def test_metrics_of_both_fits_are_kept_and_shared_ones_go_on():
    earlier = history(elbo=[3.0, 2.0], kl=[1.0, 1.0])
    merged = merge_histories(earlier, history(elbo=[1.5, 1.0, 0.5], flow=[7.0]))
    assert list(merged) == ["elbo", "kl", "flow"]
    assert merged["elbo"]["elbo"].tolist() == [3.0, 2.0, 1.5, 1.0, 0.5]
    assert merged["elbo"].index.tolist() == [0, 1, 2, 3, 4] and merged["elbo"].index.name == "epoch"
    assert merged["flow"].index.tolist() == [0]
    assert earlier["elbo"].index.tolist() == [0, 1]  # the earlier one is left as it was


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_adds_nothing(nothing):
    one = history(elbo=[1.0])
    assert merge_histories(nothing, nothing) == {}
    for merged in (merge_histories(one, nothing), merge_histories(nothing, one)):
        pd.testing.assert_frame_equal(merged["elbo"], one["elbo"])
