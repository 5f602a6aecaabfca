"""Divergence that stays finite: which losses are let pass, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cfmvc_scvi.train.guards import DivergenceWatch, FiniteWatch

PLAN = SimpleNamespace(lr=0.5, module=SimpleNamespace(energy_weight=0.0))


def run(stage: str, epochs: list[list[float]], batch, *, best: bool = False) -> DivergenceWatch:
    """Shows the watch these losses, epoch by epoch."""
    watch, trainer = DivergenceWatch(stage), SimpleNamespace(current_epoch=0, callbacks=[])
    trainer.callbacks = [SimpleNamespace(load_best_on_end=True)] if best else []
    for trainer.current_epoch, losses in enumerate(epochs):
        watch.on_train_epoch_start(trainer, PLAN)
        for i, loss in enumerate(losses):
            watch.on_train_batch_end(trainer, PLAN, {"loss": torch.tensor(loss)}, batch, i)
        watch.on_train_epoch_end(trainer, PLAN)
    watch.on_train_end(trainer, PLAN)
    return watch


CELLS = [None] * 128  # as many as give the reference


@pytest.mark.parametrize("losses", [[[100.0, 50.0], [20.0]], [[100.0], [990.0], [100.0]], [[100.0], [299.0]]])
def test_losses_that_pass(losses):
    assert run("vae", losses, CELLS).state_dict()["first"] == 100.0


@pytest.mark.parametrize(
    ("losses", "epoch"), [([[100.0], [1001.0], [10.0]], 1), ([[100.0], [100.0], [301.0]], 2), ([[100.0, 5e4]], 0)]
)
def test_losses_that_do_not(losses, epoch):
    message = rf"stage 1 \(VAE\) diverged in epoch {epoch}.*against 100 at the start.*vae_plan_kwargs=\{{'lr': 0.05\}}"
    with pytest.raises(FloatingPointError, match=message):
        run("vae", losses, CELLS)


def test_the_last_epoch_may_be_worse_where_the_best_weights_are_taken():
    run("vae", [[100.0], [301.0]], CELLS, best=True)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        run("vae", [[100.0], [301.0]], CELLS)


def test_small_batches_give_the_reference_together():
    """The largest of the first 128 cells: the third batch of 64 is not among them."""
    run("vae", [[10.0, 100.0, 100.0], [200.0]], [None] * 64)
    with pytest.raises(FloatingPointError, match="against 10 at"):
        run("vae", [[10.0, 10.0, 400.0]], [None] * 64)


def test_the_flow_is_compared_with_one_that_moves_nothing():
    pairs = SimpleNamespace(z0=torch.zeros(4, 3), z1=torch.full((4, 3), 2.0))  # a loss of 12
    run("flow", [[119.0], [35.0]], pairs)
    with pytest.raises(FloatingPointError, match=r"stage 2 \(flow\).*against 12 of a flow that moves nothing"):
        run("flow", [[35.0], [37.0]], pairs)


def test_a_run_that_goes_on_keeps_the_reference():
    before = run("vae", [[100.0]], CELLS)
    after = DivergenceWatch("vae")
    after.load_state_dict(before.state_dict())
    trainer = SimpleNamespace(current_epoch=5, callbacks=[])
    after.on_train_epoch_start(trainer, PLAN)
    after.on_train_batch_end(trainer, PLAN, {"loss": torch.tensor(2000.0)}, CELLS, 0)
    with pytest.raises(FloatingPointError, match="epoch 5.*against 100"):
        after.on_train_epoch_end(trainer, PLAN)


def test_watch_names_stage_epoch_and_quantity():
    watch = FiniteWatch("stage 1 (VAE)", "negative ELBO", "vae_plan_kwargs", 0.1)
    watch(torch.tensor(2.0), 3, last=False)
    with pytest.raises(FloatingPointError, match=r"stage 1 \(VAE\) diverged in epoch 4: the negative ELBO is nan"):
        watch(torch.tensor(float("nan")), 4, last=False)
