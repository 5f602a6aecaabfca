"""Optimisers whose step is one kernel, and steps that Lightning takes around them."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import SimpleProfiler

from cfmvc_scvi import CFMVC, data
from cfmvc_scvi.train.steps import fused


class Optimizer(Callback):
    """Remembers the optimiser."""

    def on_train_start(self, trainer, plan) -> None:
        self.optimizer = trainer.optimizers[0]


def trained(**kwargs) -> Optimizer:
    adata = data.simulate_perturbation(n_cells=80, n_genes=20, n_cell_types=2, n_perturbations=2, n_pairs=0)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model, seen = CFMVC(adata, n_latent=3, n_latent_technical=2, n_hidden=8), Optimizer()
    model.train_vae(max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=[seen], **kwargs)
    assert {"elbo_train", "reconstruction_loss_train"} <= set(model.history)
    return seen


@pytest.mark.slow
def test_a_profiler_that_is_asked_for_is_used():
    profiler = SimpleProfiler()
    trained(profiler=profiler)
    assert any("optimizer_step" in action for action in profiler.recorded_durations)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cpu", "32-true", True), ("cpu", "bf16-mixed", False), ("cpu", "16-mixed", False), ("meta", "32-true", False)],
)
def test_the_optimiser_is_fused_where_there_is_a_kernel_and_gradients_can_still_be_clipped(device, precision, expected):
    weight = torch.nn.Parameter(torch.ones(2, device=device))
    assert fused([weight], precision) == ({"fused": True} if expected else {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"accumulate_grad_batches": 2, "gradient_clip_val": 1e-2}, True),
        ({"precision": "bf16-mixed", "gradient_clip_val": 1e-2}, None),
        ({"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}, True),
    ],
)
def test_training_takes_it_with_every_way_of_clipping(options, expected):
    assert trained(batch_size=16, **options).optimizer.defaults["fused"] is expected
