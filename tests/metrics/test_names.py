"""Genes of DataFrames are matched by name, in every metric."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import metrics

GENES = [f"g{i}" for i in range(20)]
RNG = np.random.default_rng(0)
SHIFT = RNG.normal(0, 1, 20)
CONTROL, PRED, TRUTH = (
    pd.DataFrame((RNG.normal(4, 1, (60, 20)) + shift).clip(0), columns=GENES) for shift in (0.0, SHIFT, SHIFT)
)
TRAINING = {"B": (CONTROL + 0.1, TRUTH + 0.1), "NK": (CONTROL, TRUTH + 0.2)}
CASES = {
    "pearson_delta": (PRED, TRUTH, CONTROL),
    "pearson_delta_centroid": (PRED, TRUTH, CONTROL),
    "mse_mean": (PRED, TRUTH),
    "mse_delta": (PRED, TRUTH, CONTROL),
    "r2_mean": (PRED, TRUTH),
    "energy_distance": (PRED, TRUTH),
    "mmd_rbf": (PRED, TRUTH),
    "variance_ratio": (PRED, TRUTH),
    "zero_fraction_agreement": (PRED, TRUTH),
    "variance_agreement": (PRED, TRUTH),
    "de_overlap": (PRED, TRUTH, CONTROL),
    "direction_accuracy": (PRED, TRUTH, CONTROL),
    "welch_t": (TRUTH, CONTROL),
    "top_de_genes": (TRUTH, CONTROL),
    "mean_perturbed": (TRAINING,),
    "mean_shift": (CONTROL, TRAINING),
    "additive": (CONTROL, [TRUTH, PRED]),
    "relative_mmd": (PRED, TRUTH, {"B": CONTROL, "NK": TRUTH + 1}),
    "evaluate": (PRED, TRUTH, CONTROL),
    "cosine_delta": (PRED, TRUTH, CONTROL),
    "mse_weighted": (PRED, TRUTH, CONTROL),
    "auprc_de": (PRED, TRUTH, CONTROL),
    "de_counts": (PRED, TRUTH, CONTROL),
    "perturbation_discrimination": ({"A": PRED}, {"A": TRUTH, "B": CONTROL}),
}


def shuffled(value):
    """The same, every table but the first with its genes in another order."""
    state = {"first": True}

    def walk(x):
        if isinstance(x, dict):
            return {key: walk(item) for key, item in x.items()}
        if isinstance(x, (list, tuple)):
            return type(x)(walk(item) for item in x)
        if state["first"]:
            state["first"] = False
            return x
        return x[list(RNG.permutation(GENES))]

    return walk(value)


def arrays(value):
    if isinstance(value, dict):
        return {key: arrays(item) for key, item in value.items()}
    return type(value)(map(arrays, value)) if isinstance(value, (list, tuple)) else value.to_numpy()


@pytest.mark.parametrize("name", CASES)
def test_order_of_columns_does_not_matter(name):
    function = getattr(metrics, name)
    found, expected = function(*shuffled(CASES[name])), function(*arrays(CASES[name]))
    if isinstance(expected, pd.DataFrame):
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=1e-8)
        assert set(found.attrs["de_genes"]) <= set(GENES)
    else:
        found, expected = (
            list(dataclasses.astuple(x)) if dataclasses.is_dataclass(x) else x for x in (found, expected)
        )
        np.testing.assert_allclose(np.asarray(found, dtype=float), np.asarray(expected, dtype=float), rtol=1e-8)


def test_every_metric_of_genes_is_among_the_cases():
    others = {
        "METRICS",
        "Agreement",
        "DECounts",
        "Metric",
        "PrincipalComponents",
        "ScoringTask",
        "WelchResult",
        "benjamini_hochberg",
    }
    others |= {"fit_pcs", "harm_rate", "log1p_cp10k", "no_change", "overview_metrics", "ridge_embedding", "split_half"}
    assert set(metrics.__all__) - others == set(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if len(CASES[name]) > 1])
def test_other_genes_are_refused_by_name(name):
    *rest, last = CASES[name]
    if not isinstance(last, pd.DataFrame):
        pytest.skip("its last argument is a collection of tables")
    with pytest.raises(ValueError, match="different genes.*g3"):
        getattr(metrics, name)(*rest, last.rename(columns={"g3": "other"}))


def test_means_with_names():
    mean = TRUTH.mean()[list(RNG.permutation(GENES))]
    assert metrics.pearson_delta(mean, TRUTH, CONTROL) == pytest.approx(1.0)


def test_numbered_columns_have_no_names():
    numbered = [pd.DataFrame(x.to_numpy()) for x in (PRED, TRUTH, CONTROL)]
    assert metrics.pearson_delta(*numbered) == metrics.pearson_delta(PRED, TRUTH, CONTROL)


def test_perturbations_and_features_of_an_embedding_are_matched():
    names = list("abcd")
    embedding = pd.DataFrame(RNG.normal(size=(4, 3)), names, list("xyz"))
    deltas = pd.DataFrame(RNG.normal(size=(4, 20)), names, GENES)
    expected = metrics.ridge_embedding(embedding, deltas, embedding)
    found = metrics.ridge_embedding(embedding, deltas.iloc[::-1], embedding[list("zxy")])
    np.testing.assert_allclose(found, expected)
    with pytest.raises(ValueError, match="different rows"):
        metrics.ridge_embedding(embedding, deltas.rename({"a": "e"}), embedding)
