"""Annotations of predicted cells: one block per request and draw, unique names, columns that stay categorical."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi.prediction.request import Request
from cfmvc_scvi.prediction.result import result_obs
from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.vocabulary import Condition

KEYS = SetupKeys(None, "batch", "cell_type", "drug", ["control"], "+", None, None, None, None, None, None)
A, CONTROL = Condition("A", ("A",), (1.0,)), Condition("control")


def annotated(source, requests, keys=KEYS, draws=1) -> pd.DataFrame:
    n = source.n_cells
    seen = pd.Categorical(["seen"] * n, ["seen", "new context"])
    told = {"support": seen, "support_distance": 0.5, "n_support": np.full(n, 7), "support_batch": seen}
    support = dict.fromkeys(requests, told)
    return result_obs(requests, {None: source}, support, keys, "perturbation", draws)


def test_blocks_follow_the_requests(sources):
    obs = annotated(sources([4, 1]), [Request(A), Request(CONTROL)])
    assert obs.index.tolist() == ["c4_A", "c1_A", "c4_control", "c1_control"]
    assert obs["source_cell"].tolist() == ["c4", "c1"] * 2
    assert obs["perturbation"].tolist() == ["A", "A", "control", "control"]
    assert obs["perturbation"].cat.categories.tolist() == ["A", "control"]
    assert isinstance(obs["support"].dtype, pd.CategoricalDtype) and (obs["support_distance"] == 0.5).all()
    assert obs["n_support"].tolist() == [7] * 4
    assert "_scvi_x" not in obs and obs["cell_type"].tolist() == ["T", "NK"] * 2


def test_the_users_columns_are_left_alone(sources):
    source = sources([4, 1])
    before = source.cells.obs.copy()
    annotated(source, [Request(A, batch="p9")])["cell_type"] = "x"
    pd.testing.assert_frame_equal(source.cells.obs, before)


def test_draws_are_numbered(sources):
    obs = annotated(sources([4, 1]), [Request(A)], draws=3)
    assert obs["draw"].tolist() == [0, 0, 1, 1, 2, 2] and obs.index[4] == "c4_A_2" and obs.index.is_unique


@pytest.mark.parametrize(
    ("doses", "written"), [([1.0, 2.5], [1.0, 2.5]), ([1.0, "1+2"], ["1", "1+2"]), ([None, 3.0], [0.0, 3.0])]
)
def test_doses_are_numbers_unless_one_is_text(sources, doses, written):
    keys = replace(KEYS, dosage_key="dose")
    obs = annotated(sources([4]), [Request(A, dose) for dose in doses], keys)
    assert obs["dose"].tolist() == written and obs.index.is_unique


def test_names_tell_doses_and_batches_apart_where_labels_do_not(sources):
    keys = replace(KEYS, dosage_key="dose")
    obs = annotated(sources([4]), [Request(A, 1.0, batch="p1"), Request(A, 1.0, batch="p2"), Request(A, 2.0)], keys)
    assert obs.index.tolist() == ["c4_A@1.0@p1", "c4_A@1.0@p2", "c4_A@2.0"]
    assert obs["batch"].tolist() == ["p1", "p2", "p0"]


def test_the_same_request_twice_still_has_unique_names(sources):
    obs = annotated(sources([4, 1]), [Request(A), Request(A)])
    assert len(obs) == 4 and obs.index.is_unique


def test_known_types_that_stand_for_unknown_ones_are_named(sources):
    assert "nearest_label" not in annotated(sources([4, 1]), [Request(A)])
    source = sources([4, 1], nearest=np.array([False, True]))
    assert annotated(source, [Request(A)])["nearest_label"].tolist() == ["T", "NK"]


@pytest.mark.parametrize("name", ["draw", "support", "source_cell", "n_support", "support_distance", "support_batch"])
def test_columns_of_the_user_are_kept(sources, name):
    source = sources([4, 1])
    source.cells.obs[name] = "mine"
    obs = annotated(source, [Request(A)], draws=2)
    assert set(obs[f"{name}_of_source"]) == {"mine"} and "mine" not in set(obs[name].astype(str))
    if name == "draw":
        assert set(annotated(source, [Request(A)])["draw"]) == {"mine"}


def test_labels_that_are_numbers_in_the_data_are_numbers(sources):
    one, other = Condition("1", ("1",), (1.0,)), Condition("1+2", ("1", "2"), (1.0, 1.0))
    native, support = {"perturbation": {"1": 1}}, {"support": "seen"}
    for requests, expected in (([Request(one)], [1]), ([Request(one), Request(other)], ["1", "1+2"])):
        obs = result_obs(
            requests, {None: sources([4])}, dict.fromkeys(requests, support), KEYS, "perturbation", 1, native
        )
        assert obs["perturbation"].tolist() == expected
