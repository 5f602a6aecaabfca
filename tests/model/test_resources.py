"""Estimates of what a training takes, and that they leave the model alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.data import open_counts


def test_the_estimate_has_every_stage_and_leaves_the_model_as_it_was(simulated, build):
    model = build(simulated)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    state = torch.random.get_rng_state()
    table = model.estimate_resources(vae_max_epochs=3)
    assert torch.equal(state, torch.random.get_rng_state()) and model.split_ is None
    assert list(table.index) == ["stage 1", "latents", "stage 2", "calibration"]
    assert table.loc["stage 1", "epochs"] == 3 and table.loc["stage 2", "epochs"] == 400
    assert (table["seconds"].dropna() > 0).all() and (table["memory_gb"] > 0).all()
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])
    twice = model.estimate_resources(vae_max_epochs=300)
    assert twice.loc["stage 1", "seconds"] > 10 * table.loc["stage 1", "seconds"]


def test_too_little_memory_is_warned_of_with_the_setting(simulated, build, tmp_path):
    with pytest.warns(UserWarning, match=r"leave the counts on disk.*open_counts.*keep fewer than \d+ genes"):
        build(simulated).estimate_resources(available_gb=1e-5)
    simulated.write_zarr(tmp_path / "cells.zarr")
    with pytest.warns(UserWarning, match=r"may be taken: keep fewer than \d+ genes"):
        build(open_counts(tmp_path / "cells.zarr")).estimate_resources(available_gb=1e-5)


def test_control_cells_alone(simulated, build):
    kept = simulated[simulated.obs["perturbation"] == "control"].copy()
    with pytest.warns(UserWarning, match="only control cells"):
        table = build(kept).estimate_resources()
    assert table.loc["stage 2", "seconds"] == 0.0 and np.isfinite(table.loc["latents", "seconds"])
