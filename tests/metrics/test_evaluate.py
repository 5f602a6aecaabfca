import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from cfmvc_scvi import metrics
from cfmvc_scvi.metrics import evaluate

N_GENES = 30


def draw(n, shift, seed):
    rng = np.random.default_rng(seed)
    effect = np.random.default_rng(99).normal(0, 1, N_GENES)
    return metrics.log1p_cp10k(rng.poisson(5 * np.exp(shift * effect), (n, N_GENES)))


@pytest.fixture
def task():
    return {
        "truth": draw(60, 0.6, 1),
        "control": draw(50, 0, 2),
        "training": {
            "B": (draw(30, 0, 3), draw(40, 0.3, 4)),
            "NK": (draw(25, 0, 5), draw(30, 0.5, 6)),
            "tiny": (draw(3, 0, 7), draw(3, 5, 8)),
        },
        "top_n": 8,
        "pcs": 4,
    }


def test_raw_values_are_those_of_the_functions(task):
    pred = draw(55, 0.55, 9)
    truth, control = task["truth"], task["control"]
    raw = evaluate(pred, **task)["raw"].loc["prediction"]
    top = metrics.top_de_genes(truth, control, 8)
    big = {k: task["training"][k] for k in ("B", "NK")}
    pcs = metrics.fit_pcs([control] + [x for pair in task["training"].values() for x in pair], 4).transform
    populations = [pcs(control)] + [pcs(x) for pair in big.values() for x in pair]
    counts = metrics.de_counts(pred, truth, control)
    expected = {
        "pearson_delta": metrics.pearson_delta(pred, truth, control),
        "pearson_delta_top": metrics.pearson_delta(pred, truth, control, genes=top),
        "pearson_delta_centroid": metrics.pearson_delta_centroid(pred, truth, metrics.mean_perturbed(big)),
        "cosine_delta": metrics.cosine_delta(pred, truth, control),
        "mse_mean": metrics.mse_mean(pred, truth),
        "mse_mean_top": metrics.mse_mean(pred, truth, genes=top),
        "mse_weighted": metrics.mse_weighted(pred, truth, control),
        "r2_mean": metrics.r2_mean(pred, truth),
        "energy_distance": metrics.energy_distance(pred, truth),
        "energy_distance_top": metrics.energy_distance(pred, truth, genes=top),
        "energy_distance_pcs": metrics.energy_distance(pcs(pred), pcs(truth)),
        "relative_mmd": metrics.relative_mmd(pcs(pred), pcs(truth), populations),
        "de_overlap": metrics.de_overlap(pred, truth, control, n=8),
        "auprc_de": metrics.auprc_de(pred, truth, control),
        "de_count_ratio": (counts.predicted + 1) / (counts.real + 1),
        "direction_accuracy": metrics.direction_accuracy(pred, truth, control),
        "variance_ratio_top": metrics.variance_ratio(pred, truth, genes=top),
    }
    assert set(raw.index) == set(expected)
    for name, value in expected.items():
        assert raw[name] == pytest.approx(value, rel=1e-8), name


def test_rows_and_scale(task):
    table = evaluate({"good": draw(55, 0.55, 9), "bad": draw(55, -0.6, 10)}, **task)
    rows = ["good", "bad", "no change", "mean perturbed", "mean shift", "split-half ceiling"]
    assert list(table.index) == rows
    raw, scaled = table["raw"], table["scaled"]
    assert all(dtype.kind == "f" for dtype in raw.dtypes)
    ceiling, baseline = raw.loc["split-half ceiling"], raw.loc["mean shift"]
    for metric in ("pearson_delta", "mse_mean", "energy_distance_top"):
        expected = (raw[metric] - baseline[metric]) / (ceiling[metric] - baseline[metric])
        pd.testing.assert_series_equal(scaled[metric], expected)
        assert scaled.loc["good", metric] > 0 > scaled.loc["bad", metric]
    log_ratio = np.abs(np.log(raw["variance_ratio_top"]))
    room = log_ratio["split-half ceiling"] - log_ratio["mean shift"]
    if room < 0:
        expected = (log_ratio - log_ratio["mean shift"]) / room
        pd.testing.assert_series_equal(scaled["variance_ratio_top"], expected)
    else:
        assert scaled["variance_ratio_top"].isna().all()
    assert raw.loc["no change", "pearson_delta"] == 0
    assert raw.loc["no change", "direction_accuracy"] == 0.5
    assert raw.loc["mean perturbed", "pearson_delta_centroid"] == 0
    assert raw.loc["no change", "relative_mmd"] >= 1
    assert table.attrs["baseline"] == "mean shift"


def test_the_control_of_the_context_counts_as_a_measured_population(task):
    task["training"] = {"far": (draw(30, 3, 3), draw(30, -3, 4))}
    table = evaluate(draw(55, 0.55, 9), **task, metrics=["relative_mmd"])
    assert table["raw"].loc["no change", "relative_mmd"] == pytest.approx(1, rel=1e-9)


def test_scaled_is_nan_where_the_ceiling_leaves_no_room(task):
    task["training"] = {"same": (task["control"], task["truth"])}
    table = evaluate(task["truth"], **task, metrics=["mse_mean", "energy_distance", "pearson_delta"])
    assert table["raw"].loc["mean shift", "mse_mean"] < table["raw"].loc["split-half ceiling", "mse_mean"]
    assert table["scaled"]["mse_mean"].isna().all()


def test_without_training(task):
    del task["training"]
    table = evaluate(draw(55, 0.55, 9), **task)
    assert list(table.index) == ["prediction", "no change", "split-half ceiling"]
    assert table.attrs["baseline"] == "no change"
    assert not {"relative_mmd", "pearson_delta_centroid", "energy_distance_pcs"} & set(table["raw"])
    fitted = PCA(3).fit(task["control"])
    table = evaluate(draw(55, 0.55, 9), **(task | {"pcs": fitted}))
    expected = metrics.energy_distance(fitted.transform(draw(55, 0.55, 9)), fitted.transform(task["truth"]))
    assert table["raw"].loc["prediction", "energy_distance_pcs"] == pytest.approx(expected)


def test_mean_vector_has_no_population_metrics(task):
    pred = draw(55, 0.55, 9)
    cells, mean = (evaluate(x, **task)["raw"].loc["prediction"] for x in (pred, pred.mean(0)))
    populations = {c for c in mean.index if "distance" in c} | {
        "relative_mmd",
        "auprc_de",
        "de_count_ratio",
        "de_overlap",
        "variance_ratio_top",
    }
    assert set(mean.index[mean.isna()]) == populations
    pd.testing.assert_series_equal(mean.dropna(), cells.drop(list(populations)))


def test_permutations_of_cells_and_genes_and_sparsity(task):
    pred = draw(55, 0.55, 9)
    wanted = evaluate(pred, **task)["raw"].drop("split-half ceiling")
    rng = np.random.default_rng(11)
    genes = rng.permutation(N_GENES)
    shuffle = lambda x: sp.csr_matrix(x[rng.permutation(len(x))][:, genes])  # noqa: E731
    other = task | {
        "truth": shuffle(task["truth"]),
        "control": shuffle(task["control"]),
        "training": {k: (shuffle(c), shuffle(p)) for k, (c, p) in task["training"].items()},
    }
    table = evaluate(shuffle(pred), **other)["raw"].drop("split-half ceiling")
    pd.testing.assert_frame_equal(table, wanted, rtol=1e-6, atol=1e-9)


def test_ceiling_is_the_mean_of_splits_and_follows_the_seed(task):
    chosen = {"metrics": ["mse_mean"]}
    one = evaluate(task["truth"], **task, **chosen, n_splits=1, seed=5)["raw"].loc["split-half ceiling"]
    first, second = metrics.split_half(task["truth"], 5)
    assert one["mse_mean"] == pytest.approx(metrics.mse_mean(first, second))
    next_ = evaluate(task["truth"], **task, **chosen, n_splits=1, seed=6)["raw"].loc["split-half ceiling"]
    both = evaluate(task["truth"], **task, **chosen, n_splits=2, seed=5)["raw"].loc["split-half ceiling"]
    assert both["mse_mean"] == pytest.approx((one["mse_mean"] + next_["mse_mean"]) / 2)
    assert one["mse_mean"] != next_["mse_mean"]


def test_same_seed_same_table_and_inputs_untouched(task):
    pred = draw(55, 0.55, 9)
    before = [x.copy() for x in (pred, task["truth"], task["control"])]
    state = np.random.get_state()[1].copy()
    pd.testing.assert_frame_equal(evaluate(pred, **task, max_cells=20), evaluate(pred, **task, max_cells=20))
    assert (np.random.get_state()[1] == state).all()
    for x, y in zip(before, (pred, task["truth"], task["control"]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_gene_names(task):
    names = [f"gene{i}" for i in range(N_GENES)]
    table = evaluate(draw(55, 0.5, 9), **task, gene_names=names)
    top = metrics.top_de_genes(task["truth"], task["control"], 8)
    assert table.attrs["de_genes"] == [names[i] for i in top]
    by_name = evaluate(draw(55, 0.5, 9), **task, gene_names=names, de_genes=["gene3", "gene20"])
    by_position = evaluate(draw(55, 0.5, 9), **task, de_genes=[3, 20])
    pd.testing.assert_frame_equal(by_name, by_position)
    assert not by_name["raw"]["mse_mean_top"].equals(table["raw"]["mse_mean_top"])


def test_fewer_than_four_true_cells_leave_no_ceiling(task):
    task["truth"] = task["truth"][:3]
    with pytest.warns(UserWarning, match="No ceiling"):
        table = evaluate(draw(55, 0.5, 9), **task, metrics=["mse_mean"])
    assert "split-half ceiling" not in table.index
    assert table["scaled"].isna().all(axis=None)


def test_warns_of_counts_and_negatives(task):
    counts = np.random.default_rng(0).poisson(3.0, (20, N_GENES))
    with pytest.warns(UserWarning, match="`control` does not look like log1p"):
        evaluate(draw(9, 0, 1), task["truth"], counts)
    with pytest.warns(UserWarning, match="`truth` does not look like log1p"):
        evaluate(draw(9, 0, 1), task["truth"] - 9, task["control"])
    with pytest.warns(UserWarning, match=r"pred\['prediction'\]"):
        evaluate(100 * draw(9, 0, 1), task["truth"], task["control"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pred": {"no change": draw(5, 0, 1)}}, ValueError, "names of baselines"),
        ({"pred": draw(5, 0, 1)[:, :4]}, ValueError, r"pred\['prediction'\]` 4"),
        ({"pred": {"m": draw(5, 0, 1) * np.nan}}, ValueError, r"pred\['m'\]` holds 150 NaN"),
        ({"pred": draw(1, 0, 1)}, ValueError, "1 cell"),
        ({"truth": draw(1, 0, 1)}, ValueError, "`truth` has 1 cell"),
        ({"control": draw(9, 0, 1)[:, 1:]}, ValueError, "`control` 29"),
        ({"metrics": ["mse"]}, ValueError, "allowed: pearson_delta"),
        ({"metrics": ["relative_mmd"], "pcs": None}, ValueError, "'relative_mmd' needs `pcs`"),
        ({"pcs": "fifty"}, TypeError, "`transform`"),
        ({"training": {}}, ValueError, "at least one context"),
        ({"min_cells": 1000}, ValueError, "No training context"),
        ({"n_splits": 0}, ValueError, "n_splits"),
        ({"gene_names": ["a"] * N_GENES}, ValueError, "1 different"),
        ({"de_genes": ["ISG15"]}, ValueError, "pass `gene_names`"),
        ({"de_genes": ["ISG15"], "gene_names": [f"g{i}" for i in range(N_GENES)]}, ValueError, "ISG15"),
        ({"de_genes": [99]}, ValueError, "0 to 29"),
    ],
)
def test_hostile_input(task, change, error, message):
    with pytest.raises(error, match=message):
        evaluate(**({"pred": draw(20, 0.5, 9)} | task | change))
