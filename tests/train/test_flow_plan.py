"""Plan of stage 2: what is trained, and the moving average that the networks end with."""

from __future__ import annotations

import pytest
import torch

from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.train import FlowTrainingPlan


@pytest.fixture
def module() -> CFMVCModule:
    torch.manual_seed(0)
    return CFMVCModule(7, 1, 2, 2, n_latent=4, n_latent_technical=2, n_hidden=8, n_basis=3, n_hidden_flow=8)


def flow_weights(module) -> list[torch.Tensor]:
    return [p.detach().clone() for part in module.flow_parts for p in part.parameters()]


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decays_that_are_refused(module, decay):
    with pytest.raises(ValueError, match=f"`ema_decay` is {decay}"):
        FlowTrainingPlan(module, ema_decay=decay)


def test_the_flow_is_trained_and_the_vae_frozen(module):
    FlowTrainingPlan(module).on_fit_start()
    for parts, trains in ((module.flow_parts, True), (module.vae_parts, False)):
        assert all(part.training is trains for part in parts)
        assert all(p.requires_grad is trains for part in parts for p in part.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_networks_end_with_the_average_that_was_kept(module, decay):
    plan = FlowTrainingPlan(module, ema_decay=decay)
    plan.on_fit_start()
    first, checkpoint = flow_weights(module), {}
    plan.on_save_checkpoint(checkpoint)
    for p in module.parameters():
        p.data.add_(1.0)
    moved = flow_weights(module)
    other = FlowTrainingPlan(module, ema_decay=decay)
    other.on_fit_start()
    other.on_load_checkpoint(checkpoint)
    other.on_fit_end()
    expected = first if decay else moved
    assert all(torch.equal(a, b) for a, b in zip(flow_weights(module), expected, strict=True))


def test_weights_that_are_not_finite_are_told_of(module):
    plan = FlowTrainingPlan(module, ema_decay=0.0, lr=0.2)
    plan.on_fit_start()
    module.flow_field.direction.data[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"stage 2 \(flow\).*weights are not finite.*flow_plan_kwargs"):
        plan.on_fit_end()
