"""Calibration anew, through the model; what each estimator says is tested in ``tests/calibration``."""

from __future__ import annotations

import numpy as np
import pytest


def test_calibration_anew_leaves_the_networks_alone(trained):
    before = {name: value.clone() for name, value in trained.module.state_dict().items()}
    first = trained.predict_perturbation(perturbation="P1").X
    trained.calibrate(None)
    try:
        other = trained.predict_perturbation(perturbation="P1").X
        assert np.abs(np.asarray(other) - np.asarray(first)).max() > 0
        assert all(bool((before[name] == value).all()) for name, value in trained.module.state_dict().items())
    finally:
        trained.calibrate()
    np.testing.assert_array_equal(trained.predict_perturbation(perturbation="P1").X, first)


def test_what_calibration_needs_is_said(trained, simulated, build):
    with pytest.raises(ValueError, match="latent"):
        trained.calibrate("no such estimator")
    with pytest.raises(RuntimeError, match=r"cannot be calibrated: call `model.train\(\)`"):
        build(simulated).calibrate()
