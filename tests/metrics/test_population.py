import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats
from scipy.spatial.distance import pdist

from cfmvc_scvi.metrics import _population as module
from cfmvc_scvi.metrics import (
    energy_distance,
    mmd_rbf,
    relative_mmd,
    variance_agreement,
    variance_ratio,
    zero_fraction_agreement,
)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (17, 5)), rng.normal(0.4, 1.3, (23, 5))


def naive(x, y, f, biased):
    """Mean of f within x, within y and between, by loops."""

    def within(a):
        pairs = list(itertools.product(range(len(a)), repeat=2))
        return np.mean([f(a[i], a[j]) for i, j in pairs if biased or i != j])

    return within(x), within(y), np.mean([f(a, b) for a in x for b in y])


@pytest.mark.parametrize("biased", [True, False])
def test_energy_distance_against_loops(pair, biased):
    xx, yy, xy = naive(*pair, lambda a, b: np.linalg.norm(a - b), biased)
    assert energy_distance(*pair, biased=biased) == pytest.approx(2 * xy - xx - yy, abs=1e-12)


def test_energy_distance_against_scipy_in_one_dimension(pair):
    x, y = (a[:, :1] for a in pair)
    expected = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    assert energy_distance(x, y, biased=True) == pytest.approx(expected, abs=1e-12)


def test_energy_distance_of_gaussians_is_the_closed_form():
    # E|N(m, s^2)| = s sqrt(2/pi) exp(-m^2/2s^2) + m (1 - 2 Phi(-m/s))
    def mean_abs(m, s):
        folded = s * np.sqrt(2 / np.pi) * np.exp(-(m**2) / (2 * s**2))
        return folded + m * (1 - 2 * stats.norm.cdf(-m / s))

    m, s0, s1 = 1.5, 1.0, 2.0
    expected = 2 * mean_abs(m, np.hypot(s0, s1)) - mean_abs(0, np.sqrt(2) * s0) - mean_abs(0, np.sqrt(2) * s1)
    rng = np.random.default_rng(1)
    value = energy_distance(rng.normal(0, s0, (4000, 1)), rng.normal(m, s1, (4000, 1)))
    assert value == pytest.approx(expected, rel=0.05)


def test_energy_distance_sees_spread_where_squared_distances_do_not():
    x = np.random.default_rng(2).normal(0, 1, (600, 2))
    x -= x.mean(0)
    assert energy_distance(x, 3 * x) > 0.7
    assert abs(energy_distance(x, np.random.default_rng(3).normal(0, 1, (600, 2)))) < 0.02


@pytest.mark.parametrize("metric", [energy_distance, lambda x, y: mmd_rbf(x, y, gamma=0.3)])
def test_unbiased_statistics_have_mean_zero_under_the_null(metric):
    rng = np.random.default_rng(3)
    values = np.array([metric(rng.normal(size=(8, 3)), rng.normal(size=(12, 3))) for _ in range(1500)])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    assert (values < 0).mean() > 0.2


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("gamma", [0.05, 0.7])
def test_mmd_against_loops(pair, gamma, biased):
    xx, yy, xy = naive(*pair, lambda a, b: np.exp(-gamma * np.sum((a - b) ** 2)), biased)
    assert mmd_rbf(*pair, gamma=gamma, biased=biased) == pytest.approx(xx + yy - 2 * xy, abs=1e-12)


def test_mmd_against_sklearn_kernel_and_named_gammas(pair):
    from sklearn.metrics.pairwise import pairwise_distances, rbf_kernel

    pooled = np.concatenate(pair)
    median = np.median(pairwise_distances(pooled)[np.triu_indices(len(pooled), 1)])
    for name, gamma in (("median", 1 / (2 * median**2)), ("dim", 1 / 5)):
        x, y = pair
        expected = sum(rbf_kernel(a, gamma=gamma).mean() for a in pair) - 2 * rbf_kernel(x, y, gamma=gamma).mean()
        assert mmd_rbf(x, y, gamma=name, biased=True) == pytest.approx(expected, abs=1e-12)
    assert mmd_rbf(*pair) == mmd_rbf(*pair, gamma="median", biased=False)


def test_mmd_of_gaussians_is_the_closed_form():
    # E k(x, y) for x - y ~ N(d, v) in one dimension: exp(-g d^2 / (1 + 2 g v)) / sqrt(1 + 2 g v)
    g, d = 0.5, 1.0
    expected = 2 * (1 - np.exp(-g * d**2 / (1 + 4 * g))) / np.sqrt(1 + 4 * g)
    rng = np.random.default_rng(4)
    value = mmd_rbf(rng.normal(size=(3000, 1)), rng.normal(d, 1, (3000, 1)), gamma=g)
    assert value == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("gamma", [0, -1.0, np.nan, np.inf, "scale"])
def test_mmd_refuses_gamma(pair, gamma):
    with pytest.raises(ValueError, match="'median' or 'dim'"):
        mmd_rbf(*pair, gamma=gamma)


def test_mmd_median_of_coinciding_cells_is_refused():
    with pytest.raises(ValueError, match="median distance is 0"):
        mmd_rbf(np.zeros((5, 2)), np.zeros((5, 2)))


@pytest.mark.parametrize("metric", [energy_distance, mmd_rbf, variance_ratio])
def test_invariances(pair, metric):
    x, y = pair
    value = metric(x, y)
    rng = np.random.default_rng(5)
    assert metric(x[rng.permutation(17)], y[rng.permutation(23)]) == pytest.approx(value, abs=1e-12)
    order = rng.permutation(5)
    assert metric(x[:, order], y[:, order]) == pytest.approx(value, abs=1e-12)
    assert metric(x + 100, y + 100) == pytest.approx(value, abs=1e-9)
    assert metric(sp.csr_matrix(x), sp.csr_matrix(y)) == pytest.approx(value, abs=1e-12)
    assert metric(x, y, genes=[4, 0]) == pytest.approx(metric(x[:, [4, 0]], y[:, [4, 0]]), abs=1e-12)


@pytest.mark.parametrize("metric", [energy_distance, mmd_rbf])
def test_symmetry_rotation_and_duplication(pair, metric):
    x, y = pair
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(5, 5)))[0]
    assert metric(y, x) == pytest.approx(metric(x, y), abs=1e-12)
    assert metric(x @ rotation, y @ rotation) == pytest.approx(metric(x, y), abs=1e-10)
    twice = np.concatenate([x, x])
    if metric is mmd_rbf:
        metric = lambda a, b, biased: mmd_rbf(a, b, gamma=0.2, biased=biased)  # noqa: E731
    assert metric(twice, y, biased=True) == pytest.approx(metric(x, y, biased=True), abs=1e-12)
    assert metric(twice, y, biased=False) != pytest.approx(metric(x, y, biased=False), abs=1e-6)


def test_energy_distance_scales_with_the_data(pair):
    x, y = pair
    assert energy_distance(7 * x, 7 * y) == pytest.approx(7 * energy_distance(x, y), rel=1e-12)


def test_wide_matrices_agree_with_narrow_path(monkeypatch):
    rng = np.random.default_rng(7)
    x, y = rng.normal(5, 1, (30, 400)), rng.normal(5.2, 1, (20, 400))
    wide = energy_distance(x, y)
    monkeypatch.setattr(module, "_WIDE", 10_000)
    assert wide == pytest.approx(energy_distance(x, y), rel=1e-9)


def test_blocks_do_not_change_the_result_and_bound_memory(pair, monkeypatch):
    expected = [energy_distance(*pair), mmd_rbf(*pair, gamma=0.3)]
    monkeypatch.setattr(module, "_BLOCK_VALUES", 50)
    assert [energy_distance(*pair), mmd_rbf(*pair, gamma=0.3)] == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 100_000)
    x = np.random.default_rng(8).normal(size=(3000, 2))
    tracemalloc.start()
    energy_distance(x, x + 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 < x.shape[0] ** 2 * 8


def test_relative_mmd_is_the_ratio_to_the_nearest_large_population(pair):
    x, y = pair
    near, far, tiny = y[:12] + 0.3, y + 3, y[:4]
    value = relative_mmd(x, y, {"near": near, "far": far, "tiny": tiny})
    parts = [mmd_rbf(a, y, gamma=1 / 5, biased=True) for a in (x, near)]
    assert value == pytest.approx(parts[0] / parts[1], rel=1e-12)
    assert value == relative_mmd(x, y, [far, near])
    assert relative_mmd(near, y, [far, near]) == pytest.approx(1)
    assert relative_mmd(y, y, [far]) == pytest.approx(0, abs=1e-9)


def test_relative_mmd_median_gamma_does_not_depend_on_the_prediction(pair):
    x, y = pair
    a, b = (relative_mmd(p, y, [y + 1], gamma="median") for p in (x, 100 * x))
    gamma = 1 / (2 * np.median(pdist(np.concatenate([y, y + 1]))) ** 2)
    for value, p in ((a, x), (b, 100 * x)):
        expected = mmd_rbf(p, y, gamma=gamma, biased=True) / mmd_rbf(y + 1, y, gamma=gamma, biased=True)
        assert value == pytest.approx(expected)


def test_relative_mmd_hostile(pair):
    x, y = pair
    with pytest.raises(ValueError, match="None of the 1"):
        relative_mmd(x, y, {"tiny": y[:4]})
    with pytest.raises(ValueError, match="4"):
        relative_mmd(x, y, {"other": y[:, :4]})
    with pytest.warns(RuntimeWarning, match="the truth itself"):
        assert np.isnan(relative_mmd(x, y, [y]))


def test_variance_ratio_ignores_genes_without_true_variance():
    rng = np.random.default_rng(9)
    truth = rng.normal(size=(50, 6))
    pred = truth * np.array([1, 2, 3, 4, 5, 1])
    truth[:, 5] = 0.1
    assert variance_ratio(pred, truth) == pytest.approx(9)
    assert variance_ratio(pred, truth, genes=[1, 5]) == pytest.approx(4)
    assert variance_ratio(np.tile(pred.mean(0), (4, 1)), truth) == 0
    with pytest.warns(RuntimeWarning, match="no gene varies"):
        assert np.isnan(variance_ratio(pred, truth, genes=[5]))


def test_agreements_against_linregress():
    rng = np.random.default_rng(10)
    mean = rng.gamma(1, 1.5, 60)
    truth, pred = rng.poisson(mean, (80, 60)), rng.poisson(0.7 * mean, (90, 60))
    zero = zero_fraction_agreement(pred, truth)
    fit = stats.linregress((truth == 0).mean(0), (pred == 0).mean(0))
    assert (zero.correlation, zero.slope, zero.n_genes) == pytest.approx((fit.rvalue, fit.slope, 60))
    use = (truth.var(0) > 0) & (pred.var(0) > 0)
    fit = stats.linregress(np.log(truth.var(0, ddof=1)[use]), np.log(pred.var(0, ddof=1)[use]))
    variance = variance_agreement(pred, truth)
    assert (variance.correlation, variance.slope) == pytest.approx((fit.rvalue, fit.slope))
    assert variance.n_genes == use.sum()
    for metric, dense in ((zero_fraction_agreement, zero), (variance_agreement, variance)):
        sparse = metric(sp.csr_matrix(pred), sp.csc_matrix(truth))
        assert (sparse.correlation, sparse.slope) == pytest.approx((dense.correlation, dense.slope))
        same = metric(truth, truth)
        assert (same.correlation, same.slope) == pytest.approx((1, 1))


def test_agreement_of_means_is_undefined():
    truth = np.random.default_rng(11).poisson(1.0, (20, 8))
    with pytest.warns(RuntimeWarning, match="two genes that differ"):
        result = zero_fraction_agreement(truth + 0.5, truth)
    assert np.isnan(result.correlation)
    assert np.isnan(result.slope)


@pytest.mark.parametrize(
    "metric", [energy_distance, mmd_rbf, variance_ratio, zero_fraction_agreement, variance_agreement]
)
def test_hostile_input(pair, metric):
    x, y = pair
    with pytest.raises(ValueError, match="`pred` has 1 cell"):
        metric(x[:1], y)
    with pytest.raises(ValueError, match="`pred` 4, `truth` 5"):
        metric(x[:, :4], y)
    with pytest.raises(ValueError, match="`truth` holds 1 NaN"):
        metric(x, np.where(np.arange(115).reshape(23, 5) == 7, np.inf, y))
    with pytest.raises(ValueError, match="needs cells"):
        metric(x.mean(0), y)
