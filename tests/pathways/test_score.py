"""Scores of gene sets are those of the regression that the docstring states."""

from __future__ import annotations

import builtins

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from cfmvc_scvi.metrics import benjamini_hochberg
from cfmvc_scvi.pathways import score_gene_sets

GENES = [f"G{i}" for i in range(60)]
SETS = {"UP": GENES[:8], "DOWN": GENES[8:20], "REST": GENES[20:40], "SMALL": GENES[:2], "OTHER": ["X1", "X2"]}


@pytest.fixture
def effect() -> pd.DataFrame:
    values = np.random.default_rng(0).normal(scale=0.3, size=60)
    values[:8] += 1.0
    values[8:20] -= 1.0
    table = pd.DataFrame({"log_fold_change": values, "sd": np.linspace(0.1, 1.0, 60)}, index=GENES)
    table.attrs["perturbation"] = "P1"
    return table


@pytest.mark.parametrize("values", ["log_fold_change", "z"])
def test_closed_form(effect, values):
    pytest.importorskip("decoupler")
    found = score_gene_sets({"P1": effect, "P2": -effect.assign(sd=-effect["sd"])}, SETS, values=values)
    assert found.columns.tolist() == ["perturbation", "gene_set", "score", "p_value", "n_genes", "leading"]
    assert found["perturbation"].tolist() == ["P1"] * 3 + ["P2"] * 3
    y = effect["log_fold_change"] / (effect["sd"] if values == "z" else 1.0)
    for sign, name in ((1.0, "P1"), (-1.0, "P2")):
        lines = {key: linregress(np.isin(GENES, SETS[key]).astype(float), sign * y) for key in ("UP", "DOWN", "REST")}
        part = found[found["perturbation"] == name].set_index("gene_set")
        assert np.abs(part["score"]).is_monotonic_decreasing
        adjusted = dict(zip(lines, benjamini_hochberg(np.array([line.pvalue for line in lines.values()])), strict=True))
        for key, line in lines.items():
            assert part.loc[key, "score"] == pytest.approx(line.slope / line.stderr, rel=1e-4)
            assert part.loc[key, "p_value"] == pytest.approx(adjusted[key], rel=1e-3)
            assert part.loc[key, "n_genes"] == len(SETS[key])
    leading = found.iloc[0]["leading"].split(", ")
    assert len(leading) == 5 and set(leading) <= set(SETS[found.iloc[0]["gene_set"]])


def test_table_and_single_result(effect):
    pytest.importorskip("decoupler")
    one = score_gene_sets(effect, SETS)
    table = score_gene_sets(effect[["log_fold_change"]].T.set_axis(["P1"]), SETS)
    pd.testing.assert_frame_equal(one, table)


def test_without_decoupler(effect, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "decoupler":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'cfmvc_scvi\[pathways\]'"):
        score_gene_sets(effect, SETS)


def test_refuses(effect):
    with pytest.raises(ValueError, match="No set has 5 genes among the 60 of the effects"):
        score_gene_sets(effect, {"OTHER": ["X1", "X2"]})
    with pytest.raises(ValueError, match="Unknown `values` 't'"):
        score_gene_sets(effect, SETS, values="t")
    with pytest.raises(ValueError, match="`values='z'` needs results of"):
        score_gene_sets(pd.DataFrame([[1.0]]), SETS, values="z")
    with pytest.raises(ValueError, match="`effects` is empty"):
        score_gene_sets({}, SETS)
    with pytest.raises(ValueError, match="missing or not finite"):
        score_gene_sets({"P1": effect, "P2": effect.iloc[:-1]}, SETS)
    with pytest.raises(ValueError, match="must hold results of"):
        score_gene_sets({"P1": effect[["sd"]]}, SETS)
