"""Discrimination of the conditions of a screen, and harm rate, against closed forms and counting by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from cfmvc_scvi.metrics import harm_rate, perturbation_discrimination


def screen(n, n_genes=7, seed=0):
    values = np.random.default_rng(seed).normal(size=(n, n_genes))
    return {f"P{i}": x for i, x in enumerate(values)}


@pytest.mark.parametrize(("distance", "metric"), [("l1", "cityblock"), ("cosine", "cosine")])
def test_discrimination_is_the_rank_of_the_true_change(distance, metric):
    truth, pred = screen(9, seed=1), screen(9, seed=2)
    score = perturbation_discrimination(pred, truth, distance=distance)
    far = cdist(np.stack([*pred.values()]), np.stack([*truth.values()]), metric)
    expected = 1 - (np.diag(rankdata(far, axis=1)) - 1) / 8
    np.testing.assert_allclose(score.to_numpy(), expected, atol=1e-12)
    assert list(score.index) == list(pred)


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_closed_forms_of_discrimination(distance):
    truth = screen(6)
    assert (perturbation_discrimination(truth, truth, distance=distance) == 1).all()
    same = dict.fromkeys(truth, np.arange(7.0))
    assert perturbation_discrimination(same, truth, distance=distance).mean() == pytest.approx(0.5)
    opposite = {name: -x for name, x in truth.items()}
    if distance == "cosine":
        assert (perturbation_discrimination(opposite, truth, distance=distance) == 0).all()
        none = dict.fromkeys(truth, np.zeros(7))
        assert (perturbation_discrimination(none, truth, distance=distance) == 0.5).all()
        larger = {name: 3 * x for name, x in truth.items()}
        assert (perturbation_discrimination(larger, truth, distance=distance) == 1).all()


def test_equal_distances_count_one_half():
    truth = {"A": np.array([1.0, 0.0]), "B": np.array([1.0, 0.0]), "C": np.array([0.0, 9.0])}
    assert perturbation_discrimination({"A": truth["A"]}, truth)["A"] == 0.75


def test_genes_are_chosen_and_matched_by_name():
    truth, pred = screen(5), screen(5, seed=3)
    some = perturbation_discrimination(pred, truth, genes=[0, 2, 5])
    cut = [{name: x[[0, 2, 5]] for name, x in table.items()} for table in (pred, truth)]
    pd.testing.assert_series_equal(some, perturbation_discrimination(*cut))
    genes = [f"g{i}" for i in range(7)]
    named = {name: pd.Series(x, genes) for name, x in truth.items()}
    turned = {name: pd.Series(x, genes)[::-1] for name, x in pred.items()}
    pd.testing.assert_series_equal(perturbation_discrimination(turned, named), perturbation_discrimination(pred, truth))


def test_bad_screens_are_refused():
    truth = screen(3)
    with pytest.raises(ValueError, match="none of \\['X'\\]"):
        perturbation_discrimination({"X": truth["P0"]}, truth)
    with pytest.raises(ValueError, match="two or more"):
        perturbation_discrimination({"P0": truth["P0"]}, {"P0": truth["P0"]})
    with pytest.raises(ValueError, match="'l1', 'cosine'"):
        perturbation_discrimination(truth, truth, distance="l2")


def test_harm_rate_counts_the_conditions_that_are_worse():
    own, other = np.array([0.1, 0.3, 0.2, np.nan]), np.array([0.2, 0.2, 0.2, 0.0])
    assert harm_rate(own, other) == pytest.approx(1 / 3)
    assert harm_rate(own, other, better="higher") == pytest.approx(1 / 3)
    assert harm_rate(other, other) == 0
    assert np.isnan(harm_rate([np.nan], [1.0]))
    named = pd.Series(own, list("abcd"))
    assert harm_rate(named, pd.Series(other, list("abcd"))[::-1]) == pytest.approx(1 / 3)


def test_harm_rate_refuses_other_conditions():
    with pytest.raises(ValueError, match="different conditions"):
        harm_rate(pd.Series([1.0], ["a"]), pd.Series([1.0], ["b"]))
    with pytest.raises(ValueError, match="one of each"):
        harm_rate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="'lower', 'higher'"):
        harm_rate([1.0], [1.0], better="more")
