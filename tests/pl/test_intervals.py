"""Volcano and forest: every number drawn is one of the table."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from cfmvc_scvi import pl


def effects(seed: int = 0, n: int = 60) -> pd.DataFrame:
    """A table as ``get_perturbation_effect`` returns it; the first ten genes are sure."""
    rng = np.random.default_rng(seed)
    mean = np.r_[rng.normal(0, 1.5, 10), rng.normal(0, 0.05, n - 10)]
    table = pd.DataFrame(
        {
            "log_fold_change": mean,
            "lower": mean - 0.2,
            "upper": mean + 0.3,
            "lfsr": np.r_[np.zeros(10), np.full(n - 10, 0.3)],
        },
        index=pd.Index([f"GENE{i}$" for i in range(n)], name="gene"),
    )
    table["significant"] = table["lfsr"] < 0.05
    table.attrs = {"perturbation": "P1", "labels": ["T"], "fdr": 0.05, "level": 0.95}
    return table


def texts_overlap(ax) -> bool:
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_volcano_draws_the_table():
    table = effects()
    ax = pl.volcano(table)
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    assert sorted(drawn[:, 0]) == pytest.approx(sorted(table["log_fold_change"])) and drawn[:, 1].max() == 12
    assert ax.get_title() == "P1 in T" and len(ax.texts) and not texts_overlap(ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0] == "other genes (50)" and len(labels) == 3


def test_forest_draws_intervals_and_samples():
    tables = {"B": effects(0), "T": effects(1)}
    samples = pd.DataFrame(np.zeros((4, 60)), index=list("abcd"), columns=tables["B"].index)
    ax = pl.forest(tables, ["GENE3$", "GENE30$"], samples={"T": samples})
    bars = [c for c in ax.collections if hasattr(c, "get_segments")]
    ends = np.concatenate([np.sort([s[0][0], s[1][0]]) for s in bars[0].get_segments()])
    expected = tables["B"].loc[["GENE3$", "GENE30$"], ["lower", "upper"]].to_numpy().ravel()
    assert ends == pytest.approx(expected)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["B", "T", "a sample", "sign not sure"]
    assert [text.get_text() for text in ax.get_yticklabels()] == [r"GENE3\$", r"GENE30\$"]
    points = [c for c in ax.collections if len(np.asarray(c.get_offsets())) == 8]
    assert len(points) == 1 and not np.asarray(points[0].get_offsets())[:, 0].any()


def test_forest_takes_the_surest_genes_of_one_table():
    table = effects()
    ax = pl.forest(table, n_genes=5)
    chosen = [text.get_text().replace("\\", "") for text in ax.get_yticklabels()]
    assert set(chosen) == set(table.index[:10][np.argsort(-table["log_fold_change"].abs()[:10])[:5]])
    assert list(table.loc[chosen, "log_fold_change"]) == sorted(table.loc[chosen, "log_fold_change"], reverse=True)
    assert "95% interval" in ax.get_legend().get_texts()[0].get_text()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pl.volcano(pd.DataFrame({"a": [1]})), r"the result of `get_perturbation_effect`.* with \['a'\]"),
        (lambda: pl.volcano(effects(), n_names=-1), "`n_names` is -1"),
        (lambda: pl.forest({}), "`table` is empty"),
        (lambda: pl.forest(effects(), ["GENE1"]), r"are not in the table.*GENE1\$"),
        (lambda: pl.forest(effects(), n_genes=0), "`n_genes` is 0"),
        (lambda: pl.forest({"B": effects()}, samples={"T": None}), r"names of `table`, \['B'\]"),
        (lambda: pl.forest(effects(), samples=pd.DataFrame({"x": [1.0]})), "`samples` has no genes"),
    ],
)
def test_refuses(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("plot", [pl.volcano, pl.forest])
def test_dark_styles(plot):
    with plt.style.context("dark_background"):
        figure = plot(effects(), return_fig=True)
        figure.draw_without_rendering()
        assert mpl.colors.to_rgb(figure.axes[0].yaxis.label.get_color()) == (1, 1, 1)


def test_the_model_s_own_tables(trained):
    table = trained.get_perturbation_effect("P1")
    assert pl.volcano(table).get_title() == "P1 in type1, type2"
    pl.forest(table, samples=trained.get_sample_effects("P1"))
