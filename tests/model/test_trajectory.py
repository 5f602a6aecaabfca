"""Trajectories: cells on their way from control to their prediction."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("source", ["trained", "trained_noise"])
@pytest.mark.parametrize("solver", ["midpoint", "adaptive"])
def test_trajectory_goes_from_the_cell_to_its_prediction(request, source, solver):
    model = request.getfixturevalue(source)
    control = model.adata[(model.adata.obs["perturbation"] == "control").to_numpy()].copy()
    path = model.get_trajectory(perturbation="P1", solver=solver)
    assert path.shape == (5 * control.n_obs, 6)
    assert path.obs["time"].unique().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    blocks = path.X.reshape(5, control.n_obs, 6)
    np.testing.assert_allclose(blocks[0], model.get_latent_representation(control), atol=1e-6)
    end = model.predict_perturbation(perturbation="P1", solver=solver).obsm["X_cfmvc"]
    np.testing.assert_allclose(blocks[4], end, atol=1e-4)
    moved = np.linalg.norm(blocks - blocks[0], axis=-1).mean(axis=1)
    assert (np.diff(moved) > 0).all()


def test_trajectory_names_its_cells(trained):
    path = trained.get_trajectory(perturbation="P1", times=[0.5, 1.0], indices=[3, 1])
    assert path.obs["source_cell"].tolist() == trained.adata.obs_names[[3, 1, 3, 1]].tolist()
    assert path.obs["time"].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert path.obs_names.is_unique and (path.obs["perturbation"] == "P1").all()


def test_trajectory_of_control_stays(trained):
    path = trained.get_trajectory(perturbation="control", times=[0.0, 0.3, 1.0], indices=[0, 1])
    np.testing.assert_array_equal(path.X[:2], path.X[2:4])
    np.testing.assert_array_equal(path.X[:2], path.X[4:])


def test_trajectory_refuses(trained):
    for times in ([], [-0.1], [0.0, 1.2], [np.nan]):
        with pytest.raises(ValueError, match="`times` is"):
            trained.get_trajectory(perturbation="P1", times=times)
    with pytest.raises(ValueError, match="`perturbation` is missing"):
        trained.get_trajectory()
    with pytest.raises(ValueError, match="Unknown perturbation 'P9'"):
        trained.get_trajectory(perturbation="P9")
