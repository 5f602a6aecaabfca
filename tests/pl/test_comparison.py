"""Heat map of likeness, and pairs against their sum."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import pl


def test_similarity_brings_likes_together():
    """Two groups that take turns in the table are blocks in the picture."""
    sign = np.tile([1.0, -1.0], 5)
    values = 0.8 * np.outer(sign, sign)
    np.fill_diagonal(values, 1.0)
    names = [f"P{i}" for i in range(10)]
    ax = pl.similarity(pd.DataFrame(values, names, names), title="x")
    image = np.asarray(ax.images[0].get_array())
    assert (np.diff(np.sign(image[0])) != 0).sum() == 1 and ax.images[0].get_clim() == (-1, 1)
    shown = [label.get_text() for label in ax.get_yticklabels()]
    order = [names.index(name) for name in shown]
    np.testing.assert_allclose(image, values[np.ix_(order, order)])
    assert pl.similarity(pd.DataFrame([[1.0]], ["a"], ["a"])).images


def test_similarity_of_a_model(trained):
    ax = pl.similarity(trained.get_perturbation_similarity())
    assert ax.images[0].get_array().shape == (4, 4)
    with pytest.raises(ValueError, match="square result"):
        pl.similarity(trained.get_perturbation_similarity(as_pairs=True))
    with pytest.raises(ValueError, match=r"no cosines of \['a', 'b'\]"):
        pl.similarity(pd.DataFrame(np.nan, ["a", "b"], ["a", "b"]))


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    single = rng.normal(size=50)
    more = np.where(np.arange(50) < 3, 2.0, 0.0)
    columns = {"observed": single + more + 0.1, "additive": single, "predicted": single + more, "interaction": more}
    frame = pd.DataFrame(columns | {"significant": more > 0}, index=[f"G{i}" for i in range(50)])
    frame.attrs = {"combination": "A+B", "members": ["A", "B"]}
    return frame


def test_interaction(table):
    ax = pl.interaction(table)
    offsets = {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections}
    assert len(offsets["additive or unsure"]) == 47
    np.testing.assert_allclose(offsets["more than the sum"], table.loc[["G0", "G1", "G2"], ["additive", "predicted"]])
    np.testing.assert_allclose(offsets["measured"], table.loc[["G0", "G1", "G2"], ["additive", "observed"]])
    assert {text.get_text() for text in ax.texts} <= {"G0", "G1", "G2"} and ax.texts
    assert ax.get_title() == "A+B" and "A and B" in ax.get_xlabel()
    table["observed"] = np.nan
    assert "measured" not in {c.get_label() for c in pl.interaction(table).collections}
    with pytest.raises(ValueError, match="result of `get_interactions`"):
        pl.interaction(table.drop(columns="observed"))
