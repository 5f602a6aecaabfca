"""Several processes: their words, the checks before a training, and trainings of two processes beside one.

The trainings run in ``ranks.py``, in processes of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from scvi.train import SaveCheckpoint
from torch import distributed

from cfmvc_scvi import CFMVC
from cfmvc_scvi.train import processes

SCRIPT = Path(__file__).with_name("ranks.py")
LAUNCHED = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """Function that sets what a launcher tells its processes; at first nothing is told."""

    def tell(**values: int) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    return tell


# ---- one process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "first"),
    [
        ({}, True),
        ({"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0}, True),
        ({"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 1}, False),
        ({"WORLD_SIZE": 4, "RANK": 2, "LOCAL_RANK": 0}, False),  # the first one of the second machine
        ({"WORLD_SIZE": 2, "NODE_RANK": 0, "LOCAL_RANK": 1}, False),
        ({"WORLD_SIZE": 1, "LOCAL_RANK": 3}, True),
    ],
)
def test_the_first_process_is_known_before_they_are_connected(environment, told, first):
    environment(**told)
    assert processes.is_first() is first and not processes.several()


def test_a_process_alone_talks_to_itself(tmp_path):
    processes.let_go(trainer_of(kind=SingleDeviceStrategy, world_size=1))  # of nobody
    values = torch.ones(3)
    state = torch.get_rng_state()
    processes.share_random_state(torch.device("cpu"))
    assert processes.total(values) is values and processes.from_first(lambda: 7) == 7
    assert torch.equal(torch.get_rng_state(), state)
    processes.save_once(tmp_path / "x", (tmp_path / "x").mkdir)
    assert (tmp_path / "x").is_dir()
    with pytest.raises(FileExistsError):
        processes.save_once(tmp_path / "x", (tmp_path / "x").mkdir)


def test_other_processes_do_not_write_before_they_are_connected(environment, tmp_path):
    environment(WORLD_SIZE=2, LOCAL_RANK=1)
    processes.save_once(tmp_path / "x", (tmp_path / "x").mkdir)
    assert not (tmp_path / "x").exists()


# ---- what was asked for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "devices", "expected"),
    [
        ({"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}, "auto", (2, 2)),
        ({"WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 2}, 2, (2, 1)),
        ({"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}, "auto", ("auto", 1)),
    ],
)
def test_devices_left_out_are_those_of_torchrun(environment, monkeypatch, told, devices, expected):
    environment(**told)
    assert processes.devices_of_launcher(devices, 1) == (devices, 1)  # not torchrun's
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    assert processes.devices_of_launcher(devices, 1) == expected


@pytest.mark.parametrize("devices", [1, "1", [0]])
def test_one_device_for_several_processes_of_torchrun_is_refused(environment, monkeypatch, devices):
    environment(WORLD_SIZE=4, LOCAL_WORLD_SIZE=2)
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    with pytest.raises(ValueError, match=r"torchrun started 4 processes.*pass `devices=2, num_nodes=2`"):
        processes.devices_of_launcher(devices, 1)


def trainer_of(start: str = "popen", device: str = "cpu", world_size: int = 2, kind=DDPStrategy):
    strategy = kind(parallel_devices=[torch.device(device)], start_method=start) if kind is DDPStrategy else kind()
    return SimpleNamespace(world_size=world_size, strategy=strategy, callbacks=[Callback()])


@pytest.mark.parametrize(
    ("trainer", "batch_size", "problem"),
    [
        (trainer_of(kind=SingleDeviceStrategy), 64, "`strategy` is SingleDeviceStrategy.*'ddp' in a script"),
        (trainer_of(world_size=3), 5, "5 cells .100 training cells, batches of 5.*at least 6, or fewer `devices`"),
        (trainer_of(world_size=99), 128, "99 processes cannot share: pass batch sizes of at least 198"),
    ],
)
def test_processes_that_cannot_train_together_are_refused(trainer, batch_size, problem):
    with pytest.raises(ValueError, match=problem):
        processes.check_processes(trainer, batch_size, 100)


def test_checkpoints_that_every_process_would_write_are_refused(tmp_path):
    trainer = trainer_of()
    trainer.callbacks.append(SaveCheckpoint(dirpath=str(tmp_path), monitor="elbo_validation"))
    with pytest.raises(ValueError, match=r"SaveCheckpoint.*2 processes: leave them out, and pass `checkpoint_dir=`"):
        processes.check_processes(trainer, 64, 100)
    trainer.world_size = 1
    processes.check_processes(trainer, 64, 100)


def test_gpus_in_a_notebook_are_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(DDPStrategy, "root_device", torch.device("cuda", 0))
    with pytest.raises(ValueError, match=r"'fork'.*2 GPUs.*torchrun --nproc-per-node=2 script.py"):
        processes.check_processes(trainer_of("fork"), 64, 100)
    processes.check_processes(trainer_of("popen"), 64, 100)


def test_an_interruption_is_remembered(monkeypatch):
    monkeypatch.setattr(processes._here, "interrupted", True)
    with pytest.raises(RuntimeError, match=r"other processes have ended: start the script again.*resume=True"):
        processes.check_processes(trainer_of(), 64, 100)
    processes.check_processes(trainer_of(world_size=1, kind=SingleDeviceStrategy), 64, 100)


@pytest.mark.parametrize(("start", "copies"), [("popen", False), ("fork", True), ("spawn", True)])
def test_strategies_that_copy_the_process(start, copies):
    assert processes.makes_copies(trainer_of(start)) is copies
    assert not processes.makes_copies(trainer_of(kind=SingleDeviceStrategy))


@pytest.mark.parametrize(("start", "ended"), [("fork", [signal.SIGKILL]), ("popen", [])])
def test_ctrl_c_ends_the_copies(start, ended):
    trainer, killed = trainer_of(start), []
    trainer.strategy._launcher = SimpleNamespace(kill=killed.append)
    processes.let_go(trainer)
    assert killed == ended and not processes._here.interrupted


# ---- two processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two processes left, and one beside them."""
    folder = tmp_path_factory.mktemp("ranks")
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    for how in ([], ["script"]):
        command = [sys.executable, str(SCRIPT), str(folder), *how]
        subprocess.run(command, cwd=folder, env=clean | {"OMP_NUM_THREADS": "1"}, timeout=240, check=True)
    return folder


def words(folder: Path) -> list[dict]:
    return [json.loads((folder / f"words{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_processes_tell_each_other(folder):
    first, second = words(folder)
    assert (first["first"], second["first"]) == (True, False)
    assert first["total"] == second["total"] == 3.0
    assert first["from first"] == second["from first"] == "made by 0"
    assert first["random"] == second["random"]
    assert first["error"] == "ZeroDivisionError: division by zero"
    assert second["error"].startswith("RuntimeError: Process 0 failed") and first["error"] in second["error"]


@pytest.mark.slow
def test_one_process_saves_and_the_others_wait_for_it(folder):
    first, second = words(folder)
    assert first["there"] and second["there"]
    assert first["taken"].startswith("ValueError") and "pass `overwrite=True`" in first["taken"]
    assert second["taken"].startswith("RuntimeError: Process 0 could not save") and first["taken"] in second["taken"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vae", "flow"])
def test_the_gradient_of_a_split_batch_is_that_of_the_whole_one(folder, stage):
    for said in words(folder):
        difference, size = said["gradients"][stage]
        assert difference <= 1e-6 * size and size > 0.1


def assert_same_model(folder: Path, one: str, other: str, tolerance: float) -> None:
    """Weights, history and predictions; predicted counts reach to some hundreds."""
    one, other = (dict(np.load(folder / f"{name}.npz")) for name in (one, other))
    assert set(one) == set(other) and any(name.startswith("history") for name in one)
    for name, values in one.items():
        np.testing.assert_allclose(values, other[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both0", "both1", "script0", "script1", "copies0"])
def test_two_processes_learn_what_one_learns(folder, name):
    """Scripts, copies of the process as in notebooks; early stopping at the same epoch, batches of uneven parts."""
    assert_same_model(folder, name, "alone0", 2e-5)
    stopped = {key: len(values) for key, values in np.load(folder / f"{name}.npz").items() if "validation" in key}
    assert set(stopped.values()) == {4}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", "script", "resumed"])
def test_processes_end_with_the_same_bits(folder, name):
    assert_same_model(folder, f"{name}0", f"{name}1", 0.0)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_which_goes_on(folder):
    codes = json.loads((folder / "codes.json").read_text())
    assert codes["killed"] == [1, -9] and codes["resumed"] == codes["both"] == [0, 0]
    assert_same_model(folder, "resumed0", "both0", 0.0)
    assert_same_model(folder, "one after two0", "both0", 2e-5)  # with one process


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_stops_all_processes(folder):
    assert [(folder / f"unwritable{rank}.txt").read_text() for rank in range(2)] == ["True FileExistsError"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["both", "script", "copies"])
def test_the_saved_model_is_the_trained_one(folder, name):
    model = CFMVC.load(str(folder / name), adata=False)
    left = np.load(folder / f"{name}0.npz")
    assert all((left[key] == value.numpy()).all() for key, value in model.module.state_dict().items())
    assert len(model.history["flow_loss_validation"]) == 4


@pytest.mark.slow
def test_nothing_else_is_left(folder):
    assert not (folder / "lightning_logs").exists()
