"""Several sources side by side: their lengths, their weights, and what a source lacks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import data

RNG = np.random.default_rng(0)
NAMES = [f"P{i}" for i in range(30)]
SMALL = pd.DataFrame(RNG.normal(size=(30, 3)), index=NAMES, columns=list("abc"))
LARGE = pd.DataFrame(50 + 9 * RNG.normal(size=(30, 200)), index=NAMES)


def test_every_source_counts_by_its_weight():
    whole = data.combine_vectors({"small": SMALL, "large": LARGE}, weights={"small": 1, "large": 3})
    assert whole.shape == (30, 204) and whole.columns[0] == "small:a" and whole.columns[-1] == "constant"
    assert whole.to_numpy().dtype == np.float32 and whole.attrs["weights"] == {"small": 0.25, "large": 0.75}
    parts = whole.iloc[:, :3], whole.iloc[:, 3:-1]
    np.testing.assert_allclose([(part**2).sum(axis=1).mean() for part in parts], [0.25, 0.75], rtol=1e-4)
    np.testing.assert_allclose(whole.iloc[:, :-1].mean(), 0.0, atol=1e-6)
    assert (whole["constant"] == 1.0).all()
    alike = data.combine_vectors({"small": SMALL, "large": LARGE}, constant=0)
    assert alike.shape == (30, 203) and set(alike.attrs["weights"].values()) == {0.5}


def test_weights_from_left_out_effects():
    """Effects follow the small source: the large one gets no weight, however long its vectors are."""
    effects = SMALL @ RNG.normal(size=(3, 40)) + 0.3 * RNG.normal(size=(30, 40))
    whole = data.combine_vectors({"large": LARGE, "small": SMALL}, effects=effects.iloc[:25])
    assert whole.attrs["weights"] == {"large": 0.0, "small": 1.0} and len(whole) == 30
    both = effects + LARGE.to_numpy() @ RNG.normal(size=(200, 40)) / 30
    weights = data.combine_vectors({"large": LARGE, "small": SMALL}, effects=both).attrs["weights"]
    assert 0 < weights["small"] < 1


def test_what_a_source_lacks():
    less = SMALL.iloc[:-2]
    with pytest.warns(UserWarning, match=r"2 of 30 perturbations are not in every source .*: small has no \['P28'"):
        dropped = data.combine_vectors({"small": less, "large": LARGE})
    assert list(dropped.index) == NAMES[:-2] and dropped.attrs["missing"] == {"small": ["P28", "P29"], "large": []}
    filled = data.combine_vectors({"small": less, "large": LARGE}, missing="mean")
    assert len(filled) == 30 and (filled.loc["P29", ["small:a", "small:b", "small:c"]] == 0).all()
    np.testing.assert_allclose(filled.loc[NAMES[:-2], "small:a"], dropped["small:a"], rtol=1e-5)
    with pytest.raises(ValueError, match="2 of 30 perturbations are not in every source"):
        data.combine_vectors({"small": less, "large": LARGE}, missing="error")
    with pytest.raises(ValueError, match="30 of 30|57 of 58|not in every source"):
        data.combine_vectors({"small": SMALL, "other": LARGE.add_prefix("x", axis=0)})


def test_a_model_takes_them(simulated, build):
    names = ["P1", "P2", "P3", "P4"]
    table = pd.DataFrame(np.eye(4), index=names)
    simulated.uns["vectors"] = data.combine_vectors({"one": table, "two": table[[0, 1]]})
    model = build(simulated, {"combination_delimiter": "+", "perturbation_embedding_key": "vectors"})
    assert model.vocabulary.n_features == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": {}}, "`sources` is empty"),
        ({"sources": {"a": [1]}}, r"`sources\['a'\]` is no DataFrame"),
        ({"sources": {"a": pd.concat([SMALL, SMALL])}}, "'a' has repeated names"),
        ({"sources": {"a": SMALL * np.nan}}, "'a' has values that are not finite"),
        ({"sources": {"a": SMALL * 0 + 1}}, "All vectors of 'a' are alike"),
        ({"weights": {"a": 1.0}}, r"`weights` .* must be a number from 0 on for each of \['a', 'b'\]"),
        ({"weights": {"a": 1.0, "b": -1.0}}, "`weights`"),
        ({"weights": {"a": 1.0, "b": 1.0}, "effects": SMALL}, "not both"),
        ({"missing": "zero"}, "Unknown `missing` 'zero'"),
        ({"constant": np.nan}, "`constant` is nan"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.combine_vectors(**({"sources": {"a": SMALL, "b": LARGE}} | arguments))
