"""What identifies the run of a stage: every argument that can be written down, and nothing that may differ."""

from __future__ import annotations

from cfmvc_scvi.train.state import StageArguments


def described(**changes):
    arguments = {"max_epochs": 3, "batch_size": 64, "early_stopping": False, "plan_kwargs": {"lr": 0.1}, "seed": 0}
    return StageArguments(**(arguments | changes)).described()


def test_every_argument_is_described():
    found = described(train_size=0.9, trainer={"gradient_clip_val": 1.0, "precision": "32-true"})
    assert found["plan_kwargs"] == {"lr": 0.1} and found["gradient_clip_val"] == 1.0
    assert set(found) == {
        *("max_epochs", "batch_size", "early_stopping", "plan_kwargs", "seed", "train_size", "validation_size"),
        *("gradient_clip_val", "precision"),
    }


def test_callbacks_loggers_and_bars_may_differ():
    assert described(trainer={"callbacks": [1], "logger": False, "enable_progress_bar": False}) == described()


def test_what_cannot_be_written_down_is_left_out():
    assert described(trainer={"strategy": object(), "limits": [1, {"a": object()}]}) == described()
    assert described(trainer={"limits": [1, {"a": None}]})["limits"] == [1, {"a": None}]


def test_another_argument_is_another_description():
    for change in ({"max_epochs": 4}, {"seed": 1}, {"plan_kwargs": None}, {"trainer": {"precision": "16-mixed"}}):
        assert described(**change) != described()
