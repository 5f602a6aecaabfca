"""What is logged once per epoch is the mean over the epoch's cells; what is checked, and which optimiser."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

STAGE_1 = {
    *(
        f"{name}_{mode}"
        for name in ("elbo", "reconstruction_loss", "kl_local", "kl_global")
        for mode in ("train", "validation")
    ),
    *("kl_weight", "train_loss", "validation_loss"),
}


@pytest.mark.slow
def test_history_has_the_keys_of_scvi_tools(simulated, build, quiet):
    model = build(simulated)
    model.train_vae(3, **quiet)
    assert set(model.history) == STAGE_1
    history = {key: frame.to_numpy(dtype=float).ravel() for key, frame in model.history.items()}
    for mode in ("train", "validation"):
        total = history[f"reconstruction_loss_{mode}"] + history[f"kl_local_{mode}"]
        np.testing.assert_allclose(history[f"elbo_{mode}"], total, rtol=1e-6)
    np.testing.assert_allclose(history["kl_weight"], [0.0, 0.1, 0.2], atol=1e-6)
    assert len(history["elbo_train"]) == 3


@pytest.mark.slow
def test_logged_losses_are_those_of_the_validation_cells(simulated, build, quiet):
    """Without steps the logged mean is what scvi-tools' method reports, up to the draws of the posterior."""
    model = build(simulated)
    model.train_vae(1, batch_size=64, plan_kwargs={"lr": 0.0}, **quiet)
    logged = float(model.history["reconstruction_loss_validation"].iloc[-1, 0])
    reported = model.get_reconstruction_error(indices=model.validation_indices)["reconstruction_loss"]
    assert logged == pytest.approx(abs(float(reported)), rel=0.02)  # a log-likelihood there, a loss here


@pytest.mark.slow
def test_steps_of_scvi_tools_are_still_to_be_had(simulated, build, quiet):
    fast, slow = build(simulated), build(simulated.copy())
    fast.train_vae(2, plan_kwargs={"lr": 0.0}, **quiet)
    slow.train_vae(2, plan_kwargs={"lr": 0.0, "on_step": True}, **quiet)
    for key in ("elbo_train", "elbo_validation"):
        ours, scvi = fast.history[key], slow.history[f"{key}_epoch"]
        assert float(ours.iloc[-1, 0]) == pytest.approx(float(scvi.iloc[-1, 0]), rel=0.02)


def test_train_metrics_are_there_when_callbacks_ask(simulated, build, fit):
    seen = []

    class Ask(Callback):
        def on_train_epoch_end(self, trainer, plan):
            seen.append({"elbo_train", "flow_loss_train"} & set(trainer.callback_metrics))

    fit(build(simulated), callbacks=[Ask()])
    assert seen == [{"elbo_train"}, {"elbo_train"}, {"flow_loss_train"}, {"flow_loss_train"}]


@pytest.mark.slow
def test_an_epoch_that_is_cut_short_is_logged(simulated, build, quiet):
    model = build(simulated)
    model.train_vae(5, batch_size=32, max_steps=11, **quiet)
    assert len(model.history["elbo_train"]) == 2
    losses = model.history["elbo_train"].to_numpy(dtype=float).ravel()
    assert losses[1] == pytest.approx(losses[0], rel=0.1)  # the second, of three batches, is a mean over its cells too


@pytest.mark.slow
def test_counts_on_the_device_train_the_same_model(simulated, build, quiet):
    weights = []
    for on_device in (False, True):
        model = build(simulated.copy())
        model.train_vae(2, data_on_device=on_device, **quiet)
        weights.append([p.clone() for p in model.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e6])
def test_gradients_are_clipped_to_the_norm_asked_for(simulated, build, quiet, clip):
    norms = []

    class Norm(Callback):
        def on_before_optimizer_step(self, trainer, plan, optimizer):
            grads = [p.grad for p in plan.parameters() if p.grad is not None]
            plan.before = torch.nn.utils.get_total_norm(grads).item()

        def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx):
            grads = [p.grad for p in plan.parameters() if p.grad is not None]
            norms.append((plan.before, torch.nn.utils.get_total_norm(grads).item()))

    build(simulated).train_vae(1, batch_size=64, gradient_clip_val=clip, callbacks=[Norm()], **quiet)
    assert len(norms) == 4  # one for every batch of 64 among 270 cells
    for before, after in norms:
        assert after == pytest.approx(min(before, clip), rel=1e-4)
