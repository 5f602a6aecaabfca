"""The folder of a run: when a stage starts anew, goes on or is refused; and the random states that go with it.

That a killed run goes on to the bit is tested through the model, in ``tests/model/test_training_resume.py``.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from cfmvc_scvi.train.checkpoint import CheckpointFolder, restore_rng, rng_state
from cfmvc_scvi.train.state import ModelState, StageArguments

ARGUMENTS = StageArguments(max_epochs=3, batch_size=64, early_stopping=False, plan_kwargs=None, seed=0)


class Model:
    """State of a model that remembers what was put into it."""

    def __init__(self, data: str = "these") -> None:
        self.restored, self.data = None, data
        self.state = ModelState(
            lambda stage: lambda: None, lambda: {"a_": 1}, self.restore, lambda: {"data": self.data}
        )

    def restore(self, content):
        self.restored = content


def written(path, stage="vae", epoch=1, finished=False) -> None:
    folder = CheckpointFolder(path, resume=True)
    folder.begin(Model().state, stage, ARGUMENTS)
    folder.write(Model().state, {"stage": stage, "epoch": epoch, "finished": finished})


def test_no_folder_no_checkpoints(tmp_path):
    assert CheckpointFolder.of(None, False) is None
    assert CheckpointFolder.of(tmp_path, True).resume
    with pytest.raises(ValueError, match="`resume=True` needs `checkpoint_dir`"):
        CheckpointFolder.of(None, True)


@pytest.mark.parametrize("resume", [True, False])
def test_an_empty_folder_starts_from_the_beginning(tmp_path, resume):
    model = Model()
    assert CheckpointFolder(tmp_path / "new", resume).begin(model.state, "vae", ARGUMENTS) is None
    assert model.restored is None and not (tmp_path / "new").exists()  # made when there is something to keep


def test_what_was_written_is_put_into_the_model(tmp_path):
    written(tmp_path, epoch=2)
    model = Model()
    state = CheckpointFolder(tmp_path, True).begin(model.state, "vae", ARGUMENTS)
    assert (state["stage"], state["epoch"], state["attributes"]) == ("vae", 2, {"a_": 1})
    assert model.restored == state


def test_a_state_is_not_overwritten_by_accident(tmp_path):
    written(tmp_path, epoch=2)
    with pytest.raises(ValueError, match=r"a run in stage 1 \(VAE\) after 2 epochs: pass `resume=True`"):
        CheckpointFolder(tmp_path, False).begin(Model().state, "vae", ARGUMENTS)


@pytest.mark.parametrize(
    ("model", "arguments", "difference"),
    [
        (Model("others"), {}, "data was 'these' and is 'others'"),
        (Model(), {"batch_size": 7}, "argument `batch_size` was 64 and is 7"),
        (Model(), {"plan_kwargs": {"lr": 1.0}}, r"argument `plan_kwargs` was None and is \{'lr': 1.0\}"),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, model, arguments, difference):
    written(tmp_path)
    with pytest.raises(ValueError, match=f"belongs to another run: {difference}. Call with"):
        CheckpointFolder(tmp_path, True).begin(model.state, "vae", StageArguments(**(vars(ARGUMENTS) | arguments)))
    assert model.restored is None


def test_the_second_stage_starts_after_the_first(tmp_path):
    written(tmp_path, finished=True)
    model, folder = Model(), CheckpointFolder(tmp_path, True)
    assert folder.begin(model.state, "flow", ARGUMENTS) is None
    assert model.restored["stage"] == "vae" and set(folder.runs) == {"vae", "flow"}


def test_random_states_come_back(tmp_path):
    state = rng_state()
    draws = [(torch.rand(3).tolist(), np.random.rand(), random.random()) for _ in range(2)]
    assert draws[0] != draws[1]
    restore_rng(state)
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == draws[0]
