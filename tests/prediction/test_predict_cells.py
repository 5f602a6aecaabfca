"""Prediction: from which cells, and what must not change it."""

from __future__ import annotations

import gc
import weakref

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

RETURN_TYPES = ["mean", "counts", "lognorm", "latent"]


def dense(adata) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


# ---- which cells --------------------------------------------------------------------------------------------------


def test_nothing_is_written_into_the_data(trained, cells):
    for given, use in ((cells, cells), (None, trained.adata)):
        before = use.copy()
        uns = dict(use.uns)
        trained.predict_perturbation(given, perturbation=["P1", "control"], batch="batch1", return_type="counts")
        trained.get_latent_representation(given)
        trained.get_velocity(given, "P1")
        assert (use.X != before.X).nnz == 0
        pd.testing.assert_frame_equal(use.obs, before.obs)
        pd.testing.assert_frame_equal(use.var, before.var)
        assert list(use.uns) == list(uns) and all(use.uns[key] is uns[key] for key in uns)
        assert set(use.obsm) == set(before.obsm) and set(use.layers) == set(before.layers)


def test_new_data_without_setup(trained, cells, predicted):
    np.testing.assert_array_equal(trained.predict_perturbation(cells, perturbation="P1").X, predicted.X)


def test_a_view_may_be_predicted(trained, predicted):
    view = trained.adata[trained.adata.obs["perturbation"] == "control"]
    np.testing.assert_array_equal(trained.predict_perturbation(view, perturbation="P1").X, predicted.X)
    assert view.is_view


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_matrix, lambda x: x.toarray()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_containers_of_new_counts(trained, cells, predicted, container, dtype):
    new = cells.copy()
    new.X = container(cells.X).astype(dtype)
    np.testing.assert_array_equal(trained.predict_perturbation(new, perturbation="P1").X, predicted.X)


@pytest.mark.parametrize("return_type", RETURN_TYPES)
def test_genes_are_matched_by_name(trained, cells, return_type):
    expected = trained.predict_perturbation(cells, perturbation="P1", return_type=return_type)
    backwards = cells[:, ::-1].copy()
    extra = ad.concat([cells, cells], axis=1, index_unique="-")
    extra.var_names = [f"{name}_extra" for name in cells.var_names] + cells.var_names.tolist()
    extra.obs = cells.obs
    for new in (backwards, extra):
        new.obsm["spatial"] = cells.obsm["spatial"]
        result = trained.predict_perturbation(new, perturbation="P1", return_type=return_type)
        np.testing.assert_array_equal(dense(result), dense(expected))
        assert result.var_names.equals(expected.var_names)


def test_missing_or_repeated_genes(trained, cells):
    with pytest.raises(ValueError, match=r"2 of the 60 genes.*gene"):
        trained.predict_perturbation(cells[:, 2:].copy(), perturbation="P1")
    twice = ad.concat([cells, cells], axis=1)
    twice.obs, twice.obsm["spatial"] = cells.obs, cells.obsm["spatial"]
    with pytest.raises(ValueError, match="not unique"):
        trained.predict_perturbation(twice, perturbation="P1")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("cell_type", "type9", r"1 cell type level\(s\).*'type9'.*Close matches:.*'type1'"),
        ("batch", "batch9", r"1 batch level\(s\).*'batch9'.*Close matches:.*'batch1'"),
        ("cell_type", None, "the cell type, is missing for 1 cells: give each one of"),
    ],
)
def test_unknown_levels(trained, cells, column, value, message):
    new = cells.copy()
    new.obs[column] = new.obs[column].astype(object)
    new.obs.iloc[4, new.obs.columns.get_loc(column)] = value
    with pytest.raises(ValueError, match=message):
        trained.predict_perturbation(new, perturbation="P1")


def test_missing_columns(trained, cells, predicted):
    new = cells.copy()
    del new.obs["perturbation"]  # what is predicted needs no column
    np.testing.assert_array_equal(trained.predict_perturbation(new, perturbation="P1").X, predicted.X)
    del new.obs["batch"]
    with pytest.raises(KeyError, match=r"'batch' is not in adata\.obs"):
        trained.predict_perturbation(new, perturbation="P1")
    result = trained.predict_perturbation(new, perturbation="P1", batch="batch2")
    in_batch_2 = (cells.obs["batch"] == "batch2").to_numpy()
    assert set(result.obs["batch"]) == {"batch2"}
    np.testing.assert_allclose(result.X[in_batch_2], predicted.X[in_batch_2], rtol=1e-3, atol=1e-4)
    del new.obs["cell_type"]
    with pytest.raises(KeyError, match=r"'cell_type' is not in adata\.obs"):
        trained.predict_perturbation(new, perturbation="P1", batch="batch2")
    without_place = cells.copy()
    del without_place.obsm["spatial"]
    with pytest.raises(KeyError, match=r"'spatial' is not in adata\.obsm"):
        trained.predict_perturbation(without_place, perturbation="P1")


def test_new_counts_are_checked(trained, cells):
    new = cells.copy()
    new.X = new.X * 0.5
    with pytest.raises(ValueError, match="fractional"):
        trained.predict_perturbation(new, perturbation="P1")
    new.X = sparse.csr_array(cells.X)
    with pytest.raises(TypeError, match=r"csr_matrix\("):
        trained.predict_perturbation(new, perturbation="P1")


def test_decoding_in_another_batch(trained, cells, predicted):
    result = trained.predict_perturbation(perturbation="P1", batch="batch2")
    in_batch_2 = (cells.obs["batch"] == "batch2").to_numpy()
    assert set(result.obs["batch"]) == {"batch2"} and result.uns["cfmvc"]["batch"] == "batch2"
    np.testing.assert_allclose(result.X[in_batch_2], predicted.X[in_batch_2], rtol=1e-3, atol=1e-4)
    assert np.abs(result.X[~in_batch_2] - predicted.X[~in_batch_2]).max() > 1e-2
    np.testing.assert_array_equal(result.obsm["X_cfmvc"], predicted.obsm["X_cfmvc"])


def test_indices(trained, cells, predicted):
    rows = [50, 3, 41, 3]
    result = trained.predict_perturbation(cells, perturbation="P1", indices=rows)
    assert result.obs["source_cell"].tolist() == cells.obs_names[rows].tolist()
    np.testing.assert_allclose(result.X, predicted.X[rows], rtol=1e-3, atol=1e-4)
    assert result.obs_names.is_unique
    mask = (cells.obs["cell_type"] == "type2").to_numpy()
    masked = trained.predict_perturbation(cells, perturbation="P1", indices=mask)
    np.testing.assert_allclose(masked.X, predicted.X[mask], rtol=1e-3, atol=1e-4)
    perturbed = trained.predict_perturbation(perturbation="P1", indices=[0, 1, 2])
    assert perturbed.obs["source_cell"].tolist() == trained.adata.obs_names[:3].tolist()
    with pytest.raises(IndexError, match="mask of length 3"):
        trained.predict_perturbation(cells, perturbation="P1", indices=[True, False, True])
    with pytest.raises(IndexError, match="there are 75 cells"):
        trained.predict_perturbation(cells, perturbation="P1", indices=[0, 75])


# ---- what must not change the result -------------------------------------------------------------------------------


def assert_same_values(result: np.ndarray, expected: np.ndarray, return_type: str) -> None:
    """Every return type to the bit: chunks of a few cells, which would round differently, do not occur."""
    np.testing.assert_array_equal(result, expected, err_msg=return_type)


@pytest.mark.parametrize("source", ["trained", "trained_noise"])
@pytest.mark.parametrize("return_type", RETURN_TYPES)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_same_seed_same_output_for_any_batch_size(request, source, return_type, n_samples):
    model = request.getfixturevalue(source)
    outputs = [
        dense(
            model.predict_perturbation(
                perturbation=["P1", "P1+P3"], return_type=return_type, n_samples=n_samples, batch_size=size
            )
        )
        for size in (64, 64, 1000, 7)
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    for output in outputs[2:]:
        assert_same_values(output, outputs[0], return_type)


@pytest.mark.parametrize("return_type", RETURN_TYPES)
@pytest.mark.parametrize("n_samples", [1, 3])
def test_other_cells_do_not_matter(trained, cells, return_type, n_samples):
    arguments = {"perturbation": "P1", "return_type": return_type, "n_samples": n_samples}
    expected = trained.predict_perturbation(cells, **arguments)
    for rows in (np.arange(75)[::-1], np.array([30, 2, 70]), np.array([9])):
        result = trained.predict_perturbation(cells[rows].copy(), **arguments)
        wanted = np.concatenate([rows + 75 * draw for draw in range(expected.n_obs // 75)])
        assert_same_values(dense(result), dense(expected)[wanted], return_type)
        assert result.obs["source_cell"].tolist() == expected.obs["source_cell"].iloc[wanted].tolist()


def test_other_conditions_do_not_matter(trained, cells):
    for return_type in RETURN_TYPES:
        several = trained.predict_perturbation(perturbation=["P2", "P1"], return_type=return_type)
        alone = trained.predict_perturbation(perturbation="P1", return_type=return_type)
        np.testing.assert_array_equal(dense(several)[75:], dense(alone))


def test_global_random_state_is_left_alone(trained):
    before = np.random.get_state()[1].copy()
    trained.predict_perturbation(perturbation="P1", return_type="counts", n_samples=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_repeated_cell_names_get_draws_of_their_own(trained, cells):
    twice = cells[[0, 0, 0]].copy()
    assert not twice.obs_names.is_unique
    drawn = dense(trained.predict_perturbation(twice, perturbation="P1+P3", return_type="counts", n_samples=5))
    assert len(np.unique(drawn, axis=0)) > 5
    mean = trained.predict_perturbation(twice, perturbation="P1").X
    np.testing.assert_array_equal(mean[0], mean[2])


def test_data_are_freed_after_predictions(trained, cells):
    references = []
    for _ in range(20):
        new = cells.copy()
        references.append(weakref.ref(new))
        trained.predict_perturbation(new, perturbation="P1", indices=[0, 1, 2])
        trained.get_latent_representation(new)
        del new
    gc.collect()
    assert [reference() for reference in references] == [None] * 20


# ---- cells of an unknown type ----------------------------------------------------------------------------------


def relabelled(cells, name="type9"):
    other = cells.copy()
    other.obs["cell_type"] = other.obs["cell_type"].astype(str).replace("type2", name)
    return other


def test_unknown_cell_type_is_refused_with_what_to_do(trained, cells):
    with pytest.raises(ValueError, match=r"cell type level.*\['type9'\].*Known:.*unknown_labels='nearest'"):
        trained.predict_perturbation(relabelled(cells), "P1")
    with pytest.raises(ValueError, match="`unknown_labels` 'skip'"):
        trained.predict_perturbation(cells, "P1", unknown_labels="skip")


def test_nearest_cell_type_stands_for_an_unknown_one_when_asked(trained, cells):
    other = relabelled(cells)
    result = trained.predict_perturbation(other, ["P1", "control"], unknown_labels="nearest")
    unknown = (result.obs["cell_type"] == "type9").to_numpy()
    assert set(result.obs["support"][unknown]) == {"new context"} and set(result.obs["support"][~unknown]) == {"seen"}
    assert (result.obs["nearest_label"][~unknown] == result.obs["cell_type"][~unknown]).all()
    guessed = result.obs["nearest_label"][unknown]
    assert (guessed == "type2").mean() > 0.9  # the hidden truth: the types differ in 16 % of the genes
    truth = trained.predict_perturbation(cells, ["P1", "control"])
    right = np.flatnonzero(unknown)[(guessed == "type2").to_numpy()]
    np.testing.assert_array_equal(result.X[right], truth.X[right])
    alone = trained.predict_perturbation(other[5:6].copy(), "P1", unknown_labels="nearest")
    np.testing.assert_array_equal(alone.X[0], result.X[5])


def test_cells_without_the_column_of_cell_types(trained, cells):
    bare = cells.copy()
    del bare.obs["cell_type"]
    with pytest.raises(KeyError, match=r"'cell_type' is not in adata.obs.*unknown_labels='nearest'"):
        trained.predict_perturbation(bare, "P1")
    result = trained.predict_perturbation(bare, "P1", unknown_labels="nearest")
    assert set(result.obs["support"]) == {"new context"}
    assert (result.obs["nearest_label"].to_numpy() == cells.obs["cell_type"].to_numpy()).mean() > 0.9


def test_known_types_are_left_alone(trained, cells):
    result = trained.predict_perturbation(cells, "P1", unknown_labels="nearest")
    assert "nearest_label" not in result.obs
    np.testing.assert_array_equal(result.X, trained.predict_perturbation(cells, "P1").X)
