"""The run of a stage without a model; its interruptions are in ``tests/model/test_training*.py``."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scvi.train import LoudEarlyStopping, SaveCheckpoint

from cfmvc_scvi.train import run
from cfmvc_scvi.train.run import run_stage


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", 64, "64-true"])
def test_precisions_of_the_weights_are_refused_before_anything_is_touched(precision):
    with pytest.raises(
        ValueError, match=rf"`precision` is {precision!r}.*weights and likelihood need single precision"
    ):
        run_stage(None, None, None, None, stage="vae", max_epochs=1, precision=precision)


def test_other_callbacks_are_the_callers_own(tmp_path):
    own, saving = Callback(), SaveCheckpoint(dirpath=str(tmp_path), monitor="elbo_validation")
    kept, ours = run._adapted([own, saving])
    assert kept is own and ours is not saving and isinstance(ours, SaveCheckpoint)
    ours.best_model_path = "there"
    assert saving.best_model_path == "there"  # what it learns, the caller's object knows


def test_networks_are_left_in_eval_mode_with_gradients_after_a_failure():
    module = torch.nn.Linear(2, 2).train().requires_grad_(False)
    with pytest.raises(RuntimeError, match="lost"), run._restored_modes(SimpleNamespace(module=module)):
        raise RuntimeError("lost")
    assert not module.training and module.weight.requires_grad


def test_ctrl_c_is_left_as_it_was():
    before = signal.getsignal(signal.SIGINT)
    with run._restored_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("fails", [False, True])
def test_an_earlier_history_goes_on(fails):
    model = SimpleNamespace(history_={"a": 1}, is_trained_=True)
    try:
        with run._own_history(model):
            assert model.history_ is None and not model.is_trained_
            model.history_ = {"b": 2}
            if fails:
                raise OSError
    except OSError:
        assert fails
    assert model.history_ == {"a": 1, "b": 2} and model.is_trained_


def test_early_stopping_is_a_callback_with_the_arguments_of_scvi_tools():
    arguments = {"early_stopping": True, "early_stopping_patience": 3, "early_stopping_warmup_epochs": 2}
    arguments |= {"callbacks": [], "check_val_every_n_epoch": None, "early_stopping_monitor": "flow_loss_validation"}
    run._take_over_early_stopping(arguments)
    (callback,) = arguments.pop("callbacks")
    assert isinstance(callback, LoudEarlyStopping) and arguments == {"check_val_every_n_epoch": 1}
    assert (callback.patience, callback.warmup_epochs, callback.monitor) == (3, 2, "flow_loss_validation")
    without = {"early_stopping": False, "early_stopping_patience": 3, "callbacks": []}
    run._take_over_early_stopping(without)
    assert without == {"callbacks": []}
