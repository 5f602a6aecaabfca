"""The words that errors share: lists cut short, close matches, choices, missing genes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi._messages import close_matches, missing_genes, shortened, unknown_choice


@pytest.mark.parametrize(
    ("names", "most", "text"),
    [
        ([], 3, "[]"),
        (["a"], 3, "['a']"),
        (["a", "b", "c"], 3, "['a', 'b', 'c']"),
        (["a", "b", "c", "d"], 3, "['a', 'b', 'c', ...]"),
        (np.array(["a", "b"]), 3, "['a', 'b']"),
        (pd.Index(["a", 1]), 3, "['a', 1]"),
        (np.array([0.5, 2.0]), 3, "[0.5, 2.0]"),
        ((name for name in "abcd"), 2, "['a', 'b', ...]"),
        ({"a": 1, "b": 2}, 1, "['a', ...]"),
        ([None, "a"], 3, "['None', 'a']"),
    ],
)
def test_shortened(names, most, text):
    assert shortened(names, most) == text


def test_close_matches_is_a_sentence_or_nothing():
    assert close_matches("contrl", ["control", "IFNB"]) == " Close matches: ['control']."
    assert close_matches("x", ["control", "IFNB"]) == ""
    assert close_matches("x", []) == ""


def test_close_matches_ignores_case_and_keeps_the_best_first():
    assert close_matches("isg15", ["ISG20", "ISG15", "Isg15"]) == " Close matches: ['ISG15', 'Isg15', 'ISG20']."


def test_close_matches_of_several_words_names_each_once():
    assert close_matches(["P11", "P12"], ["P1", "P2"], n=1) == " Close matches: ['P1', 'P2']."
    assert close_matches(np.array(["P11", "P12"]), pd.Index(["P1"])) == " Close matches: ['P1']."


def test_close_matches_is_short_and_looks_up_a_few_words_only():
    known = [f"gene{i}" for i in range(200)]
    assert close_matches([f"gene{i}x" for i in range(100)], known).count("'gene") == 5
    assert close_matches([*("#" * 20), "gene1"], known) == ""


def test_close_matches_of_something_that_is_no_name():
    assert close_matches(None, ["none"]) == " Close matches: ['none']."
    assert close_matches(3, ["3", "a"]) == " Close matches: ['3']."


def test_unknown_choice():
    message = unknown_choice("labels", "type9", [f"type{i}" for i in range(5)], most=2)
    assert message.startswith("Unknown `labels` 'type9': choose one of ['type0', 'type1', ...]. Close matches: ['type")
    assert unknown_choice("gamma", 3, ["dim"]) == "Unknown `gamma` 3: choose one of ['dim']."


def test_missing_genes():
    message = missing_genes([*"abcdef"], ["x"], wanted="the model's 60 genes")
    beginning = "6 of the model's 60 genes are not in this AnnData: ['a', 'b', 'c', 'd', 'e', ...]. Genes are matched"
    assert message.startswith(beginning)
    assert "`var_names`" in message and "Close" not in message
    assert "not in `real`: ['isg15']. Close matches: ['ISG15']. Genes" in missing_genes(
        ["isg15"], ["ISG15"], wanted="the 2 genes", where="`real`"
    )
