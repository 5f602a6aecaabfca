"""Training curves, heat maps, maps of perturbations, tables."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation

from cfmvc_scvi import metrics, pl


def test_training_curves(trained):
    figure = pl.training_curves(trained)
    vae, flow = figure.axes
    assert [ax.get_title() for ax in (vae, flow)] == ["Stage 1: VAE", "Stage 2: flow"]
    assert "nats" in vae.get_ylabel()
    for ax, stem in ((vae, "elbo"), (flow, "flow_loss")):
        lines = {line.get_label(): line for line in ax.lines}
        for kind in ("train", "validation"):
            values = trained.history[f"{stem}_{kind}"].iloc[:, 0].to_numpy(dtype=float)
            np.testing.assert_allclose(lines[kind].get_ydata(), values)
            assert lines[kind].get_xdata()[0] == 1
    skipped = pl.training_curves(trained.history, skip=2)
    assert skipped.axes[0].lines[0].get_xdata()[0] == 3


def test_training_curves_of_one_stage(trained):
    history = {key: value for key, value in trained.history.items() if "flow" not in key}
    assert len(pl.training_curves(history).axes) == 1
    with pytest.raises(ValueError, match="no training curves"):
        pl.training_curves({"lr": trained.history["elbo_train"]})
    with pytest.raises(ValueError, match="`skip` is 99"):
        pl.training_curves(trained, skip=99)


@pytest.fixture
def big() -> pd.DataFrame:
    """Control and 200 perturbations."""
    values = np.random.default_rng(0).normal(size=(201, 30))
    values[0] = 0.0
    return pd.DataFrame(values, index=["control"] + [f"GENE{i}" for i in range(200)]).rename(columns=str)


def test_effects_draws_the_table(trained):
    effects = {name: trained.get_perturbation_effect(name) for name in ("P1", "P2", "P3")}
    ax = pl.effects(effects, n_genes=8)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    columns = [label.get_text() for label in ax.get_xticklabels()]
    image = ax.images[0].get_array()
    assert image.shape == (3, 8) and sorted(rows) == ["P1", "P2", "P3"]
    for i, name in enumerate(rows):
        np.testing.assert_allclose(image[i], effects[name].loc[columns, "log_fold_change"])
    largest = pd.DataFrame({name: frame["log_fold_change"] for name, frame in effects.items()}).abs().max(axis=1)
    assert set(columns) == set(largest.nlargest(8).index)
    low, high = ax.images[0].get_clim()
    assert low == -high
    dots = [tuple(xy) for c in ax.collections for xy in np.asarray(c.get_offsets())]
    called = [
        (j, i) for i, row in enumerate(rows) for j, gene in enumerate(columns) if effects[row].loc[gene, "significant"]
    ]
    assert sorted(dots) == sorted(called)


@pytest.mark.parametrize("n", [1, 2, 200])
def test_effects_of_few_and_many(big, n):
    ax = pl.effects(big.iloc[1 : n + 1])
    ax.figure.canvas.draw()
    assert ax.images[0].get_array().shape == (n, 30)
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))


def test_effects_refuses(big):
    with pytest.raises(ValueError, match="`table` is empty"):
        pl.effects({})
    with pytest.raises(TypeError, match="`table` is a ndarray"):
        pl.effects(big.to_numpy())
    with pytest.raises(ValueError, match=r"`genes` \['XIST'\] are not in the table"):
        pl.effects(big, ["XIST"])
    with pytest.raises(ValueError, match="missing or not finite"):
        pl.effects(big.where(big != 0))


def test_coefficients(trained):
    table = trained.get_effect_coefficients()
    ax = pl.coefficients(table)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(rows) == ["P1", "P2", "P3"]  # the same in both cell types, so one row each, and no control
    expected = table.xs("type1", level=1).loc[rows].to_numpy()
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    one = pl.coefficients(table, labels="type2")
    np.testing.assert_allclose(one.images[0].get_array(), expected)
    varied = table * np.linspace(1, 2, len(table))[:, None]
    assert len(pl.coefficients(varied).get_yticklabels()) == 6
    with pytest.raises(ValueError, match="Unknown `labels` 'type9'"):
        pl.coefficients(table, labels="type9")
    with pytest.raises(ValueError, match="get_effect_coefficients"):
        pl.coefficients(table.droplevel(1))


def test_map_keeps_lengths_and_marks_control(trained):
    table = trained.get_perturbation_embedding()
    ax = pl.perturbation_map(table)
    points, control = (np.asarray(c.get_offsets()) for c in ax.collections)
    np.testing.assert_allclose(control, [[0.0, 0.0]], atol=1e-12)
    left, strength, _ = np.linalg.svd(table.to_numpy(dtype=float), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), np.abs((left * strength)[1:, :2]), rtol=1e-6)
    share = strength[0] ** 2 / (strength**2).sum()
    assert f"{share:.0%}" in ax.get_xlabel()
    assert sorted(text.get_text() for text in ax.texts) == ["P1", "P2", "P3"]


def test_map_of_many_drops_names_that_would_overlap(big):
    ax = pl.perturbation_map(big, groups={f"GENE{i}": "even" for i in range(0, 200, 2)})
    ax.figure.canvas.draw()
    texts = [text for text in ax.texts if isinstance(text, Annotation)]
    assert 20 < len(texts) < 200
    boxes = [mpl.text.Text.get_window_extent(text) for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["even", "other", "control"]


@pytest.mark.parametrize("n", [1, 2])
def test_map_of_few(big, n):
    ax = pl.perturbation_map(big.iloc[: n + 1])
    assert len(ax.collections[0].get_offsets()) == n and len(ax.texts) == n
    with pytest.raises(ValueError, match="`control` 'DMSO' is not in the table"):
        pl.perturbation_map(big, control="DMSO")
    with pytest.raises(ValueError, match="`groups` names"):
        pl.perturbation_map(big, groups={"XIST": "a"})


def test_support(trained):
    table = trained.support()
    ax = pl.support(table)
    rows, columns = ([label.get_text() for label in labels] for labels in (ax.get_yticklabels(), ax.get_xticklabels()))
    expected = table.groupby(["perturbation", "cell_type"])["n_train"].sum()
    image = ax.images[0].get_array()
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            assert image[i, j] == expected[row, column]
    numbers = sorted(int(text.get_text()) for text in ax.texts)
    assert numbers == sorted(expected)
    holes = table[~((table["perturbation"] == "P1") & (table["cell_type"] == "type1"))]
    assert np.ma.getmaskarray(pl.support(holes).images[0].get_array()).sum() == 1
    with pytest.raises(ValueError, match="result of `model.support"):
        pl.support(table.drop(columns="n_train"))


def test_benchmark(arrays):
    training = {"B": (arrays.control[:30], 1.1 * arrays.real[:25]), "NK": (arrays.control[30:], 0.8 * arrays.real[25:])}
    table = metrics.evaluate(arrays.predicted, arrays.real, arrays.control, training=training, top_n=5)
    ax = pl.benchmark(table, metrics=["pearson_delta", "mse_mean", "variance_ratio_top"])
    heads = [label.get_text() for label in ax.get_xticklabels()]
    assert heads == ["pearson delta ↑", "mse mean ↓", "variance ratio top → 1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == table.index.tolist()
    texts = np.array([text.get_text() for text in ax.texts]).reshape(len(table), 3)
    np.testing.assert_allclose(texts[:, 1].astype(float), table["raw"]["mse_mean"], rtol=0.01)
    colors = -ax.images[0].get_array()
    np.testing.assert_allclose(colors[:, 0], np.clip(table["scaled"]["pearson_delta"], -1, 1))
    with pytest.raises(ValueError, match=r"`metrics` \['auc'\] are not in the table"):
        pl.benchmark(table, metrics=["auc"])
    with pytest.raises(ValueError, match="result of `metrics.evaluate`"):
        pl.benchmark(table["raw"])
