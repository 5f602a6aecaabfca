"""A busy machine, made of a clock and a count of switches: what is tried, kept, said."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from cfmvc_scvi.train.contention import ContentionWatch, involuntary_switches


class Machine:
    """Steps take ``seconds[threads]`` and are interrupted ``switches`` times with several threads."""

    def __init__(self, monkeypatch, seconds: dict[int, float], switches: int, *, act: bool = True, threads: int = 2):
        self.threads, self.seconds, self.per_step = threads, seconds, switches
        self.now, self.counted = 0.0, 0
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(self, "threads", n))
        self.watch = ContentionWatch(act=act, clock=lambda: self.now, switches=lambda: self.counted)

    def train(self, n_steps: int, device: str = "cpu", world_size: int = 1) -> list[str]:
        trainer, plan = SimpleNamespace(world_size=world_size), SimpleNamespace(device=torch.device(device))
        with warnings.catch_warnings(record=True) as caught, self.watch.restored():
            warnings.simplefilter("always")
            self.watch.on_train_start(trainer, plan)
            for step in range(n_steps):
                if step % 3 == 0:
                    self.now, self.counted = self.now + 100.0, self.counted + 10_000  # validation, between epochs
                    self.watch.on_train_epoch_start(trainer, plan)
                self.now += self.seconds[self.threads]
                self.counted += self.per_step if self.threads > 1 else 2
                self.watch.on_train_batch_end(trainer, plan, None, None, step)
            self.at_the_end = self.threads
        return [str(warning.message) for warning in caught]


def test_one_thread_is_kept_where_it_is_faster(monkeypatch):
    machine = Machine(monkeypatch, {2: 0.6, 1: 0.012}, 150)
    [message] = machine.train(60)
    assert machine.at_the_end == 1 and machine.threads == 2  # as it was, afterwards
    assert "600 ms with 2 threads and takes 12 ms with one" in message and "GOMP_SPINCOUNT=3000" in message


def test_it_is_given_up_where_it_is_not(monkeypatch):
    machine = Machine(monkeypatch, {2: 0.010, 1: 0.014}, 178)  # many switches without harm
    assert machine.train(60) == [] and machine.at_the_end == 2


def test_a_quiet_machine_is_left_alone(monkeypatch):
    machine = Machine(monkeypatch, {2: 0.008, 1: 0.001}, 1)
    assert machine.train(60) == [] and machine.at_the_end == 2


def test_runs_with_checkpoints_are_only_told(monkeypatch):
    machine = Machine(monkeypatch, {2: 0.6, 1: 0.012}, 150, act=False)
    [message] = machine.train(60)
    assert machine.at_the_end == 2 and "The number stays as it is" in message and "GOMP_SPINCOUNT" in message


@pytest.mark.parametrize("changes", [{"device": "meta"}, {"world_size": 2}])
def test_devices_and_several_processes_are_left_alone(monkeypatch, changes):
    machine = Machine(monkeypatch, {2: 0.6, 1: 0.012}, 150)
    assert machine.train(60, **changes) == [] and machine.at_the_end == 2


def test_switches_are_counted():
    assert involuntary_switches() >= 0
