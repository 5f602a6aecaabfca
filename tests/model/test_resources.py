"""Estimates of what a training takes, and that they leave the model alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from cfmvc_scvi.data import open_counts
from cfmvc_scvi.model import resources


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


def test_too_little_memory_is_an_error_with_the_setting(simulated, build, tmp_path):
    with pytest.raises(MemoryError, match=r"leave the counts on disk.*open_counts.*keep fewer than \d+ of 60 genes"):
        build(simulated).estimate_resources(available_gb=1e-5)
    simulated.write_zarr(tmp_path / "cells.zarr")
    with pytest.raises(MemoryError, match=r"0.01 MB may be taken: keep fewer than \d+ of 60 genes.*at most \d+ of 300"):
        build(open_counts(tmp_path / "cells.zarr")).estimate_resources(available_gb=1e-5)


@pytest.mark.parametrize("stage", ["train", "train_flow"])
def test_a_training_that_cannot_fit_is_refused_before_it_starts(simulated, build, monkeypatch, stage):
    model = build(simulated)
    sizes = {}
    for n in (300, 150):
        monkeypatch.setattr(resources, "free_memory", lambda n=n: 50 * n)
        with pytest.raises(MemoryError, match="Training is going to take about") as error:
            getattr(model, stage)()
        sizes[n] = int(re.search(r"at most (\d+) of 300 cells, a random sample", str(error.value))[1])
    assert 0 < sizes[150] < sizes[300] < 300 and model.split_ is None
    monkeypatch.setattr(resources, "free_memory", lambda: None)  # a system that does not say
    with pytest.raises(RuntimeError, match="Train the model before"):
        model.train_flow()


def test_control_cells_alone(simulated, build):
    kept = simulated[simulated.obs["perturbation"] == "control"].copy()
    with pytest.warns(UserWarning, match="only control cells"):
        table = build(kept).estimate_resources()
    assert table.loc["stage 2", "seconds"] == 0.0 and np.isfinite(table.loc["latents", "seconds"])
