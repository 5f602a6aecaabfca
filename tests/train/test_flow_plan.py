"""Plan of stage 2: what is trained, and what is refused at its end."""

from __future__ import annotations

import pytest
import torch

from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.train import FlowTrainingPlan


@pytest.fixture
def module() -> CFMVCModule:
    torch.manual_seed(0)
    return CFMVCModule(7, 1, 2, 2, n_latent=4, n_latent_technical=2, n_hidden=8, n_basis=3, n_hidden_flow=8)


def test_the_flow_is_trained_and_the_vae_frozen(module):
    FlowTrainingPlan(module).setup("fit")
    for parts, trains in ((module.flow_parts, True), (module.vae_parts, False)):
        assert all(part.training is trains for part in parts)
        assert all(p.requires_grad is trains for part in parts for p in part.parameters())


def test_weights_that_are_not_finite_are_told_of(module):
    plan = FlowTrainingPlan(module, lr=0.2)
    plan.setup("fit")
    module.flow_field.direction.data[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"stage 2 \(flow\).*weights are not finite.*flow_plan_kwargs"):
        plan.on_fit_end()
