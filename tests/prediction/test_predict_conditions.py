"""Conditions of every kind: combinations, doses, presence matrices, contexts, and how far an answer reaches."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

SHORT = {"vae_max_epochs": 1, "flow_max_epochs": 2}


# ---- a DataFrame of conditions --------------------------------------------------------------------------------------


def test_frame_of_conditions_with_cell_type_and_batch(trained, cells):
    frame = pd.DataFrame(
        {
            "perturbation": ["P1", "P2", "P1"],
            "labels": ["type1", None, "type2"],
            "batch": [None, "batch2", "batch1"],
        }
    )
    result = trained.predict_perturbation(cells, frame)
    types = cells.obs["cell_type"].value_counts()
    assert result.obs["perturbation"].value_counts().to_dict() == {"P1": len(cells), "P2": len(cells)}
    assert len(result) == types["type1"] + len(cells) + types["type2"]
    whole = trained.predict_perturbation(cells, "P1")
    of_type1 = (cells.obs["cell_type"] == "type1").to_numpy()
    np.testing.assert_array_equal(result.X[: types["type1"]], whole.X[of_type1])
    second = slice(types["type1"], types["type1"] + len(cells))
    moved = trained.predict_perturbation(cells, "P2", batch="batch2")
    np.testing.assert_array_equal(result.X[second], moved.X)
    assert set(result.obs["batch"].iloc[second]) == {"batch2"}
    assert result.obs_names.is_unique


def test_own_names_of_the_columns_are_understood(trained, cells):
    one = trained.predict_perturbation(cells, pd.DataFrame({"perturbation": ["P1"], "cell_type": ["type1"]}))
    other = trained.predict_perturbation(cells, pd.DataFrame({"perturbation": ["P1"], "labels": ["type1"]}))
    np.testing.assert_array_equal(one.X, other.X)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"labels": ["type9"]}, r"`labels` 'type9'.*\['type1', 'type2'\].*Close matches"),
        ({"batch": ["b1"]}, r"`batch` 'b1'.*'batch1'"),
        ({"dosage": [1.0]}, "without `dosage_key`"),
    ],
)
def test_conditions_that_are_refused(trained, cells, columns, message):
    with pytest.raises(ValueError, match=message):
        trained.predict_perturbation(cells, pd.DataFrame({"perturbation": ["P1"]} | columns))


def test_cell_type_without_cells_is_refused(trained, cells):
    only = cells[cells.obs["cell_type"] == "type1"].copy()
    with pytest.raises(ValueError, match=r"None of the \d+ cells is of cell type 'type2'"):
        trained.predict_perturbation(only, pd.DataFrame({"perturbation": ["P1"], "labels": ["type2"]}))


# ---- results on disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".h5ad", ".zarr"])
@pytest.mark.parametrize("return_type", ["mean", "counts", "latent"])
def test_result_on_disk_is_that_in_memory(trained, cells, tmp_path, ending, return_type):
    path = tmp_path / f"screen{ending}"
    kwargs = {"perturbation": ["P1", "P2", "control"], "return_type": return_type, "batch_size": 32}
    expected = trained.predict_perturbation(cells, **kwargs)
    returned = trained.predict_perturbation(cells, **kwargs, out=path)
    assert returned.shape == expected.shape
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    read = ad.read_h5ad(path) if ending == ".h5ad" else ad.read_zarr(path)
    dense = [x.toarray() if hasattr(x, "toarray") else x for x in (read.X, expected.X)]
    np.testing.assert_array_equal(*dense)
    np.testing.assert_array_equal(read.obsm["X_cfmvc"], expected.obsm["X_cfmvc"])
    assert read.obs_names.equals(expected.obs_names) and list(read.obs) == list(expected.obs)
    assert read.obs["support"].astype(str).equals(expected.obs["support"].astype(str))
    assert read.uns["cfmvc"]["units"] == expected.uns["cfmvc"]["units"]
    assert read.var_names.equals(expected.var_names)
    first = returned[:5].to_memory() if ending == ".h5ad" else returned[:5]
    values = first.X.toarray() if hasattr(first.X, "toarray") else np.asarray(first.X[:5])
    np.testing.assert_array_equal(values, dense[1][:5])


def test_place_on_disk_that_will_not_do(trained, cells, tmp_path):
    taken = tmp_path / "taken.h5ad"
    taken.write_text("mine")
    for path, error, message in (
        (taken, FileExistsError, "already: remove it or choose another name"),
        (tmp_path / "x.csv", ValueError, r"must end in one of \['.h5ad', '.zarr'\]"),
        (tmp_path / "no" / "x.h5ad", FileNotFoundError, "Make it first"),
    ):
        with pytest.raises(error, match=message):
            trained.predict_perturbation(cells, "P1", out=path)
    assert taken.read_text() == "mine"


@pytest.mark.parametrize("ending", [".h5ad", ".zarr"])
def test_failure_on_the_way_leaves_nothing_behind(trained, cells, tmp_path, ending, monkeypatch):
    calls = []

    def fail_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("lost")
        return original(*args, **kwargs)

    original = trained._predict_request
    monkeypatch.setattr(trained, "_predict_request", fail_at_the_second)
    with pytest.raises(RuntimeError, match="lost"):
        trained.predict_perturbation(cells, ["P1", "P2"], out=tmp_path / f"x{ending}")
    assert list(tmp_path.iterdir()) == []


def test_large_result_in_memory_points_to_the_disk(trained, cells, monkeypatch):
    monkeypatch.setattr("cfmvc_scvi.prediction.predict._LARGE_BYTES", 10_000)
    with pytest.warns(UserWarning, match=r"`out=` writes it to an .h5ad or .zarr file"):
        trained.predict_perturbation(cells, "P1")


# ---- presence matrices --------------------------------------------------------------------------------------------


def as_presence(adata: ad.AnnData) -> ad.AnnData:
    members = adata.obs["perturbation"].astype(str).str.split("+")
    names = ["P2", "P1", "P3"]
    table = pd.DataFrame({name: members.map(lambda m, name=name: int(name in m)) for name in names})
    other = adata.copy()
    del other.obs["perturbation"]
    other.obsm["guides"] = table
    return other


def test_presence_matrix_gives_the_model_of_its_labels(simulate, build, fit, tmp_path):
    adata = simulate()
    by_label = fit(build(adata), **SHORT)
    by_matrix = fit(build(as_presence(adata), {"perturbation_key": "guides"}), **SHORT)
    expected = by_label.predict_perturbation(perturbation=["P1", "P1+P3"])
    found = by_matrix.predict_perturbation(perturbation=["P1", "P3+P1"])
    np.testing.assert_array_equal(found.X, expected.X)
    assert found.obs["perturbation"].unique().tolist() == ["P1", "P3+P1"]
    assert by_matrix.support()["perturbation"].tolist() == by_label.support()["perturbation"].tolist()
    by_matrix.save(tmp_path / "model")
    again = type(by_matrix).load(tmp_path / "model", adata=as_presence(adata))
    np.testing.assert_array_equal(again.predict_perturbation(perturbation=["P1", "P3+P1"]).X, expected.X)


# ---- combinations ---------------------------------------------------------------------------------------------------


def test_combinations_of_three_in_every_order_to_the_last_bit(trained):
    orders = ["P1+P2+P3", "P3+P1+P2", "P2+control+P3+P1", "P1+P1+P3+P2"]
    first, *others = (trained.predict_perturbation(perturbation=label) for label in orders)
    assert np.isfinite(first.X).all()
    for other in others:
        np.testing.assert_array_equal(other.X, first.X)
    assert set(first.obs["support"]) == {"new combination"}
    drawn = [trained.predict_perturbation(perturbation=label, return_type="counts").X for label in orders[:2]]
    assert (drawn[0] != drawn[1]).nnz == 0


def test_labels_with_other_signs_are_not_split(simulate, build, fit):
    adata = simulate(n_pairs=0)
    names = {"P1": "IL-6 + TNF_α", "P2": "a_b", "P3": "β γ"}
    adata.obs["perturbation"] = adata.obs["perturbation"].cat.rename_categories(names)
    model = fit(build(adata, {}), **SHORT)
    assert set(model.vocabulary.names) == set(names.values())
    assert set(model.predict_perturbation(perturbation="IL-6 + TNF_α").obs["support"]) == {"seen"}
    with pytest.raises(ValueError, match="Unknown perturbation 'IL-6'"):
        model.predict_perturbation(perturbation="IL-6")


# ---- doses ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dosed(simulate, build, fit):
    setup = {"combination_delimiter": "+", "dosage_key": "dosage"}
    return fit(build(simulate(n_cells=600, doses=[0.1, 1.0, 10.0]), setup), **SHORT)


def test_dose_zero_is_control_exactly(dosed):
    nothing = dosed.predict_perturbation(perturbation="P1", dosage=0)
    control = dosed.predict_perturbation(perturbation="control")
    np.testing.assert_array_equal(nothing.X, control.X)
    part = dosed.predict_perturbation(perturbation="P1+P2", dosage="1+0")
    np.testing.assert_array_equal(part.X, dosed.predict_perturbation(perturbation="P1", dosage=1).X)


def test_response_is_learned_saved_and_rises(dosed, tmp_path):
    assert set(dosed.dose_response_) == {"P1", "P2", "P3"}
    values = [dosed.vocabulary.response("P1", dose) for dose in (0.0, 0.1, 0.5, 1.0, 10.0)]
    assert values[0] == 0.0 and values[-1] == 1.0 and (np.diff(values) > 0).all()
    dosed.save(tmp_path / "model", save_anndata=True)
    again = type(dosed).load(tmp_path / "model")
    expected = dosed.predict_perturbation(perturbation="P2", dosage=0.5)
    np.testing.assert_array_equal(again.predict_perturbation(perturbation="P2", dosage=0.5).X, expected.X)


def test_doses_are_written_as_they_were_given(dosed, cells):
    frame = pd.DataFrame({"perturbation": ["P2+P1", "P1", "control"], "dosage": ["1+10", 0.5, None]})
    obs = dosed.predict_perturbation(perturbation=frame).obs
    assert list(obs.groupby("perturbation", observed=True, sort=False)["dosage"].unique().map(list)) == [
        ["1+10"],
        ["0.5"],
        ["0"],
    ]
    assert obs.index.is_unique
    numbers = dosed.predict_perturbation(perturbation=frame[1:]).obs["dosage"]
    assert numbers.dtype == float and sorted(numbers.unique()) == [0.0, 0.5]


def test_several_doses_of_one_perturbation(dosed):
    frame = pd.DataFrame({"perturbation": "P1", "dosage": [0.1, 1.0, 3.0]})
    result = dosed.predict_perturbation(perturbation=frame)
    assert result.obs_names.is_unique
    distance = result.obs.groupby("dosage", sort=True)["support_distance"].first().to_numpy()
    assert distance[0] == distance[1] == 0.0 and 0 < distance[2] < 1
    assert set(result.obs["support"]) == {"seen"}  # the perturbation was; the distance tells of the dose


def test_dose_beyond_training_is_said(dosed):
    with pytest.warns(UserWarning, match=r"above the highest.*P1 at 100 \(highest 10\).*extrapolated"):
        dosed.predict_perturbation(perturbation="P1", dosage=100)


def test_default_conditions_are_those_of_training(dosed):
    obs = dosed.predict_perturbation().obs
    assert (
        set(zip(obs["perturbation"].astype(str), obs["dosage"], strict=True))
        == {(label, dose) for label in ("P1", "P2", "P3", "P1+P2") for dose in (0.1, 1.0, 10.0)}
        or len(set(obs["dosage"])) == 3
    )
    assert "dosage" in dosed.support() and dosed.support()["n_cells"].sum() == 600


# ---- covariates -------------------------------------------------------------------------------------------------


def test_time_as_a_continuous_covariate(simulate, build, fit):
    adata = simulate()
    adata.obs["hours"] = np.where(adata.obs["perturbation"] == "control", 0.0, 6.0)
    model = fit(build(adata, {"combination_delimiter": "+", "continuous_covariate_keys": ["hours"]}), **SHORT)
    control = adata[adata.obs["perturbation"] == "control"].copy()
    at_zero = model.predict_perturbation(control, "P1").X
    control.obs["hours"] = 6.0
    assert not np.array_equal(model.predict_perturbation(control, "P1").X, at_zero)
    np.testing.assert_array_equal(model.predict_perturbation(control, "control").X, control.X.toarray())
