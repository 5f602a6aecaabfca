"""Similarity of perturbations, differences between cell types, interactions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi.model.compare import _drawn_spread, cosines


def test_similarity_is_the_cosine_of_effects(trained):
    square = trained.get_perturbation_similarity()
    names = list(square.index)
    assert names == list(square.columns) and {"P1", "P2", "P3"} <= set(names) and "control" not in names
    effects = {name: trained.get_perturbation_effect(name)["log_fold_change"].to_numpy() for name in names}
    for a in names:
        for b in names:
            expected = effects[a] @ effects[b] / np.linalg.norm(effects[a]) / np.linalg.norm(effects[b])
            assert square.loc[a, b] == pytest.approx(expected, abs=1e-5)
    assert square.attrs["norm"]["P1"] == pytest.approx(np.linalg.norm(effects["P1"]), rel=1e-5)
    one_type = trained.get_perturbation_similarity(["P1", "P2"], "type1")
    parts = [trained.get_perturbation_effect(name, "type1")["log_fold_change"].to_numpy() for name in ("P1", "P2")]
    assert one_type.loc["P1", "P2"] == pytest.approx(cosines(np.stack(parts))[0, 1], abs=1e-5)


def test_pairs(trained):
    square, pairs = trained.get_perturbation_similarity(), trained.get_perturbation_similarity(as_pairs=True)
    assert len(pairs) == len(square) * (len(square) - 1) // 2
    for row in pairs.itertuples():
        assert row.similarity == square.loc[row.first, row.second] and -1 <= row.lower < row.similarity < row.upper <= 1
    narrow = trained.get_perturbation_similarity(as_pairs=True, level=0.5)
    assert (narrow["upper"] - narrow["lower"] < pairs["upper"] - pairs["lower"]).all()
    pd.testing.assert_frame_equal(trained.get_perturbation_similarity(as_pairs=True), pairs)


def test_spread_of_known_errors():
    """Two effects of squared length 1 a gene, with errors of variance 0.01: against the delta method."""
    mean = np.ones((2, 4000), dtype=np.float32)
    mean[1, :2000] = -0.2
    spread = _drawn_spread(mean, 0.1 * np.ones_like(mean), 200, 0)[0, 1]
    cosine, lengths = cosines(mean)[0, 1], np.linalg.norm(mean, axis=1)
    slopes = [(mean[1 - i] / lengths[1 - i] - cosine * mean[i] / lengths[i]) / lengths[i] for i in range(2)]
    expected = 0.1 * np.sqrt(sum((slope**2).sum() for slope in slopes)) / (1 - cosine**2)
    assert spread == pytest.approx(expected, rel=0.2)
    assert np.isnan(cosines(np.array([[1.0, 0.0], [0.0, 0.0]]))[0, 1])


def test_context_differences(trained):
    table = trained.get_context_differences("P1")
    assert table.columns.tolist()[:5] == ["gene", "cell_type", "log_fold_change", "difference", "lower"]
    assert len(table) == 2 * trained.adata.n_vars and table.attrs["labels"] == ["type1", "type2"]
    wide = {kind: part.set_index("gene") for kind, part in table.groupby("cell_type")}
    effects = {kind: trained.get_perturbation_effect("P1", kind) for kind in wide}
    mean = sum(effect["log_fold_change"] for effect in effects.values()) / 2
    for kind, part in wide.items():
        np.testing.assert_allclose(part["log_fold_change"], effects[kind]["log_fold_change"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(part["difference"], effects[kind]["log_fold_change"] - mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(wide["type1"]["difference"], -wide["type2"]["difference"], atol=1e-6)
    np.testing.assert_allclose(wide["type1"]["sd"], wide["type2"]["sd"], rtol=1e-4)
    apart = 0.25 * (effects["type1"]["sd"] ** 2 + effects["type2"]["sd"] ** 2)
    assert (wide["type1"]["sd"] ** 2 < apart * 1.5).mean() > 0.9  # errors in common do not count


def test_interactions(trained):
    pair = next(name for name in trained.adata.obs["perturbation"].unique() if "+" in name)
    table = trained.get_interactions(pair)
    members = pair.split("+")
    assert sorted(table.attrs["members"]) == sorted(members) and table.attrs["support"] == ["seen", "seen"]
    single = sum(trained.get_perturbation_effect(name)["log_fold_change"] for name in members)
    both = trained.get_perturbation_effect(pair)["log_fold_change"]
    np.testing.assert_allclose(table["additive"], single, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table["predicted"], both, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table["interaction"], both - single, rtol=1e-3, atol=1e-5)
    assert (table["lower"] <= table["interaction"]).all() and (table["sd"] > 0).all()
    assert table.attrs["n_observed"] > 0 and np.corrcoef(table["observed"], both)[0, 1] > 0.5
    one = trained.get_interactions(pair, "type1")
    rows = trained._fitted_rows
    cells = trained.adata[rows][(trained.adata.obs["cell_type"].iloc[rows] == "type1").to_numpy()]
    y = np.log1p(cells.X.toarray() / np.asarray(cells.X.sum(axis=1)) * 1e4)
    label = cells.obs["perturbation"].to_numpy()
    np.testing.assert_allclose(
        one["observed"], y[label == pair].mean(0) - y[label == "control"].mean(0), rtol=1e-3, atol=1e-4
    )


def test_a_pair_that_was_not_measured(trained, tmp_path):
    measured = {name for name in trained.adata.obs["perturbation"].unique() if "+" in name}
    new = next(f"{a}+{b}" for a, b in (("P1", "P2"), ("P1", "P3"), ("P2", "P3")) if f"{a}+{b}" not in measured)
    table = trained.get_interactions(new)
    assert table["observed"].isna().all() and table.attrs["n_observed"] == 0
    assert table.attrs["support"] == ["new combination"] * 2
    assert table["sd"].mean() > trained.get_interactions(next(iter(measured)))["sd"].mean()
    trained.save(tmp_path / "model", overwrite=True)
    loaded = CFMVC.load(tmp_path / "model", adata=False, accelerator="cpu")
    again = loaded.get_interactions(next(iter(measured)))
    assert again["observed"].isna().all()


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("get_perturbation_similarity", ("P1",), "1 perturbations were asked for; likeness takes at least two"),
        ("get_perturbation_similarity", (["P1", "P9"],), "Unknown perturbation 'P9'"),
        ("get_context_differences", ("P1", ["type1"]), r"there is \['type1'\]: give at least two"),
        ("get_context_differences", ("control",), "'control' is the control"),
        ("get_interactions", ("P1",), "'P1' is no combination"),
        ("get_interactions", (["P1", "P2"],), "One condition at a time"),
    ],
)
def test_refuses(trained, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(trained, method)(*arguments)
