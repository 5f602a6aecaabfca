"""Looking inside a trained model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

LABELS = ["control", "P1", "P2", "P3"]


def test_perturbation_embedding(trained):
    table = trained.get_perturbation_embedding()
    assert table.index.tolist() == LABELS and table.index.name == "perturbation"
    assert np.isfinite(table.to_numpy()).all()
    assert (table.loc["control"] == 0).all()
    assert len(np.unique(table.to_numpy(), axis=0)) == 4


def test_effect_coefficients(trained):
    table = trained.get_effect_coefficients()
    assert table.index.names == ["perturbation", "cell_type"]
    assert table.index.tolist() == [(label, kind) for label in LABELS for kind in ("type1", "type2")]
    assert table.shape == (8, 4) and table.columns[0] == "basis_0"
    assert np.abs(table.loc["control"].to_numpy()).max() == 0.0


@pytest.mark.parametrize("in_effect", [False, True])
def test_coefficients_depend_on_the_cell_type_where_asked(simulated, build, fit, in_effect):
    model = fit(build(simulated, labels_in_effect=in_effect), flow_max_epochs=5)
    table = model.get_effect_coefficients()
    of_p1 = table.loc["P1"].to_numpy()
    assert np.array_equal(of_p1[0], of_p1[1]) is not in_effect
    assert np.abs(table.loc["control"].to_numpy()).max() == 0.0


@pytest.mark.parametrize("source", ["trained", "trained_noise"])
def test_velocity(request, source):
    model = request.getfixturevalue(source)
    base, effect = model.get_velocity(perturbation="P1", t=0.3)
    assert base.shape == effect.shape == (300, 6)
    assert np.isfinite(base).all() and np.abs(effect).max() > 0
    base_control, none = model.get_velocity(perturbation="control", t=0.3)
    np.testing.assert_array_equal(base_control, base)
    assert np.abs(none).max() == 0.0
    np.testing.assert_array_equal(model.get_velocity()[1], 0.0)
    cells = model.adata[10:20].copy()
    part = model.get_velocity(cells, "P1", 0.3)
    np.testing.assert_allclose(part[0], base[10:20], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(part[1], effect[10:20], rtol=1e-3, atol=1e-4)


def test_velocity_is_what_transport_follows(trained):
    """One Euler step moves the latent by the difference of the two velocities at the start."""
    control = trained.adata[trained.adata.obs["perturbation"] == "control"].copy()
    _, effect = trained.get_velocity(control, "P1", 0.0)
    start = trained.get_latent_representation(control)
    moved = trained.predict_perturbation(control, "P1", return_type="latent", solver="euler", n_steps=1).X
    np.testing.assert_allclose(moved - start, effect, rtol=1e-3, atol=1e-4)


def test_velocity_refuses(trained):
    for t in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`t` is"):
            trained.get_velocity(perturbation="P1", t=t)
    with pytest.raises(ValueError, match="Unknown perturbation 'P9'"):
        trained.get_velocity(perturbation="P9")


def test_embedding_is_the_mean_displacement_of_control_cells(trained):
    """With fewer controls than the 128 that stand for a type, those are all of them."""
    table = trained.get_perturbation_embedding()
    train = np.sort(np.r_[trained.train_indices, trained.validation_indices])
    control = train[(trained.adata.obs["perturbation"] == "control").to_numpy()[train]]
    moved = trained.predict_perturbation(indices=control, perturbation="P1", return_type="latent").X
    move = moved - trained.get_latent_representation(indices=control)
    types = trained.adata.obs["cell_type"].to_numpy()[control]
    expected = np.mean([move[types == name].mean(axis=0) for name in ("type1", "type2")], axis=0)
    np.testing.assert_allclose(table.loc["P1"], expected, atol=1e-4)


def test_embedding_of_combinations_and_unseen_ones(trained):
    table = trained.get_perturbation_embedding(["P1+P2", "P1"])
    assert table.index.tolist() == ["control", "P1+P2", "P1"]
    np.testing.assert_array_equal(table.loc["P1"], trained.get_perturbation_embedding().loc["P1"])
    with pytest.raises(ValueError, match="Unknown perturbation 'P9'"):
        trained.get_perturbation_embedding(pd.DataFrame({"perturbation": ["P9"]}))
