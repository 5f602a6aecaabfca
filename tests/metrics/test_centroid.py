import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats
from scipy.spatial.distance import cosine
from sklearn.metrics import mean_squared_error, r2_score

from cfmvc_scvi.metrics import (
    cosine_delta,
    log1p_cp10k,
    mse_delta,
    mse_mean,
    pearson_delta,
    pearson_delta_centroid,
    r2_mean,
)

METRICS = [
    cosine_delta,
    pearson_delta,
    pearson_delta_centroid,
    lambda p, t, c, **k: mse_mean(p, t, **k),
    mse_delta,
    lambda p, t, c, **k: r2_mean(p, t, **k),
]


@pytest.fixture
def populations():
    rng = np.random.default_rng(0)
    base, effect = rng.gamma(1.0, 2.0, 40), rng.normal(0, 0.5, 40)
    draw = lambda n, mean: np.log1p(rng.poisson(np.maximum(mean, 0.1), (n, 40)))  # noqa: E731
    return draw(30, base + 0.8 * effect), draw(25, base + effect), draw(35, base)


def test_log1p_cp10k_against_scanpy():
    import anndata as ad
    import scanpy as sc

    counts = np.random.default_rng(0).poisson(3, (20, 15)).astype(np.float32)
    adata = ad.AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(log1p_cp10k(counts), adata.X, rtol=1e-5)


def test_log1p_cp10k_sparse_is_dense_and_library_of_all_genes_survives_selection():
    counts = np.random.default_rng(1).poisson(0.5, (12, 30))
    library = counts.sum(axis=1) + 1
    expected = log1p_cp10k(counts, library)
    result = log1p_cp10k(sp.csr_matrix(counts), library)
    assert sp.issparse(result)
    np.testing.assert_allclose(result.toarray(), expected)
    np.testing.assert_array_equal(log1p_cp10k(counts[:, :7], library), expected[:, :7])
    assert not np.allclose(log1p_cp10k(counts[:, :7]), expected[:, :7])


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix])
def test_log1p_cp10k_cell_without_counts_is_zero(make):
    result = log1p_cp10k(make(np.array([[0, 0], [1, 1]])), np.array([0.0, 2.0]))
    result = result.toarray() if sp.issparse(result) else result
    np.testing.assert_allclose(result, [[0, 0], [np.log(5001), np.log(5001)]])


@pytest.mark.parametrize(
    ("counts", "library", "message"),
    [
        ([[-1.0, 2.0]], None, "negative"),
        ([[1.0, 2.0]], [0.0], "first in row 0"),
        ([[1.0, 2.0]], [np.nan], "not a positive number"),
        ([[1.0, 2.0]], [1.0, 2.0], "2 value"),
        ([[1.0, np.inf]], None, "NaN or infinite"),
    ],
)
def test_log1p_cp10k_refuses(counts, library, message):
    with pytest.raises(ValueError, match=message):
        log1p_cp10k(np.array(counts), None if library is None else np.array(library))


def test_pearson_delta_against_scipy(populations):
    pred, truth, control = populations
    c = control.mean(0)
    expected = stats.pearsonr(pred.mean(0) - c, truth.mean(0) - c).statistic
    assert pearson_delta(pred, truth, control) == pytest.approx(expected, abs=1e-12)
    genes = [3, 30, 7, 21]
    expected = stats.pearsonr((pred.mean(0) - c)[genes], (truth.mean(0) - c)[genes]).statistic
    assert pearson_delta(pred, truth, control, genes=genes) == pytest.approx(expected, abs=1e-12)
    mask = np.isin(np.arange(40), genes)
    assert pearson_delta(pred, truth, control, genes=mask) == pytest.approx(expected, abs=1e-12)


def test_pearson_delta_is_signed(populations):
    _, truth, control = populations
    c, delta = control.mean(0), truth.mean(0) - control.mean(0)
    assert pearson_delta(c + 0.01 * delta, truth, control) == pytest.approx(1)
    assert pearson_delta(c - 5 * delta, truth, control) == pytest.approx(-1)


def test_centroid_reference_takes_out_what_is_shared(populations):
    pred, truth, control = populations
    centroid = truth.mean(0) + np.linspace(-1, 1, 40)
    expected = np.corrcoef(pred.mean(0) - centroid, truth.mean(0) - centroid)[0, 1]
    assert pearson_delta_centroid(pred, truth, centroid) == pytest.approx(expected)
    assert pearson_delta_centroid(pred, truth, control) == pytest.approx(pearson_delta(pred, truth, control))
    assert pearson_delta_centroid(centroid, truth, centroid) == 0.0


def test_mse_and_r2_against_sklearn(populations):
    pred, truth, control = populations
    assert mse_mean(pred, truth) == pytest.approx(mean_squared_error(truth.mean(0), pred.mean(0)))
    assert mse_delta(pred, truth, control) == pytest.approx(mse_mean(pred, truth))
    assert r2_mean(pred, truth) == pytest.approx(r2_score(truth.mean(0), pred.mean(0)))
    assert mse_delta(control, truth, control, normalize=True) == pytest.approx(1)
    half_way = (truth.mean(0) + control.mean(0)) / 2
    assert mse_delta(half_way, truth, control, normalize=True) == pytest.approx(0.25)


@pytest.mark.parametrize("metric", METRICS)
def test_invariances_and_input_types(metric, populations):
    pred, truth, control = populations
    rng = np.random.default_rng(2)
    value = metric(pred, truth, control)
    shuffled = [x[rng.permutation(len(x))] for x in populations]
    assert metric(*shuffled) == pytest.approx(value, abs=1e-12)
    order = rng.permutation(40)
    assert metric(*(x[:, order] for x in populations)) == pytest.approx(value, abs=1e-12)
    assert metric(*(x + 3 for x in populations)) == pytest.approx(value, abs=1e-10)
    for kind in (sp.csr_matrix, sp.csc_matrix, sp.csr_array):
        assert metric(*(kind(x) for x in populations)) == pytest.approx(value, abs=1e-12)
    assert metric(*(x.mean(0) for x in populations)) == pytest.approx(value, abs=1e-12)
    assert metric(*(x.astype(np.float32) for x in populations)) == pytest.approx(value, abs=1e-5)
    one = [np.asarray(x[:, :5]) for x in populations]
    assert metric(*populations, genes=range(5)) == pytest.approx(metric(*one), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_change_scores_zero_whatever_the_rounding(populations, dtype):
    _, truth, control = populations
    shuffled = control[np.random.default_rng(3).permutation(len(control))].astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pearson_delta(shuffled, truth, control) == 0.0
        assert pearson_delta(shuffled.mean(0), truth, control) == 0.0


def test_undefined_correlation_is_nan_with_warning(populations):
    _, truth, control = populations
    c = control.mean(0)
    with pytest.warns(RuntimeWarning, match="predicted change from control is the same"):
        assert np.isnan(pearson_delta(c + 1, truth, control))
    with pytest.warns(RuntimeWarning, match="true change from control is the same"):
        assert np.isnan(pearson_delta(truth, c + 1, control))
    with pytest.warns(RuntimeWarning, match="true change"):
        assert np.isnan(pearson_delta(truth, control[::-1], control))
    with pytest.warns(RuntimeWarning, match="two genes"):
        assert np.isnan(pearson_delta(truth, truth, control, genes=[1]))
    with pytest.warns(RuntimeWarning, match="same for all genes"):
        assert np.isnan(r2_mean(np.arange(3.0), np.ones(3)))
    with pytest.warns(RuntimeWarning, match="no change"):
        assert np.isnan(mse_delta(truth, control, control, normalize=True))


def test_hostile_input_is_refused_with_its_name(populations):
    pred, truth, control = populations
    broken = pred.copy()
    broken[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"`pred` holds 1 NaN"):
        pearson_delta(broken, truth, control)
    with pytest.raises(ValueError, match="`pred` 39, `truth` 40"):
        pearson_delta(pred[:, :39], truth, control)
    with pytest.raises(ValueError, match="`truth` has 1 cell"):
        mse_mean(pred, truth[:1])
    with pytest.raises(ValueError, match="shape"):
        mse_mean(pred[None], truth)
    with pytest.raises(TypeError, match="object"):
        mse_mean(pred.astype(object), truth)


@pytest.mark.parametrize(
    ("genes", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ([0, 40], ValueError, "0 to 39"),
        ([-1], ValueError, "-1"),
        ([1, 1], ValueError, "more than once"),
        (["ISG15"], TypeError, "positions"),
        (np.zeros(40, bool), ValueError, "selects no gene"),
        (np.ones(3, bool), ValueError, "mask of 3"),
        (0.5, ValueError, "dimension"),
    ],
)
def test_hostile_gene_selections(populations, genes, error, message):
    with pytest.raises(error, match=message):
        mse_mean(populations[0], populations[1], genes=genes)


def test_anndata_is_pointed_at_its_matrix(populations):
    import anndata as ad

    with pytest.raises(TypeError, match=r"pred\.X"):
        mse_mean(ad.AnnData(populations[0]), populations[1])


def test_cosine_of_changes_is_not_centred():
    rng = np.random.default_rng(0)
    pred, truth, control = rng.normal(3, 1, (3, 40, 12))
    predicted, true = pred.mean(axis=0) - control.mean(axis=0), truth.mean(axis=0) - control.mean(axis=0)
    assert cosine_delta(pred, truth, control) == pytest.approx(1 - cosine(predicted, true))
    genes = [1, 4, 6]
    assert cosine_delta(pred, truth, control, genes=genes) == pytest.approx(1 - cosine(predicted[genes], true[genes]))
    assert cosine_delta(control + 2, control + 5, control) == pytest.approx(1)
    assert cosine_delta(control, truth, control) == 0
    with pytest.warns(RuntimeWarning, match="undefined"):
        assert np.isnan(cosine_delta(pred, control, control))
