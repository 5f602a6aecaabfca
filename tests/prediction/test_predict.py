"""Prediction: what comes back, for which perturbations, and whether it is right."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.data import counterfactual_mean
from cfmvc_scvi.prediction.request import default_solver

SOLVERS = ["euler", "midpoint", "rk4", "adaptive"]
RETURN_TYPES = ["mean", "counts", "lognorm", "latent"]


def dense(adata) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


# ---- the result -----------------------------------------------------------------------------------------------


def test_rows_columns_and_annotations(trained, cells, predicted):
    assert predicted.shape == cells.shape
    pd.testing.assert_frame_equal(predicted.var, trained.adata.var)
    assert predicted.obs["source_cell"].tolist() == cells.obs_names.tolist()
    assert set(predicted.obs["perturbation"]) == {"P1"}
    assert predicted.obs_names.is_unique and not set(predicted.obs_names) & set(cells.obs_names)
    for column in ("cell_type", "batch", "library_size"):
        assert predicted.obs[column].tolist() == cells.obs[column].tolist()
    assert not [name for name in predicted.obs if name.startswith("_scvi")]
    assert predicted.obsm["X_cfmvc"].shape == (cells.n_obs, 6)
    assert not np.allclose(predicted.obsm["X_cfmvc"], trained.get_latent_representation(cells))


def test_what_the_call_was_is_kept(trained):
    call = trained.predict_perturbation(perturbation=["P1", "P2"], seed=5, solver="rk4", n_steps=3).uns["cfmvc"]
    assert call["units"] == "expected counts at each cell's own library size"
    assert (call["return_type"], call["seed"], call["solver"], call["n_steps"]) == ("mean", 5, "rk4", 3)
    assert (list(call["perturbations"]), call["batch"]) == (["P1", "P2"], "own")
    assert set(call["versions"]) == {"cfmvc_scvi", "scvi-tools", "torch"}


@pytest.mark.parametrize("return_type", RETURN_TYPES)
@pytest.mark.parametrize("solver", ["midpoint", "adaptive"])
def test_result_is_written_to_h5ad_and_read_back(trained, tmp_path, return_type, solver):
    result = trained.predict_perturbation(
        perturbation=["P1", "P1+P3"], return_type=return_type, solver=solver, n_samples=2
    )
    result.write_h5ad(tmp_path / "predicted.h5ad")
    read = ad.read_h5ad(tmp_path / "predicted.h5ad")
    np.testing.assert_array_equal(dense(read), dense(result))
    assert read.obs["support"].tolist() == result.obs["support"].tolist()
    assert read.obs["source_cell"].tolist() == result.obs["source_cell"].tolist()
    assert read.uns["cfmvc"]["units"] == result.uns["cfmvc"]["units"]
    assert list(read.uns["cfmvc"]["perturbations"]) == ["P1", "P1+P3"]
    assert dict(read.uns["cfmvc"]["versions"]) == result.uns["cfmvc"]["versions"]


def test_mean(predicted):
    assert isinstance(predicted.X, np.ndarray) and predicted.X.dtype == np.float32
    assert np.isfinite(predicted.X).all() and predicted.X.min() >= 0


def test_counts(trained, cells, predicted):
    drawn = trained.predict_perturbation(perturbation="P1", return_type="counts")
    assert sparse.isspmatrix_csr(drawn.X)
    values = dense(drawn)
    assert (values == np.round(values)).all() and values.min() >= 0 and values.max() > 1
    assert "negative binomial" in drawn.uns["cfmvc"]["units"]
    # drawn, not rounded means
    assert (values != np.round(predicted.X)).mean() > 0.05
    other = trained.predict_perturbation(perturbation="P1", return_type="counts", seed=1)
    assert (values != dense(other)).any()
    many = trained.predict_perturbation(perturbation="P1", return_type="counts", n_samples=40)
    assert many.n_obs == 40 * cells.n_obs and many.obs_names.is_unique
    np.testing.assert_array_equal(dense(many)[: cells.n_obs], values)
    totals = dense(many).reshape(40, cells.n_obs, -1).mean(axis=(0, 1))
    assert np.corrcoef(totals, predicted.X.mean(axis=0))[0, 1] > 0.98


def test_lognorm(trained, cells, predicted):
    lognorm = trained.predict_perturbation(perturbation="P1", return_type="lognorm")
    library = np.asarray(cells.X.sum(axis=1)).ravel()
    [request] = trained._requests("P1", None, None)
    labels = np.array([trained.cell_types.index(label) for label in cells.obs["cell_type"]])
    factor = trained.calibration_.correct(request.condition, labels, default_solver(), rates=False).count_scale
    assert (factor != 1.0).any()  # the cells are shallow
    expected = np.log1p(predicted.X / factor[labels] / library[:, None] * 1e4)
    assert lognorm.X.dtype == np.float32
    np.testing.assert_allclose(lognorm.X, expected, rtol=1e-5, atol=1e-6)
    assert "log1p" in lognorm.uns["cfmvc"]["units"]


def test_latent(trained, predicted):
    latent = trained.predict_perturbation(perturbation="P1", return_type="latent")
    assert latent.shape == (predicted.n_obs, 6)
    np.testing.assert_array_equal(latent.X, predicted.obsm["X_cfmvc"])
    np.testing.assert_array_equal(latent.X, latent.obsm["X_cfmvc"])


@pytest.mark.parametrize("return_type", ["mean", "lognorm", "latent"])
def test_samples_are_averaged_over_the_posterior(trained, return_type):
    one, three, again, other = (
        dense(trained.predict_perturbation(perturbation="P1", return_type=return_type, n_samples=n, seed=seed))
        for n, seed in ((1, 0), (3, 0), (3, 0), (3, 1))
    )
    assert one.shape == three.shape
    np.testing.assert_array_equal(three, again)
    assert not np.array_equal(one, three) and not np.array_equal(three, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"return_type": "median"}, r"`return_type` 'median'.*'mean'"),
        ({"n_samples": 0}, "`n_samples` is 0"),
        ({"solver": "heun"}, r"`solver` 'heun'.*midpoint"),
        ({"solver": "adaptive", "n_steps": 5}, "leave `n_steps`"),
        ({"n_steps": 0}, "`n_steps` is 0"),
        ({"batch": "batch9"}, r"`batch` 'batch9'.*batch1"),
        ({"perturbation": []}, "`perturbation` is empty"),
        ({"indices": []}, "no cells"),
        ({"dosage": 1.0}, "without `dosage_key`"),
    ],
)
def test_arguments_that_do_not_fit(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained.predict_perturbation(**({"perturbation": "P1"} | arguments))


def test_gene_annotations_may_have_gaps(simulated, build, fit):
    simulated.var["length"] = np.where(np.arange(60) < 5, np.nan, 1.0)
    model = fit(build(simulated), vae_max_epochs=1, flow_max_epochs=1)
    pd.testing.assert_frame_equal(model.predict_perturbation(indices=[0]).var, simulated.var)


# ---- control -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["trained", "trained_noise"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_control_is_the_identity(request, source, solver):
    model = request.getfixturevalue(source)
    observed = model.adata.X.toarray()
    indices = np.arange(model.adata.n_obs)
    for samples in (1, 3):
        result = model.predict_perturbation(
            perturbation="control", indices=indices, solver=solver, batch_size=64, n_samples=samples
        )
        assert np.abs(result.X - observed).max() == 0.0
    lognorm = model.predict_perturbation(perturbation="control", indices=indices, solver=solver, return_type="lognorm")
    np.testing.assert_array_equal(lognorm.X, lognorm_expression(observed, observed.sum(axis=1)))
    counts = model.predict_perturbation(perturbation="control", indices=indices, solver=solver, return_type="counts")
    np.testing.assert_array_equal(dense(counts), observed)
    latent = model.predict_perturbation(
        perturbation="control", indices=indices, solver=solver, return_type="latent", batch_size=128
    )
    np.testing.assert_array_equal(latent.X, model.get_latent_representation(batch_size=128))
    assert set(result.obs["support"]) == {"seen"}


def test_perturbation_moves_the_cells(trained, trained_noise, cells):
    for model in (trained, trained_noise):
        for label in ("P1", "P2", "P3", "P1+P3"):
            assert np.abs(model.predict_perturbation(perturbation=label).X - cells.X.toarray()).max() > 0.1


@pytest.mark.parametrize("source", ["trained", "trained_noise"])
def test_solvers_agree_with_many_steps(request, source):
    model = request.getfixturevalue(source)
    exact = model.predict_perturbation(perturbation="P1", return_type="latent", solver="adaptive").X
    start = model.predict_perturbation(perturbation="control", return_type="latent").X
    errors = {
        (solver, steps): np.abs(
            model.predict_perturbation(perturbation="P1", return_type="latent", solver=solver, n_steps=steps).X - exact
        ).max()
        for solver, steps in (("euler", 5), ("euler", 100), ("midpoint", 20), ("rk4", 20))
    }
    moved = np.abs(exact - start).max()
    assert errors["euler", 100] < errors["euler", 5]
    assert max(errors["midpoint", 20], errors["rk4", 20]) < 0.01 * moved


# ---- which perturbations -----------------------------------------------------------------------------------------


def test_default_is_every_perturbation(trained, cells):
    result = trained.predict_perturbation()
    blocks = [trained.predict_perturbation(perturbation=name) for name in ("P1", "P2", "P3")]
    singles = result[result.obs["perturbation"].isin(["P1", "P2", "P3"])]
    assert singles.obs["perturbation"].tolist() == [n for n in ("P1", "P2", "P3") for _ in range(cells.n_obs)]
    np.testing.assert_array_equal(singles.X, np.concatenate([block.X for block in blocks]))
    pd.testing.assert_frame_equal(result.var, trained.adata.var)


def test_list_and_frame_of_conditions(trained, cells):
    labels = ["P3", "control", "P1+P3"]
    listed = trained.predict_perturbation(perturbation=labels)
    with pytest.warns(UserWarning, match=r"Columns \['note'\].*are ignored"):
        framed = trained.predict_perturbation(perturbation=pd.DataFrame({"perturbation": labels, "note": 1}))
    assert listed.obs["perturbation"].tolist() == [label for label in labels for _ in range(cells.n_obs)]
    np.testing.assert_array_equal(listed.X, framed.X)
    np.testing.assert_array_equal(listed.X[: cells.n_obs], trained.predict_perturbation(perturbation="P3").X)
    assert listed.obs_names.is_unique
    with pytest.raises(KeyError, match=r"column 'perturbation'.*\['label'\]"):
        trained.predict_perturbation(perturbation=pd.DataFrame({"label": labels}))


def test_unknown_perturbations_are_named(trained):
    for wrong in ("P11", "P1+P11", ["P1", "P11"]):
        with pytest.raises(ValueError, match=r"Unknown perturbation 'P11'.*Close matches:.*'P1'.*Known:.*'P2'"):
            trained.predict_perturbation(perturbation=wrong)
    with pytest.raises(ValueError, match=r"(?s)Unknown perturbation 'interferon'.*Known:.*control.*embedding"):
        trained.predict_perturbation(perturbation="interferon")


def test_order_of_a_combination_does_not_matter(trained):
    for return_type in RETURN_TYPES:
        first, second, with_control = (
            dense(trained.predict_perturbation(perturbation=label, return_type=return_type))
            for label in ("P1+P3", "P3+P1", "control+P3+P1")
        )
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, with_control)


@pytest.mark.parametrize("source", ["control", "noise"])
def test_doses(simulate, build, fit, source):
    adata = simulate(doses=(0.3, 1.0))
    model = build(adata, {"dosage_key": "dosage", "combination_delimiter": "+"}, flow_source=source)
    fit(model, flow_max_epochs=10)
    observed = adata[adata.obs["perturbation"] == "control"].X.toarray()
    np.testing.assert_array_equal(model.predict_perturbation(perturbation="P1", dosage=0).X, observed)
    np.testing.assert_array_equal(model.predict_perturbation(perturbation="P1+P3", dosage="0+0").X, observed)
    low, high = (model.predict_perturbation(perturbation="P1", dosage=dose) for dose in (0.1, 1.0))
    assert np.abs(low.X - observed).mean() < np.abs(high.X - observed).mean()
    assert set(high.obs["dosage"]) == {1.0}
    one_off = model.predict_perturbation(perturbation="P1+P3", dosage="0.5+0")
    np.testing.assert_array_equal(one_off.X, model.predict_perturbation(perturbation="P1", dosage=0.5).X)
    frame = pd.DataFrame({"perturbation": ["P1", "P3"], "dosage": [0.1, 0.3]})
    np.testing.assert_array_equal(model.predict_perturbation(perturbation=frame).X[: len(observed)], low.X)
    with pytest.raises(ValueError, match=r"pass `dosage` for \['P1'\]"):
        model.predict_perturbation(perturbation="P1")
    np.testing.assert_array_equal(model.predict_perturbation(perturbation="control").X, observed)


def test_names_of_the_perturbations_do_not_matter(simulate, build, fit):
    renamed, reordered = simulate(), simulate()
    new = {"P1": "Q1", "P2": "Q2", "P3": "Q3", "P1+P3": "Q1+Q3", "control": "DMSO"}
    renamed.obs["perturbation"] = renamed.obs["perturbation"].cat.rename_categories(new)
    backwards = list(reordered.obs["perturbation"].cat.categories)[::-1]
    reordered.obs["perturbation"] = reordered.obs["perturbation"].cat.reorder_categories(backwards)
    expected = fit(build(simulate())).predict_perturbation(perturbation=["P1", "P1+P3"])
    np.testing.assert_array_equal(fit(build(renamed)).predict_perturbation(perturbation=["Q1", "Q1+Q3"]).X, expected.X)
    np.testing.assert_array_equal(
        fit(build(reordered)).predict_perturbation(perturbation=["P1", "P1+P3"]).X, expected.X
    )


def test_support_says_what_a_prediction_rests_on(simulate, build, fit):
    adata = simulate()
    held_out = (adata.obs["perturbation"] == "P2") & (adata.obs["cell_type"] == "type2")
    left_out = adata.obs["perturbation"] == "P3"
    adata = adata[~held_out & ~left_out & (adata.obs["perturbation"] != "P1+P3")].copy()
    setup = {"combination_delimiter": "+", "perturbation_embedding_key": "perturbation_embedding"}
    model = fit(build(adata, setup), vae_max_epochs=1, flow_max_epochs=1)
    labels = ["control", "P1", "P2", "P1+P2", "P3", "P1+P3"]
    obs = model.predict_perturbation(perturbation=labels).obs
    found = obs.groupby(["perturbation", "cell_type"], observed=True)["support"].agg(lambda s: "/".join(sorted(set(s))))
    assert {label: tuple(found[label]) for label in labels} == {
        "control": ("seen", "seen"),
        "P1": ("seen", "seen"),
        "P2": ("seen", "new context"),
        "P1+P2": ("new combination",) * 2,
        "P3": ("new perturbation",) * 2,
        "P1+P3": ("new perturbation",) * 2,
    }
    assert obs["support"].dtype == "category"


def test_new_perturbation_from_its_vector(simulate, build, fit):
    adata = simulate()
    adata = adata[adata.obs["perturbation"].isin(["control", "P1", "P2"])].copy()
    vectors = adata.uns["perturbation_embedding"].copy()
    vectors.loc["twin of P1"] = vectors.loc["P1"]
    adata.uns["vectors"] = vectors
    # the mean norm of the vectors sets their unit, so it is a training input; the twin changes it for all alike
    model = fit(build(adata, {"perturbation_embedding_key": "vectors"}), flow_max_epochs=10)
    asked = {"return_type": "lognorm", "perturbation": ["P1", "control"]}
    measured = model.predict_perturbation(**asked)
    with pytest.warns(UserWarning, match=r"twin of P1.*: not measured, and what the vectors tell hangs on single"):
        twin = model.predict_perturbation(**asked | {"perturbation": ["twin of P1", "P3"]})
    # two measured perturbations do not show that vectors tell what perturbations do: little of the answer is kept
    assert (measured.obs["support_reach"] == 1).all() and (twin.obs["support_reach"] < 0.5).all()
    p1, own, like_p1, p3 = (block.mean(axis=0) for x in (measured.X, twin.X) for block in np.split(x, 2))
    assert np.corrcoef(like_p1 - own, p1 - own)[0, 1] > 0.7
    assert np.linalg.norm(like_p1 - own) < 0.3 * np.linalg.norm(p1 - own)
    assert np.isfinite(p3).all() and not np.array_equal(like_p1, p3)
    with pytest.raises(ValueError, match="Unknown perturbation 'P4'"):
        model.predict_perturbation(perturbation="P4")


# ---- is it right --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("source", ["control", "noise"])
def test_prediction_is_nearer_to_the_truth_than_no_change(simulate, build, quiet, source):
    adata = simulate(n_cells=1500, n_genes=150, n_pairs=0, seed=3)
    held_out = (adata.obs["perturbation"] == "P1") & (adata.obs["cell_type"] == "type2")
    model = build(adata[~held_out].copy(), n_latent=10, n_hidden=32, n_hidden_flow=32, flow_source=source)
    model.train(vae_max_epochs=40, flow_max_epochs=80, **quiet)
    control = adata[adata.obs["perturbation"] == "control"].copy()
    of_type = (control.obs["cell_type"] == "type2").to_numpy()
    before = counterfactual_mean(control, "control")
    for label in ("P1", "P2", "P3"):
        truth = counterfactual_mean(control, label)
        predicted = model.predict_perturbation(control, perturbation=label).X
        for rows in (of_type, ~of_type):
            change = (truth - before)[rows].mean(axis=0)
            error = np.linalg.norm((predicted - control.X.toarray())[rows].mean(axis=0) - change)
            is_held_out = label == "P1" and rows is of_type
            assert error < (0.95 if is_held_out else 0.75) * np.linalg.norm(change), label


@pytest.mark.slow
def test_interferon_raises_its_genes_in_real_cells(real_data, build, fit):
    adata = real_data("kang2018")
    markers = ["ISG15", "IFI6", "IFIT1", "IFIT3"]  # MX1 is not among the genes of this file
    abundant = np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:300]
    genes = adata.var_names[abundant].union([*markers, "CD3D"])
    adata = adata[adata.obs["cell_type"].isin(["CD4 T cells", "CD14+ Monocytes", "B cells"]), genes].copy()
    held_out = (adata.obs["cell_type"] == "CD4 T cells") & (adata.obs["perturbation"] == "IFNB")
    if not held_out.any():
        pytest.fail(f"cell types of kang2018 were renamed: {adata.obs['cell_type'].unique().tolist()}")
    model = fit(build(adata[~held_out].copy(), {}, n_latent=10), vae_max_epochs=20, flow_max_epochs=30)
    control = adata[(adata.obs["cell_type"] == "CD4 T cells") & (adata.obs["perturbation"] == "control")].copy()
    predicted = model.predict_perturbation(control, perturbation="IFNB", return_type="lognorm")
    assert set(predicted.obs["support"]) == {"new context"}
    before = model.predict_perturbation(control, perturbation="control", return_type="lognorm")
    change = pd.Series(predicted.X.mean(axis=0) - before.X.mean(axis=0), index=predicted.var_names)
    assert (change[markers] > 0.5).all(), change[markers]
    assert abs(change["CD3D"]) < 0.5


def test_answers_say_how_many_training_cells_stand_behind_them(trained, predicted):
    obs, split = trained.adata.obs, trained._split.train
    trained_on = obs.iloc[split]
    for name, block in predicted.obs.groupby("cell_type", observed=True):
        count = ((trained_on["perturbation"] == "P1") & (trained_on["cell_type"] == name)).sum()
        assert set(block["n_support"]) == {count}
    unseen = trained.predict_perturbation(perturbation="P1+P2+P3").obs
    assert set(unseen["n_support"]) == {0}


def test_a_label_may_stand_alone(trained, predicted):
    assert np.array_equal(trained.predict_perturbation("P1").X, predicted.X)
    assert trained.get_trajectory("P1", times=[1.0]).n_obs == predicted.n_obs
    assert trained.get_velocity("P1")[1].any()
    for call in (trained.get_latent_representation, trained.get_elbo, trained.evaluate):
        with pytest.raises(TypeError, match="is 'P1', a str; give the cells as an AnnData"):
            call("P1")
