"""Hostile and odd input at the entrance: refused with the remedy, warned about by name, or taken without a word."""

from __future__ import annotations

import datetime
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfmvc_scvi import CFMVC
from cfmvc_scvi.registration.checks import warn_of_design
from cfmvc_scvi.registration.counts import check_counts
from cfmvc_scvi.registration.vocabulary import Condition


def setup(adata, **arguments):
    """Our own warnings of a registration."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CFMVC.setup_anndata(adata, **({"combination_delimiter": "+"} | arguments))
    return [str(w.message) for w in caught if "cfmvc_scvi" in w.filename]


def dense(adata):
    adata.X = adata.X.toarray().astype(np.float32)
    return adata.X


def lognorm(adata):
    x = dense(adata)
    adata.X = np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e4)


def set_names(adata, which):
    names = list(getattr(adata, which))
    names[1] = names[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(adata, which, names)


def fill(adata, key, value, n=4):
    adata.obs[key] = adata.obs[key].astype(object)
    adata.obs.iloc[:n, adata.obs.columns.get_loc(key)] = value


def put(adata, key, values):
    adata.obs[key] = values


def set_x(adata, value):
    adata.X = value


def donors(adata, of_perturbed, of_control):
    """Donors by turns in either arm."""
    control = (adata.obs["perturbation"] == "control").to_numpy()
    adata.obs["donor"] = np.where(control, np.resize(of_control, len(control)), np.resize(of_perturbed, len(control)))


REFUSED = {
    "normalised": (lambda a: set_x(a, dense(a) / np.maximum(a.X.sum(1, keepdims=True), 1) * 1e4), r"every cell sums to 1"),  # noqa: E501
    "log-normalised": (lognorm, r"log-transformed \(largest value .*`layer=`.*allow_noncounts=True"),
    "scaled": (lambda a: set_x(a, dense(a) - a.X.mean(0)), "negative values .*scaled or batch-corrected"),
    "beyond float32": (lambda a: dense(a).__setitem__((3, 4), 3e7), "counts up to 30000000; single precision"),
    "all zero": (lambda a: set_x(a, a.X * 0), "all its values are zero"),
    "no genes": (lambda a: a[:, :0].copy(), "empty: it has 300 cells and 0 genes"),
    "no cells": (lambda a: a[:0].copy(), "empty: it has 0 cells and 60 genes"),
    "gene names": (lambda a: set_names(a, "var_names"), r"1 names occur more than once.*var_names_make_unique\(\)"),
    "empty category": (lambda a: fill(a, "cell_type", " "), r"'cell_type'\] is ' ' for 4 cells, an empty name"),
    "missing as text": (lambda a: fill(a, "batch", "nan"), r"'batch'\] is 'nan' for 4 cells.*written as text"),
    "1 and '1'": (lambda a: put(a, "batch", [1, "1"] * 150), r"read the same: \['1'\].*astype\(str\)"),
    "text coordinates": (lambda a: a.obsm.__setitem__("spatial", a.obsm["spatial"].astype(str)), "must be numbers of shape"),  # noqa: E501
    "float16": (lambda a: set_x(a, a.X.toarray().astype(np.float16)), r"float16.*astype\('float32'\)"),
    "boolean": (lambda a: set_x(a, a.X.toarray() > 0), "values of type bool, which are not counts"),
    "no X": (lambda a: set_x(a, None), r"adata.X is None: pass `layer=`, one of \['true_mean'\]"),
    "csc_array": (lambda a: set_x(a, sparse.csc_array(a.X)), r"csc_array.*csr_matrix\("),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_remedy(simulated, name):
    change, message = REFUSED[name]
    changed = change(simulated)
    with pytest.raises((ValueError, TypeError), match=message):
        CFMVC.setup_anndata(simulated if changed is None else changed)


def test_containers_that_are_not_in_memory():
    class Lazy:
        shape, dtype = (3, 2), np.dtype("f4")

    with pytest.raises(TypeError, match=r"Lazy, which is neither in memory.*to_memory\(\)"):
        check_counts(Lazy(), "adata.X")
    with pytest.raises(TypeError, match="masked array"):
        check_counts(np.ma.masked_array(np.ones((2, 2)), [[0, 1], [0, 0]]), "adata.X")
    with pytest.raises(TypeError, match=r"coo_matrix: convert it with"):
        check_counts(sparse.coo_matrix(np.eye(3)), "adata.X")
    with pytest.raises(TypeError, match="`adata` is a DataFrame; an AnnData is needed"):
        CFMVC.setup_anndata(pd.DataFrame())


def zero(adata, rows=slice(None), columns=slice(None)):
    dense(adata)[rows, columns] = 0


def single(adata, key, name):
    fill(adata, key, name, n=1)


def confound(adata):
    adata.obs["batch"] = np.where(adata.obs["perturbation"] == "control", "monday", "tuesday")


WARNED = {
    "empty cells": (lambda a: zero(a, slice(5)), {}, r"5 cells have no counts in adata.X, e.g. \['cell1'"),
    "empty genes": (lambda a: zero(a, columns=slice(3)), {}, r"3 genes have no counts.*filter_genes"),
    "cell names": (lambda a: set_names(a, "obs_names"), {}, r"1 of the names in adata.obs_names.*obs_names_make_unique"),  # noqa: E501
    "measurement": (lambda a: put(a, "batch", np.arange(300.0)), {}, "looks like a measurement"),
    "one cell in a batch": (lambda a: single(a, "batch", "lost"), {}, r"levels with one cell: \['lost'\]"),
    "one cell in a perturbation": (lambda a: single(a, "perturbation", "rare"), {}, r"have one cell: \['rare'\]"),
    "confounded": (confound, {}, r"4 perturbations are confounded.*'P1' \(only in \['tuesday'\]\)"),
    "batches that are cell types": (
        lambda a: put(a, "batch", np.where(a.obs["cell_type"] == "type1", "monday", "tuesday")),
        {},
        r"'batch'\] falls into 2 groups that have no cell type .*'monday'\] \| \['tuesday'",
    ),
    "a sample for each condition": (
        lambda a: donors(a, ["d1"], ["d2"]), {"sample_key": "donor"}, r"confounded with .*'donor'\]: \['P1'",
    ),
    "no replicates": (lambda a: donors(a, ["d1"], ["d1"]), {"sample_key": "donor"}, "No condition has two samples"),
    "no control in a type": (
        lambda a: a[~((a.obs["cell_type"] == "type1") & (a.obs["perturbation"] == "control"))].copy(),
        {},
        r"no control cells: \['type1'\]",
    ),
    "same coordinates": (lambda a: a.obsm["spatial"].__setitem__(5, a.obsm["spatial"][6]), {}, "2 of 300 cells .*share"),  # noqa: E501
    "factor for library": (
        lambda a: put(a, "f", 1.0), {"size_factor_key": "f"}, "300 of 300 cells.*not a normalisation factor",
    ),
    "noncounts": (lognorm, {"allow_noncounts": True}, "negative binomial is not the distribution of such data"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_warned_about_by_name(simulated, name):
    change, arguments, message = WARNED[name]
    changed = change(simulated)
    with pytest.warns(UserWarning, match=message):
        CFMVC.setup_anndata(simulated if changed is None else changed, combination_delimiter="+", **arguments)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.float32, np.float64])
def test_good_data_pass_without_a_word(simulated, dtype):
    simulated.X = np.minimum(simulated.X.toarray(), 127).astype(dtype)
    for key in ("perturbation", "batch", "cell_type"):
        simulated.obs[key] = simulated.obs[key].astype("category").cat.add_categories("never used")
    assert setup(simulated) == []


def test_perturbations_measured_with_control_in_one_batch_are_not_confounded(simulated):
    """P1 in a batch without control, but also in one with control: the batch effect can be told."""
    is_p1 = (simulated.obs["perturbation"] == "P1").to_numpy()
    batch = np.where(np.cumsum(is_p1) % 2, "a", "b")
    simulated.obs["batch"] = np.where(is_p1 & (batch == "a"), "p1 alone", "rest")
    assert setup(simulated) == []


def test_samples_pass_and_are_kept(simulated):
    donors(simulated, ["d1", "d2"], ["d2", "d3"])
    assert setup(simulated, sample_key="donor") == []
    model = CFMVC(simulated, n_hidden=4, n_hidden_flow=4)
    assert model.setup_keys.sample_key == "donor"
    cells = model._reader.read(simulated)
    assert len(set(zip(cells.sample, simulated.obs["donor"], strict=True))) == 3
    np.testing.assert_array_equal(cells.take(np.array([5, 2])).sample, cells.sample[[5, 2]])
    bare = simulated.copy()
    del bare.obs["donor"]
    assert model._reader.read(bare).sample is None  # cells to predict need no sample


def test_samples_are_checked_like_other_categories(simulated):
    donors(simulated, ["d1", "d2"], ["d2", " "])
    with pytest.raises(ValueError, match="'donor'\\] is ' '"):
        setup(simulated, sample_key="donor")
    fill(simulated, "donor", np.nan)
    with pytest.raises(ValueError, match="'donor'\\] is missing for 4 cells"):
        setup(simulated, sample_key="donor")
    with pytest.raises(KeyError, match="`sample_key` 'Donor' is not in adata.obs. Close matches: \\['donor'\\]"):
        setup(simulated, sample_key="Donor")


def test_a_perturbation_without_any_control_cell_is_warned_about(simulated):
    setup(simulated)
    keys = CFMVC(simulated, n_hidden=4, n_hidden_flow=4).setup_keys
    with pytest.warns(UserWarning, match="No cell is control"):
        warn_of_design(
            simulated, keys, np.ones(300, dtype=int), [Condition("control"), Condition("P1", ("P1",), (1.0,))]
        )


# ---- values that are not counts -----------------------------------------------------------------------------------


def test_noncounts_stay_allowed_in_saved_models(simulated, build, fit, tmp_path):
    lognorm(simulated)
    with pytest.warns(UserWarning, match="negative binomial is not"):
        model = fit(build(simulated, {"combination_delimiter": "+", "allow_noncounts": True}), vae_max_epochs=1)
    expected = model.get_latent_representation()
    model.save(str(tmp_path / "model"))
    loaded = CFMVC.load(str(tmp_path / "model"), adata=simulated.copy())
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)
    assert loaded.setup_keys.allow_noncounts
    assert np.isfinite(loaded.predict_perturbation(perturbation="P1").X).all()
    with pytest.raises(ValueError, match="these cells have fractional values: choose 'mean'"):
        loaded.predict_perturbation(perturbation="P1", return_type="counts")


def test_the_log_normalised_sections(real_data):
    adata = real_data("moffitt2018_merfish")
    keys = {"perturbation_key": adata.obs.columns[0], "control_group": str(adata.obs.iloc[0, 0])}
    keys |= {"batch_key": None, "labels_key": None}
    with pytest.raises(ValueError, match="looks log-transformed|looks normalised"):
        CFMVC.setup_anndata(adata, **keys)
    with pytest.warns(UserWarning, match="negative binomial is not"):
        CFMVC.setup_anndata(adata, allow_noncounts=True, **keys)


# ---- new data -------------------------------------------------------------------------------------------------------


def test_new_data_with_missing_categories(trained):
    new = trained.adata.copy()
    new.obs["cell_type"] = new.obs["cell_type"].astype(object)
    new.obs.iloc[:2, new.obs.columns.get_loc("cell_type")] = np.nan
    for use in (trained.get_latent_representation, trained.predict_perturbation, trained.get_elbo):
        with pytest.raises(ValueError, match=r"'cell_type'\], the cell type, is missing for 2 cells: give each one of"):
            use(new)


def test_new_cells_without_counts(trained):
    new = trained.adata.copy()
    dense(new)[:2] = 0
    with pytest.warns(UserWarning, match=r"2 cells have no counts in the model's genes, e.g. \['cell1', 'cell2'\]"):
        trained.predict_perturbation(new, "P1", indices=[0, 1, 5])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained.predict_perturbation(new, "P1", indices=[5])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, "p2"], r"text beside values of type int.*astype\(str\)"),
        ([True, "p2"], "text beside values of type bool"),
        ([pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")], r"holds dates, such as 2024-01-01.*astype\(str\)"),
        ([datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)], "holds dates"),
        (["p1", "p1 "], "with blanks around them"),
    ],
)
@pytest.mark.parametrize("key", ["batch", "cell_type", "plate"])
def test_types_that_make_no_category(simulated, values, says, key):
    simulated.obs[key] = pd.Series(values * (simulated.n_obs // 2), simulated.obs_names)
    setup = {"categorical_covariate_keys": "plate"} if key == "plate" else {}
    with pytest.raises(ValueError, match=f"adata.obs\\['{key}'\\].*{says}"):
        CFMVC.setup_anndata(simulated, **setup)
