"""A trained model that takes in further data."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from cfmvc_scvi import CFMVC


@pytest.fixture(scope="module")
def parts(simulate):
    """Cells of a screen: what a reference saw, and cells of a further batch, cell type and perturbation."""
    adata = simulate(n_cells=1200, n_cell_types=3, n_batches=3, n_perturbations=4, n_pairs=0)
    obs = adata.obs
    is_new = (obs["batch"] == "batch3") | (obs["cell_type"] == "type3") | (obs["perturbation"] == "P4")
    return adata[~is_new.to_numpy()].copy(), adata[is_new.to_numpy()].copy()


@pytest.fixture(scope="module")
def reference(parts, build, fit):
    return fit(build(parts[0].copy()), vae_max_epochs=6, flow_max_epochs=20)


@pytest.fixture(scope="module")
def query(parts, reference):
    return CFMVC.load_query_data(parts[1].copy(), reference)


def controls(adata):
    return adata[(adata.obs["perturbation"] == "control").to_numpy()].copy()


def test_what_was_known_stays(parts, reference, query):
    cells = controls(parts[0])
    np.testing.assert_array_equal(
        query.get_latent_representation(cells, latent="both"), reference.get_latent_representation(cells, latent="both")
    )
    old, new = (m.predict_perturbation(cells, "P2", return_type="latent").X for m in (reference, query))
    np.testing.assert_allclose(new, old, atol=1e-5)
    assert query.cell_types[:2] == reference.cell_types and query.batches[:2] == reference.batches
    assert query.vocabulary.names[:3] == reference.vocabulary.names and "P4" in query.vocabulary.names


def test_new_levels_are_answered(parts, query):
    cells = controls(parts[1])
    cells = cells[(cells.obs["cell_type"] == "type3").to_numpy()].copy()
    predicted = query.predict_perturbation(cells, "P4")
    assert set(predicted.obs["support"]) == {"seen"} and np.isfinite(predicted.X).all()
    effect = query.get_perturbation_effect("P4", "type3")
    assert (effect["sd"] > 0).all()
    decoded = query.predict_perturbation(cells, "control", batch="batch3")
    assert np.isfinite(decoded.X).all()


def test_record_counts_both(parts, reference, query):
    before = dict(zip(reference.trained_conditions_, reference.trained_cells_, strict=True))
    after = dict(zip(query.trained_conditions_, query.trained_cells_, strict=True))
    assert sum(after.values()) == sum(before.values()) + parts[1].n_obs
    obs, code = parts[1].obs, query.cell_types.index("type1")
    key = ((("P1",), (1.0,)), code)
    assert after[key] == before[key] + ((obs["perturbation"] == "P1") & (obs["cell_type"] == "type1")).sum()
    cells = controls(parts[1])
    place = query.predict_perturbation(cells, "P1").obs
    assert set(place["support_batch"][place["batch"] == "batch3"]) <= {"seen", "controls only"}


def test_effects_of_a_new_perturbation_are_near_those_measured(parts, query):
    """Effects of P4 as estimated and as measured in the further cells go together."""
    cells = parts[1][(parts[1].obs["cell_type"] == "type3").to_numpy()]
    y = np.log1p(cells.X.toarray() / np.asarray(cells.X.sum(axis=1)) * 1e4)
    of = cells.obs["perturbation"].to_numpy()
    measured = y[of == "P4"].mean(axis=0) - y[of == "control"].mean(axis=0)
    estimate = query.get_perturbation_effect("P4", "type3")["log_fold_change"]
    assert np.corrcoef(measured, estimate)[0, 1] > 0.7


def test_saved_and_loaded(parts, query, tmp_path):
    cells = controls(parts[1])
    query.save(tmp_path / "query")
    loaded = CFMVC.load(tmp_path / "query", adata=parts[1].copy())
    for perturbation in ("P1", "P4"):
        a, b = (m.predict_perturbation(cells.copy(), perturbation).X for m in (query, loaded))
        np.testing.assert_array_equal(a, b)
    assert loaded.adapted_


def test_a_saved_reference_needs_its_effects(parts, reference, tmp_path):
    without = reference.calibration_.state.observed
    reference.calibration_.observe(None)
    reference.save(tmp_path / "bare")
    with pytest.raises(ValueError, match="does not carry the effects"):
        CFMVC.load_query_data(parts[1].copy(), tmp_path / "bare")
    reference.calibration_.observe(without)
    reference.save(tmp_path / "whole")
    query = CFMVC.load_query_data(controls(parts[1]), tmp_path / "whole")
    assert "type3" in query.cell_types and query.vocabulary.names == reference.vocabulary.names


def test_a_batch_without_trained_types_is_said(parts, reference, caplog):
    cells = controls(parts[1])
    cells = cells[(cells.obs["cell_type"] == "type3").to_numpy()].copy()
    with caplog.at_level(logging.WARNING):
        CFMVC.load_query_data(cells, reference)
    assert "'batch3' has no control cells of a trained cell type" in caplog.text


def test_it_is_not_trained_further(query):
    for method in (query.train, query.train_vae, query.train_flow, query.calibrate):
        with pytest.raises(RuntimeError, match="of `load_query_data`"):
            method()


def test_what_cannot_be_taken_in_is_refused(parts, reference, build):
    further = parts[1]
    perturbed = further[(further.obs["perturbation"] == "P4").to_numpy()].copy()
    with pytest.raises(ValueError, match="no control cells among the further cells"):
        CFMVC.load_query_data(perturbed, reference)
    only_type3 = (further.obs["cell_type"] == "type3") & (further.obs["perturbation"] == "control")
    with pytest.raises(ValueError, match="new cell types without control cells"):
        CFMVC.load_query_data(further[~only_type3.to_numpy()].copy(), reference)
    with pytest.raises(ValueError, match="not in"):
        CFMVC.load_query_data(further[:, 1:].copy(), reference)
    with pytest.raises(TypeError, match="`reference_model` is of type int"):
        CFMVC.load_query_data(further.copy(), 3)
    with pytest.raises(RuntimeError, match="not trained"):
        CFMVC.load_query_data(further.copy(), build(parts[0].copy()))


def test_new_perturbations_at_doses_and_without_vectors_are_refused(simulate, build, fit):
    dosed = simulate(n_cells=500, n_perturbations=3, n_pairs=0, doses=[0.1, 1.0])
    is_new = (dosed.obs["perturbation"] == "P3").to_numpy()
    model = fit(build(dosed[~is_new].copy(), {"dosage_key": "dosage"}))
    with pytest.raises(ValueError, match="New perturbations at doses"):
        CFMVC.load_query_data(dosed.copy(), model)
    query = CFMVC.load_query_data(dosed[~is_new].copy(), model)
    assert query.predict_perturbation(perturbation="P1", dosage=1.0).n_obs

    adata = simulate(n_cells=500, n_perturbations=3, n_pairs=0)
    is_new = (adata.obs["perturbation"] == "P3").to_numpy()
    model = fit(build(adata[~is_new].copy(), {"perturbation_embedding_key": "perturbation_embedding"}))
    query = CFMVC.load_query_data(adata.copy(), model)  # the reference holds a vector of P3
    assert set(query.predict_perturbation(perturbation="P3").obs["support"]) == {"seen"}
    renamed = adata.copy()
    renamed.obs["perturbation"] = renamed.obs["perturbation"].cat.rename_categories({"P3": "other"})
    with pytest.raises(ValueError, match="Unknown perturbation 'other'"):
        CFMVC.load_query_data(renamed, model)


def test_perturbed_cells_without_controls_of_their_type_are_left_aside(parts, reference):
    obs = parts[1].obs
    of_type1 = (obs["cell_type"] == "type1").to_numpy()
    known = obs["perturbation"].isin(["control", "P1"]).to_numpy()
    stray = of_type1 & (obs["perturbation"] == "P1").to_numpy()
    cells = parts[1][known & ~(of_type1 & (obs["perturbation"] == "control").to_numpy())].copy()
    with pytest.warns(UserWarning, match=f"{int(stray.sum())} perturbed cells are left aside.*type1"):
        query = CFMVC.load_query_data(cells, reference)
    before = dict(zip(reference.trained_conditions_, reference.trained_cells_, strict=True))
    after = dict(zip(query.trained_conditions_, query.trained_cells_, strict=True))
    key = ((("P1",), (1.0,)), query.cell_types.index("type1"))
    assert stray.sum() > 0 and after[key] == before[key]
    lost = parts[1][
        (~of_type1 & (obs["perturbation"] == "control").to_numpy()) | (of_type1 & (obs["perturbation"] == "P4"))
    ]
    with pytest.raises(ValueError, match=r"P4.*: new perturbations all of whose cells are of types without control"):
        CFMVC.load_query_data(lost.copy(), reference)
