import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from cfmvc_scvi.metrics import (
    additive,
    fit_pcs,
    mean_perturbed,
    mean_shift,
    no_change,
    ridge_embedding,
    split_half,
)


@pytest.fixture
def training():
    rng = np.random.default_rng(0)
    return {
        "B": (rng.random((5, 4)), rng.random((7, 4)) + 1),
        "NK": (rng.random((20, 4)), rng.random((40, 4)) + 3),
        "rare": (rng.random((1, 4)), rng.random((2, 4)) + 50),
        "none": (rng.random((0, 4)), rng.random((3, 4))),
    }


@pytest.fixture
def control():
    return np.random.default_rng(1).random((6, 4))


def test_no_change_is_a_copy(control):
    result = no_change(control)
    np.testing.assert_array_equal(result, control)
    result[0] = 9
    assert control.max() < 1
    np.testing.assert_array_equal(no_change(sp.csr_matrix(control)), control)


def test_mean_shift_by_hand(training, control):
    shifts = {k: training[k][1].mean(0) - training[k][0].mean(0) for k in ("B", "NK", "rare")}
    expected = control + (shifts["B"] + shifts["NK"]) / 2
    np.testing.assert_allclose(mean_shift(control, training, min_cells=5), expected)
    expected = control + (7 * shifts["B"] + 40 * shifts["NK"]) / 47
    np.testing.assert_allclose(mean_shift(control, training, weighting="cells", min_cells=5), expected)
    np.testing.assert_allclose(mean_shift(control, training), control + sum(shifts.values()) / 3)
    sparse = {k: (sp.csr_matrix(c), sp.csc_matrix(p)) for k, (c, p) in training.items()}
    np.testing.assert_allclose(mean_shift(sp.csr_matrix(control), sparse), mean_shift(control, training))


def test_mean_perturbed_by_hand(training, control):
    b, nk = training["B"][1].mean(0), training["NK"][1].mean(0)
    np.testing.assert_allclose(mean_perturbed(training, min_cells=5), (b + nk) / 2)
    np.testing.assert_allclose(mean_perturbed(training, min_cells=5, weighting="cells"), (7 * b + 40 * nk) / 47)
    moved = mean_perturbed(training, control=control, min_cells=5)
    np.testing.assert_allclose(moved.mean(0), (b + nk) / 2)
    np.testing.assert_allclose(moved - moved.mean(0), control - control.mean(0))


def test_order_of_contexts_and_cells_does_not_matter(training, control):
    rng = np.random.default_rng(2)
    shuffled = {k: tuple(x[rng.permutation(len(x))] for x in training[k]) for k in reversed(training)}
    np.testing.assert_allclose(mean_shift(control, shuffled), mean_shift(control, training))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {}, "at least one context"),
        (lambda t: {"none": t["none"]}, "No training context"),
        (lambda t: {"B": t["B"][0]}, "must be a pair"),
        (lambda t: {"B": (t["B"][0], t["B"][1][:, :3])}, "number of genes"),
        (lambda t: {"B": (t["B"][0] * np.nan, t["B"][1])}, r"training\['B'\] control"),
        (lambda t: {"B": tuple(x[:, :3] for x in t["B"])}, "`control` 4"),
    ],
)
def test_training_is_checked(training, control, change, message):
    with pytest.raises(ValueError, match=message):
        mean_shift(control, change(training))


def test_weighting_and_type_are_checked(training, control):
    with pytest.raises(ValueError, match="'contexts', 'cells'"):
        mean_shift(control, training, weighting="pooled")
    with pytest.raises(TypeError, match="mapping"):
        mean_shift(control, list(training.values()))


def test_additive_by_hand(control):
    rng = np.random.default_rng(3)
    a, b, other = rng.random((5, 4)) + 1, rng.random((9, 4)) - 1, rng.random((8, 4))
    c = control.mean(0)
    expected = control + (a.mean(0) - c) + (b.mean(0) - c)
    np.testing.assert_allclose(additive(control, [a, b]), expected)
    np.testing.assert_allclose(additive(control, [b.mean(0), sp.csr_matrix(a)]), expected)
    expected = control + a.mean(0) + b.mean(0) - 2 * other.mean(0)
    np.testing.assert_allclose(additive(control, [a, b], single_control=other), expected)
    np.testing.assert_allclose(additive(control, [control]), control)
    with pytest.raises(ValueError, match="empty"):
        additive(control, [])
    with pytest.raises(ValueError, match=r"singles\[1\]"):
        additive(control, [a, b[:, :2]])


@pytest.mark.parametrize("shape", [(12, 4), (5, 9)])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_ridge_against_sklearn(shape, intercept, weighted):
    rng = np.random.default_rng(4)
    x, y, new = rng.normal(1, 1, shape), rng.normal(size=(shape[0], 6)), rng.normal(size=(3, shape[1]))
    weights = rng.integers(1, 50, shape[0]) if weighted else None
    expected = Ridge(alpha=0.7, fit_intercept=intercept).fit(x, y, sample_weight=weights).predict(new)
    result = ridge_embedding(x, y, new, alpha=0.7, fit_intercept=intercept, weights=weights)
    np.testing.assert_allclose(result, expected, atol=1e-10)


def test_ridge_limits():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(10, 3)), rng.normal(size=(10, 2))
    np.testing.assert_allclose(ridge_embedding(x, y, x, alpha=1e14), np.tile(y.mean(0), (10, 1)), atol=1e-9)
    np.testing.assert_allclose(ridge_embedding(x, x @ y[:3], x, alpha=0, fit_intercept=False), x @ y[:3])
    zero = ridge_embedding(x, y, np.zeros((1, 3)), fit_intercept=False)
    np.testing.assert_array_equal(zero, np.zeros((1, 2)))
    constant = ridge_embedding(np.ones((10, 3)), y, np.ones((1, 3)), alpha=0)
    np.testing.assert_allclose(constant[0], y.mean(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1}, "alpha"),
        ({"alpha": np.nan}, "alpha"),
        ({"weights": [1, 2]}, "weights"),
        ({"weights": [0] * 10}, "weights"),
        ({"deltas": np.ones((9, 2))}, "10 and `deltas` 9"),
        ({"new_embedding": np.ones((1, 4))}, "3 and `new_embedding` 4"),
    ],
)
def test_ridge_refuses(arguments, message):
    rng = np.random.default_rng(6)
    given = {
        "embedding": rng.random((10, 3)),
        "deltas": rng.random((10, 2)),
        "new_embedding": rng.random((1, 3)),
    }
    with pytest.raises(ValueError, match=message):
        ridge_embedding(**(given | arguments))


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix])
def test_split_half_is_a_partition_that_depends_on_the_seed_only(make):
    x = make(np.arange(1, 22).reshape(7, 3))
    rows = lambda m: sorted((m.toarray() if sp.issparse(m) else m)[:, 0].tolist())  # noqa: E731
    first, second = split_half(x, seed=3)
    assert (first.shape, second.shape) == ((3, 3), (4, 3))
    assert sorted(rows(first) + rows(second)) == rows(x)
    state = np.random.get_state()[1].copy()
    assert rows(split_half(x, seed=3)[0]) == rows(first)
    assert (np.random.get_state()[1] == state).all()
    assert len({tuple(rows(split_half(x, seed=i)[0])) for i in range(20)}) > 5
    with pytest.raises(ValueError, match="at least 4"):
        split_half(x[:3])


@pytest.mark.parametrize("shape", [(60, 12), (12, 60)])
def test_fit_pcs_against_sklearn(shape):
    x = np.random.default_rng(7).normal(2, 1, shape) * np.linspace(1, 4, shape[1])
    ours, theirs = fit_pcs(x, 5), PCA(5, svd_solver="full").fit(x)
    new = np.random.default_rng(8).normal(size=(9, shape[1]))
    np.testing.assert_allclose(np.abs(ours.transform(new)), np.abs(theirs.transform(new)), atol=1e-6)
    np.testing.assert_allclose(ours.transform(sp.csr_matrix(new)), ours.transform(new), atol=1e-9)
    stacked = fit_pcs([sp.csr_matrix(x[:5]), x[5:]], 5)
    np.testing.assert_allclose(stacked.components, ours.components, atol=1e-8)


def test_fit_pcs_has_as_many_components_as_the_data():
    x = np.random.default_rng(9).normal(size=(6, 4))
    assert fit_pcs(x, 50).components.shape == (3, 4)
    with pytest.raises(ValueError, match="at least 1"):
        fit_pcs(x, 0)
    with pytest.raises(ValueError, match="2 genes"):
        fit_pcs(x[:, :1])
