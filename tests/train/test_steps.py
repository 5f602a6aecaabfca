"""Steps without the work around them: the hooks that are left out change nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import SimpleProfiler

from cfmvc_scvi import CFMVC, data
from cfmvc_scvi.train import steps
from cfmvc_scvi.train.steps import JoinedParameters, LeanSteps, NoProfiler


class Hooks(Callback):
    """Remembers the name of the hook that Lightning says is running, and the trainer's profiler."""

    def on_train_batch_end(self, trainer, plan, outputs, batch, batch_idx) -> None:
        self.name, self.profiler = plan._current_fx_name, trainer.profiler
        self.stored = "_current_fx_name" in vars(plan)


def trained(**kwargs) -> tuple[CFMVC, Hooks]:
    adata = data.simulate_perturbation(n_cells=80, n_genes=20, n_cell_types=2, n_perturbations=2, n_pairs=0)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model, hooks = CFMVC(adata, n_latent=3, n_latent_technical=2, n_hidden=8), Hooks()
    model.train_vae(max_epochs=1, accelerator="cpu", enable_progress_bar=False, callbacks=[hooks], **kwargs)
    return model, hooks


@pytest.mark.slow
def test_the_running_hook_is_known_and_nothing_is_profiled():
    model, hooks = trained()
    assert hooks.name == "on_train_batch_end" and hooks.stored
    assert isinstance(hooks.profiler, NoProfiler)
    with hooks.profiler.profile("one"), hooks.profiler.profile("in the other"):
        pass
    assert {"elbo_train", "reconstruction_loss_train"} <= set(model.history)


@pytest.mark.slow
def test_a_profiler_that_is_asked_for_is_used():
    profiler = SimpleProfiler()
    _, hooks = trained(profiler=profiler)
    assert hooks.profiler is profiler
    assert any("optimizer_step" in action for action in profiler.recorded_durations)


class Plan(LeanSteps):
    """No more of a plan than an optimiser asks for."""

    def __init__(self, precision: str) -> None:
        self.trainer = SimpleNamespace(precision=precision)


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", None), ("16-mixed", None)])
def test_the_optimiser_is_fused_where_gradients_can_still_be_clipped(precision, fused):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Plan(precision).lean_optimizer(torch.optim.Adam, [weight], lr=0.5)
    assert optimizer.param_groups[0]["fused"] is fused
    weight.sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.5))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_the_state_of_the_optimiser_fits_on_every_device(device, precision):
    parameters = [torch.nn.Parameter(torch.ones(n, device=device)) for n in (3, steps._SMALL + 1, 5)]
    optimizer = Plan(precision).lean_optimizer(torch.optim.Adam, parameters, lr=0.5)
    assert [len(p) for p in optimizer.param_groups[0]["params"]] == [steps._SMALL + 1, 8]


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 1))


@pytest.mark.parametrize("kept", [True, False])
def test_joined_parameters_take_the_steps_that_they_take_alone(kept):
    """Whether gradients are added up where they are kept, or something else has dropped them."""
    alone, together = network(), network()
    joined = JoinedParameters(list(together.parameters()))
    optimizers = [torch.optim.AdamW(p, lr=0.1, fused=True) for p in (alone.parameters(), [joined.vector])]
    x = torch.randn(7, 3)
    for _ in range(4):
        for net, optimizer in zip((alone, together), optimizers, strict=True):
            joined.zero_gradients() if net is together and kept else net.zero_grad()
            for part in x.split(4):
                net(part).square().sum().backward()
            if net is together:
                assert all((p.grad is g) == kept for p, g in zip(net.parameters(), joined._gradients, strict=True))
                joined.join()
            optimizer.step()
    assert not torch.equal(alone[0].weight, network()[0].weight)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(value, together.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_joined_parameters_whose_memory_was_replaced_or_that_have_no_gradient():
    net = network()
    joined = JoinedParameters(list(net.parameters()))
    net[0].weight.data = torch.full((5, 3), 2.0)
    net[2](torch.ones(1, 5)).sum().backward()
    joined.join()
    torch.optim.SGD([joined.vector], lr=1.0).step()
    assert torch.equal(net[0].weight, torch.full((5, 3), 2.0))  # no gradient
    assert torch.equal(net[2].weight, network()[2].weight - 1.0)
    assert torch.equal(torch.cat([p.flatten() for p in net.parameters()]), joined.vector)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-2},
        {"precision": "bf16-mixed", "gradient_clip_val": 1e-2},
        {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    ],
)
def test_training_is_the_same_with_parameters_joined_and_apart(monkeypatch, options):
    weights = []
    for most in (10**6, 0):
        monkeypatch.setattr(steps, "_SMALL", most)
        torch.manual_seed(0)
        model, _ = trained(batch_size=16, **options)
        weights.append({name: value.clone() for name, value in model.module.state_dict().items()})
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
