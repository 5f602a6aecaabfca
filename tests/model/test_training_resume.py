"""Interrupted training: a killed run goes on to the bit, Ctrl-C leaves a usable model, a full disk loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from cfmvc_scvi.io.archive import ArchiveError

STOPPING = {"early_stopping": True, "early_stopping_patience": 2, "early_stopping_min_delta": 1e9}
RUNS = {
    "plain": {"vae_max_epochs": 3, "flow_max_epochs": 3},
    "early stopping": {"vae_max_epochs": 9, "flow_max_epochs": 9, "early_stopping_warmup_epochs": 1} | STOPPING,
    "validation every second epoch": {"vae_max_epochs": 4, "flow_max_epochs": 4, "check_val_every_n_epoch": 2},
    "learning rate on plateau": {
        "vae_max_epochs": 4,
        "flow_max_epochs": 3,
        "vae_plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 0, "lr_threshold": 1e3},
    },
}
POINTS = [("vae", 0, 0), ("vae", 1, 1), ("vae", 2, 0), ("flow", 0, 1), ("flow", 2, 0)]


class Killed(BaseException):
    """Stands for the end of a process."""


class At(Callback):
    """Raises after a batch of a stage."""

    def __init__(self, stage, epoch, batch, error):
        self.point, self.error = (stage, epoch, batch), error

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
        stage = "flow" if "Flow" in type(plan).__name__ else "vae"
        if (stage, trainer.current_epoch, batch_idx) == self.point:
            raise self.error


def results(model) -> list[np.ndarray]:
    frames = [model.history[key].to_numpy(dtype=float) for key in sorted(model.history)]
    epochs = [model.history[key].index.to_numpy() for key in sorted(model.history)]
    predicted = model.predict_perturbation(perturbation=["P1", "P1+P3"]).X
    return [model.get_latent_representation(latent="both"), predicted, *model.split_, *frames, *epochs]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def uninterrupted(simulate, build, fit):
    found = {}

    def get(name, **model_kwargs):
        key = (name, *model_kwargs.values())
        if key not in found:
            model = fit(build(simulate(), **model_kwargs), **RUNS[name])
            found[key] = (set(model.history), results(model))
        return found[key]

    return get


def start_over(build, simulate, **model_kwargs):
    """A model as another process would make it: other weights, other random states."""
    model = build(simulate(), **model_kwargs)
    torch.manual_seed(99)
    for parameter in model.module.parameters():
        parameter.data.normal_()
    return model


@pytest.mark.parametrize(
    ("name", "point"), [("plain", p) for p in POINTS] + [(n, p) for n in list(RUNS)[1:] for p in (POINTS[1], POINTS[4])]
)
def test_a_killed_run_goes_on_to_the_bit(simulate, build, fit, quiet, tmp_path, uninterrupted, name, point):
    folder = tmp_path / "checkpoints"
    with pytest.raises(Killed):
        fit(build(simulate()), checkpoint_dir=folder, resume=True, callbacks=[At(*point, Killed())], **RUNS[name])
    model = start_over(build, simulate)
    model.train(checkpoint_dir=folder, resume=True, **RUNS[name], **quiet)
    keys, expected = uninterrupted(name)
    assert set(model.history) == keys
    assert_equal(results(model), expected)
    if name == "early stopping":
        assert len(model.history["elbo_train"]) == 4  # it did stop early


def test_killed_again_and_again(simulate, build, quiet, tmp_path, uninterrupted):
    for i, point in enumerate(POINTS[1:]):
        make = start_over if i else lambda build, simulate, **kwargs: build(simulate(), **kwargs)
        with pytest.raises(Killed):
            make(build, simulate, dropout=0.1).train(
                checkpoint_dir=tmp_path, resume=True, callbacks=[At(*point, Killed())], **RUNS["plain"], **quiet
            )
    model = start_over(build, simulate, dropout=0.1)
    model.train(checkpoint_dir=tmp_path, resume=True, **RUNS["plain"], **quiet)
    assert_equal(results(model), uninterrupted("plain", dropout=0.1)[1])
    again = start_over(build, simulate, dropout=0.1)
    again.train(checkpoint_dir=tmp_path, resume=True, **RUNS["plain"], **quiet)  # the run is through: nothing to train
    assert_equal(results(again), results(model))


@pytest.mark.parametrize("where", ["between the stages", "in the calibration"])
def test_killed_outside_the_epochs(simulate, build, fit, quiet, tmp_path, uninterrupted, monkeypatch, where):
    model = build(simulate())
    method = "_cache_latents" if where == "between the stages" else "_fit_calibration"

    def die(*args):
        raise Killed

    monkeypatch.setattr(model, method, die)
    with pytest.raises(Killed):
        fit(model, checkpoint_dir=tmp_path, **RUNS["plain"])
    trained_again = []
    model = start_over(build, simulate)

    class Count(Callback):
        def on_train_epoch_start(self, trainer, plan):
            trained_again.append(type(plan).__name__)

    model.train(checkpoint_dir=tmp_path, resume=True, callbacks=[Count()], **RUNS["plain"], **quiet)
    assert_equal(results(model), uninterrupted("plain")[1])
    assert trained_again == (["FlowTrainingPlan"] * 3 if where == "between the stages" else [])


def test_stages_one_by_one(simulate, build, quiet, tmp_path, uninterrupted):
    with pytest.raises(Killed):
        build(simulate()).train_vae(
            3, checkpoint_dir=tmp_path, resume=True, callbacks=[At("vae", 1, 0, Killed())], **quiet
        )
    build(simulate()).train_vae(3, checkpoint_dir=tmp_path, resume=True, **quiet)
    with pytest.raises(Killed):
        build(simulate()).train_flow(
            3, checkpoint_dir=tmp_path, resume=True, callbacks=[At("flow", 1, 0, Killed())], **quiet
        )
    model = start_over(build, simulate)
    model.train_flow(3, checkpoint_dir=tmp_path, resume=True, **quiet)
    assert model.is_trained and len(model.history["elbo_train"]) == len(model.history["flow_loss_train"]) == 3


SCRIPT = """
import sys
from lightning.pytorch.callbacks import Callback
sys.path.insert(0, {tests!r})
from conftest import build, fit, seeded, simulate

class Tell(Callback):
    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
        print(type(plan).__name__, trainer.current_epoch, batch_idx, flush=True)

with seeded():
    model = build(simulate())
fit(model, checkpoint_dir={folder!r}, resume=True, callbacks=[Tell()], vae_max_epochs=3, flow_max_epochs=3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["VAETrainingPlan 1 1", "FlowTrainingPlan 1 0"])
def test_a_process_that_is_killed(simulate, build, quiet, tmp_path, uninterrupted, point):
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == point:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    model = start_over(build, simulate)
    model.train(checkpoint_dir=tmp_path, resume=True, vae_max_epochs=3, flow_max_epochs=3, **quiet)
    assert_equal(results(model), uninterrupted("plain")[1])


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(simulate, build, fit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Killed):
        fit(build(simulate()), checkpoint_dir=folder, callbacks=[At("flow", 1, 0, Killed())], **RUNS["plain"])
    return folder


def test_another_run_is_refused_with_the_differences(simulate, build, quiet, stopped):
    other = {"vae_max_epochs": 4, "flow_plan_kwargs": {"lr": 0.1}}
    with pytest.raises(ValueError, match=r"another run: argument `max_epochs` was 3 and is 4"):
        build(simulate()).train(checkpoint_dir=stopped, resume=True, **(RUNS["plain"] | other), **quiet)
    adata = simulate(seed=1)
    with pytest.raises(ValueError, match=r"the counts of the data was '\w+' and is '\w+'"):
        build(adata).train(checkpoint_dir=stopped, resume=True, **RUNS["plain"], **quiet)
    with pytest.raises(ValueError, match=r"model argument `n_basis` was 4 and is 5"):
        build(simulate(), n_basis=5).train(checkpoint_dir=stopped, resume=True, **RUNS["plain"], **quiet)


def test_a_run_is_not_overwritten(simulate, build, quiet, stopped):
    before = sorted(os.listdir(stopped))
    with pytest.raises(ValueError, match=r"stage 2 \(flow\) after 1 epochs: pass `resume=True`"):
        build(simulate()).train(checkpoint_dir=stopped, **RUNS["plain"], **quiet)
    assert sorted(os.listdir(stopped)) == before
    with pytest.raises(ValueError, match="needs `checkpoint_dir`"):
        build(simulate()).train(resume=True, **quiet)


def test_damaged_states_are_refused(simulate, build, quiet, stopped, tmp_path):
    for path in stopped.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArchiveError, match="truncated"):
        build(simulate()).train(checkpoint_dir=tmp_path, resume=True, **RUNS["plain"], **quiet)


# ---- Ctrl-C and full disks ------------------------------------------------------------------------------------------


def test_ctrl_c_in_stage_1_leaves_the_vae(simulate, build, fit, quiet):
    handler = signal.getsignal(signal.SIGINT)
    model = build(simulate())
    with (
        pytest.warns(UserWarning, match=r"stage 1 \(VAE\).*weights after 2 of 9 epochs.*get_latent_representation"),
        pytest.raises(KeyboardInterrupt),
    ):
        fit(model, vae_max_epochs=9, callbacks=[At("vae", 2, 1, KeyboardInterrupt())])
    assert signal.getsignal(signal.SIGINT) is handler
    assert model.is_vae_trained_ and not model.is_flow_trained_ and not model.is_trained
    assert not any(part.training for part in model.module.modules())
    two = build(simulate())
    with pytest.raises(Killed):
        fit(two, vae_max_epochs=9, callbacks=[At("vae", 1, 1, Killed())])  # after the last step of the second epoch
    for (name, a), b in zip(model.module.state_dict().items(), two.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    model.train_flow(1, **quiet)
    assert np.isfinite(model.predict_perturbation(perturbation="P1").X).all()


def test_ctrl_c_in_stage_2_leaves_a_calibrated_flow(simulate, build, fit, quiet):
    model = fit(build(simulate()), flow_max_epochs=1)
    before = model.calibration_
    with (
        pytest.warns(UserWarning, match=r"stage 2 \(flow\).*weights after 1 of 9 epochs.*calibrated and usable"),
        pytest.raises(KeyboardInterrupt),
    ):
        model.train_flow(9, callbacks=[At("flow", 1, 0, KeyboardInterrupt())], **quiet)
    assert model.is_trained and model.calibration_ is not before
    assert np.isfinite(model.predict_perturbation(perturbation="P1").X).all()


@pytest.mark.parametrize("stage", ["vae", "flow"])
def test_ctrl_c_in_the_first_epoch_leaves_the_model_as_it_was(simulate, build, fit, quiet, stage):
    model = fit(build(simulate()))
    before = [model.get_latent_representation(), model.predict_perturbation(perturbation="P1").X]
    train = model.train_vae if stage == "vae" else model.train_flow
    with pytest.raises(KeyboardInterrupt):
        train(3, callbacks=[At(stage, 0, 1, KeyboardInterrupt())], **quiet)
    assert model.is_trained
    assert_equal([model.get_latent_representation(), model.predict_perturbation(perturbation="P1").X], before)
    new = build(simulate())
    with pytest.raises(KeyboardInterrupt):
        fit(new, callbacks=[At("vae", 0, 0, KeyboardInterrupt())])
    assert not new.is_vae_trained_


def test_a_full_disk_stops_the_training_and_loses_nothing(
    simulate, build, fit, quiet, tmp_path, monkeypatch, uninterrupted
):
    calls, real = [], Path.write_bytes

    def write(self, data):
        calls.append(self)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    model = build(simulate())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        with (
            pytest.warns(UserWarning, match="after 2 of 3 epochs"),
            pytest.raises(OSError, match=r"Could not write a checkpoint of the training to .*the disk is full"),
        ):
            fit(model, checkpoint_dir=tmp_path, **RUNS["plain"])
    assert model.is_vae_trained_ and np.isfinite(model.get_latent_representation()).all()
    model = start_over(build, simulate)
    model.train(checkpoint_dir=tmp_path, resume=True, **RUNS["plain"], **quiet)
    assert_equal(results(model), uninterrupted("plain")[1])


def test_a_folder_that_cannot_be_made(simulate, build, fit, tmp_path):
    (tmp_path / "file").write_text("")
    model = build(simulate())
    with pytest.raises(OSError, match="Could not write a checkpoint of the training .*a part of the path is a file"):
        fit(model, checkpoint_dir=tmp_path / "file")
    assert not model.is_vae_trained_


def test_checkpoints_do_not_change_the_training(simulate, build, fit, tmp_path, uninterrupted):
    model = fit(build(simulate()), checkpoint_dir=tmp_path / "new" / "folder", **RUNS["plain"])
    assert_equal(results(model), uninterrupted("plain")[1])
    assert len(os.listdir(tmp_path / "new" / "folder")) == 2
