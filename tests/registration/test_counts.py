"""The matrix of counts: what is refused, and what one pass finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from cfmvc_scvi import CFMVC
from cfmvc_scvi.registration import counts as counts_module
from cfmvc_scvi.registration.counts import check_counts


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("layer", [None, "counts"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(0.5, "fractional"), (-1.0, "negative"), (np.nan, "missing or infinite"), (np.inf, "missing or infinite")],
)
def test_what_is_not_a_count_is_refused(simulated, container, layer, value, message):
    counts = simulated.X.toarray()
    counts[7, 3] = value
    where = "adata.X" if layer is None else "adata.layers['counts']"
    if layer is None:
        simulated.X = container(counts)
    else:
        simulated.layers[layer] = container(counts)
    with pytest.raises(ValueError, match=message) as error:
        CFMVC.setup_anndata(simulated, layer=layer)
    assert where in str(error.value)


@pytest.mark.parametrize("block", [1, 7, 100, 2**24])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_the_summary_does_not_depend_on_blocks(monkeypatch, block, container):
    monkeypatch.setattr(counts_module, "_BLOCK", block)
    x = np.random.default_rng(0).poisson(0.7, (23, 11)).astype(np.float32)
    x[4, 5] = 0.5
    found = check_counts(container(x), "x", allow_noncounts=True, warn=False)
    np.testing.assert_array_equal(found.rows, x.sum(axis=1, dtype=float))
    np.testing.assert_array_equal(found.columns, x.sum(axis=0, dtype=float))
    assert (found.largest, found.n_fractional) == (x.max(), 1)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_counts_that_are_too_large_or_none_at_all(container):
    with pytest.raises(ValueError, match=r"counts up to 16777217"):
        check_counts(container(np.array([[2.0**24 + 1, 0.0]])), "x")
    assert check_counts(container(np.array([[2.0**24, 0.0]])), "x").largest == 2**24
    with pytest.raises(ValueError, match="all its values are zero"):
        check_counts(container(np.zeros((2, 2))), "x")
    with pytest.raises(ValueError, match=r"its shape is \(0, 3\)"):
        check_counts(container(np.zeros((0, 3))), "x")


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (np.log1p([[1.0, 5.0]]), "log-transformed"),
        ([[30.5, 69.5], [99.5, 0.5]], r"normalised \(every cell sums to 100\)"),
    ],
)
def test_what_fractional_values_look_like(x, what):
    with pytest.raises(ValueError, match=f"looks {what}"):
        check_counts(np.asarray(x), "x")
    with pytest.warns(UserWarning, match=f"looks {what}"):
        found = check_counts(np.asarray(x), "x", allow_noncounts=True)
    assert found.n_fractional == np.asarray(x).size
