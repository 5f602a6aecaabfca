import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats
from sklearn.metrics import average_precision_score
from statsmodels.stats.multitest import multipletests

from cfmvc_scvi import metrics
from cfmvc_scvi.metrics import (
    benjamini_hochberg,
    de_overlap,
    direction_accuracy,
    top_de_genes,
    welch_t,
)


@pytest.fixture
def populations():
    rng = np.random.default_rng(0)
    mean = rng.gamma(2.0, 1.0, 300)
    shift = np.zeros(300)
    shift[:60] = rng.choice([-1, 1], 60) * 2.0
    control = rng.normal(mean, 1, (80, 300))
    return rng.normal(mean + shift, 1.2, (50, 300)), control, shift


def test_welch_against_scipy(populations):
    truth, control, _ = populations
    expected = stats.ttest_ind(truth, control, equal_var=False)
    for kind in (np.asarray, sp.csr_matrix):
        result = welch_t(kind(truth), kind(control))
        np.testing.assert_allclose(result.statistic, expected.statistic, rtol=1e-9)
        np.testing.assert_allclose(result.pvalue, expected.pvalue, rtol=1e-7, atol=1e-300)


def test_welch_is_antisymmetric_and_sparse_blocks_agree(populations, monkeypatch):
    from cfmvc_scvi.metrics import _arrays

    truth, control, _ = populations
    expected = welch_t(truth, control)
    np.testing.assert_array_equal(welch_t(control, truth).statistic, -expected.statistic)
    monkeypatch.setattr(_arrays, "_COLUMN_BLOCK", 7)
    np.testing.assert_allclose(welch_t(sp.csr_matrix(truth), control).statistic, expected.statistic)


def test_welch_never_nan():
    a = np.array([[0.1, 0.0, 1.0, 2.0], [0.1, 0.0, 1.0, 4.0], [0.1, 0.0, 1.0, 6.0]])
    b = np.array([[0.1, 3.0, 0.5, 4.0], [0.1, 3.0, 0.7, 4.0]])
    result = welch_t(a, b)
    assert result.statistic[0] == 0
    assert result.statistic[1] == -np.inf
    np.testing.assert_array_equal(result.pvalue[[0, 1, 3]], [1, 0, 1])
    assert 0 < result.pvalue[2] < 0.3


def test_welch_of_permuted_cells_is_exactly_zero(populations):
    _, control, _ = populations
    result = welch_t(control[::-1], control)
    assert np.all(result.statistic == 0)
    assert np.all(result.pvalue == 1)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_benjamini_hochberg_against_two_implementations(n):
    p = np.random.default_rng(n).beta(0.3, 1, n)
    p[n // 2 :] = p[0]
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p), rtol=1e-12)
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1], rtol=1e-12)


@pytest.mark.parametrize("p", [[0.1, np.nan], [-0.1], [1.1], [[0.1]]])
def test_benjamini_hochberg_refuses(p):
    with pytest.raises(ValueError, match="pvalues"):
        benjamini_hochberg(p)


def test_top_de_genes_are_sorted_and_the_planted_ones(populations):
    truth, control, shift = populations
    top = top_de_genes(truth, control, 60)
    t = np.abs(stats.ttest_ind(truth, control, equal_var=False).statistic)
    np.testing.assert_array_equal(top, np.argsort(-t)[:60])
    assert np.mean(shift[top] != 0) > 0.95
    assert len(top_de_genes(truth, control)) == 100
    assert len(top_de_genes(truth, control, 1000)) == 300
    with pytest.raises(ValueError, match="at least 1"):
        top_de_genes(truth, control, 0)


def test_top_de_genes_follow_a_permutation_of_genes_and_cells(populations):
    truth, control, _ = populations
    order = np.random.default_rng(1).permutation(300)
    top = top_de_genes(truth[::-1][:, order], control[:, order], 30)
    np.testing.assert_array_equal(order[top], top_de_genes(truth, control, 30))


def test_de_overlap(populations):
    truth, control, _ = populations
    rng = np.random.default_rng(2)
    pred = truth + rng.normal(0, 1, truth.shape)
    rank = lambda x: set(np.argsort(-np.abs(stats.ttest_ind(x, control, equal_var=False).statistic))[:80])  # noqa: E731
    expected = len(rank(pred) & rank(truth)) / 80
    assert 0.4 < expected < 1
    assert de_overlap(pred, truth, control, n=80) == pytest.approx(expected)
    assert de_overlap(truth, truth, control) == 1
    assert de_overlap(control[::-1], truth, control) == 0
    with pytest.warns(RuntimeWarning, match="no gene differs"):
        assert np.isnan(de_overlap(truth, control, control))


def test_direction_accuracy_against_a_plain_count(populations):
    truth, control, _ = populations
    delta = truth.mean(0) - control.mean(0)
    p = stats.ttest_ind(truth, control, equal_var=False).pvalue
    significant = np.flatnonzero(multipletests(p, method="fdr_bh")[1] < 0.05)
    predicted = delta.copy()
    predicted[significant[:10]] *= -0.01
    predicted[significant[10:14]] = 0
    expected = (len(significant) - 10 - 2) / len(significant)
    value = direction_accuracy(control.mean(0) + predicted, truth, control)
    assert value == pytest.approx(expected)
    assert direction_accuracy(control + predicted, truth, control) == pytest.approx(expected)


def test_direction_of_no_change_is_one_half(populations):
    truth, control, _ = populations
    shuffled = control[np.random.default_rng(3).permutation(80)]
    for pred in (control, shuffled, shuffled.mean(0), shuffled.mean(0).astype(np.float32)):
        assert direction_accuracy(pred, truth, control) == 0.5
    assert direction_accuracy(truth, truth, control) == 1
    assert direction_accuracy(2 * control.mean(0) - truth.mean(0), truth, control) == 0


def test_direction_undefined_and_hostile(populations):
    truth, control, _ = populations
    with pytest.warns(RuntimeWarning, match="no gene is significant"):
        assert np.isnan(direction_accuracy(truth, control, control))
    with pytest.raises(ValueError, match="alpha"):
        direction_accuracy(truth, truth, control, alpha=0)
    with pytest.raises(ValueError, match="`truth` has 1 cell"):
        direction_accuracy(truth, truth[:1], control)
    with pytest.raises(ValueError, match="number of genes"):
        welch_t(truth, control[:, :5])


def draw(n_changed=6, n_genes=30, seed=0):
    rng = np.random.default_rng(seed)
    effect = np.where(np.arange(n_genes) < n_changed, 2.0, 0.0)
    return rng.uniform(2, 4, (50, n_genes)) + effect, rng.uniform(2, 4, (60, n_genes)), effect


def test_weighted_error_is_that_weighted_by_t():
    truth, control, effect = draw()
    pred = control + 0.5 * effect
    weights = np.abs(stats.ttest_ind(truth, control, equal_var=False).statistic)
    expected = np.average((pred.mean(axis=0) - truth.mean(axis=0)) ** 2, weights=weights)
    assert metrics.mse_weighted(pred, truth, control) == pytest.approx(expected)
    assert metrics.mse_weighted(pred.mean(axis=0), truth, control) == pytest.approx(expected)
    assert metrics.mse_weighted(truth, truth, control) == 0
    with pytest.warns(RuntimeWarning, match="undefined"):
        assert np.isnan(metrics.mse_weighted(pred, control, control))


def test_a_gene_of_infinite_t_weighs_as_much_as_the_next():
    control, truth = np.zeros((3, 2)), np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    pred = np.array([0.0, 2.0])
    assert metrics.mse_weighted(pred, truth, control) == pytest.approx(0.5)


def test_precision_recall_of_the_changed_genes():
    truth, control, effect = draw()
    pred = control + 0.6 * np.random.default_rng(1).normal(size=effect.size) + 0.4 * effect
    changed = metrics.benjamini_hochberg(stats.ttest_ind(truth, control, equal_var=False).pvalue) < 0.05
    t = np.abs(stats.ttest_ind(pred, control, equal_var=False).statistic)
    expected = average_precision_score(changed, t)
    assert 0 < expected < 1
    assert metrics.auprc_de(pred, truth, control) == pytest.approx(expected)
    assert metrics.auprc_de(truth, truth, control) == pytest.approx(1)
    assert metrics.auprc_de(control, truth, control) == pytest.approx(changed.mean())
    with pytest.warns(RuntimeWarning, match="no gene is significant"):
        assert np.isnan(metrics.auprc_de(pred, control, control))


def test_calls_are_counted_on_as_many_predicted_as_real_cells():
    truth, control, effect = draw()
    counts = metrics.de_counts(control + effect, truth, control)
    few = control + effect
    few = few[np.sort(np.random.default_rng(0).choice(60, 50, replace=False))]
    expected = [
        (metrics.benjamini_hochberg(stats.ttest_ind(x, control, equal_var=False).pvalue) < 0.05).sum()
        for x in (few, truth)
    ]
    assert counts == tuple(expected)
    assert metrics.de_counts(control, truth, control).predicted == 0
    assert len(set(metrics.de_counts(truth, truth, control))) == 1


def test_the_table_has_the_ratio_of_the_calls():
    truth, control, effect = draw()
    pred = control + effect
    table = metrics.evaluate(pred, truth, control, metrics=["de_count_ratio", "auprc_de"])["raw"]
    counts = metrics.de_counts(pred, truth, control)
    assert table.loc["prediction", "de_count_ratio"] == (counts.predicted + 1) / (counts.real + 1)
    assert table.loc["no change", "de_count_ratio"] == 1 / (counts.real + 1)
