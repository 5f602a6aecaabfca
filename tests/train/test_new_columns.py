"""New perturbations learned alone, beside a flow that stays as it is."""

from __future__ import annotations

import numpy as np
import torch

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.cells.pairs import LatentData, PairLoader
from cfmvc_scvi.flow import get_coupling
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.registration.members import Members
from cfmvc_scvi.train.new_columns import fit_new_columns


def test_a_new_shift_is_learned_and_nothing_else_moves():
    torch.manual_seed(0)
    module = CFMVCModule(10, 1, 1, 2, n_latent=3, n_latent_technical=2, n_hidden=8, n_basis=6, n_hidden_flow=8).eval()
    with torch.no_grad():
        module.adapter.first.weight[:, 1] = 0.0
    before = {name: value.clone() for name, value in module.state_dict().items()}
    n, shift = 60, torch.tensor([1.0, -0.5, 0.25])
    z = 0.3 * torch.randn(2 * n, 3)
    z[n:] += shift
    condition = np.repeat([0, 1], n)
    context = FlowContext(*(torch.zeros(2 * n, dtype=torch.long) for _ in range(2)))
    p = Members(np.array([[-1], [1]]), np.array([[0.0], [1.0]], dtype=np.float32), None, 2)
    data = LatentData(z, torch.full_like(z, 0.01), context, condition, p)
    rows, spare = np.arange(n, 2 * n), np.arange(n)
    pairs = PairLoader(data, rows, get_coupling("independent"), "control", 32, spare_controls=spare)
    fit_new_columns(module, pairs, 1, seed=0)
    for name, value in module.state_dict().items():
        if name == "adapter.first.weight":
            assert torch.equal(value[:, 0], before[name][:, 0])
        else:
            assert torch.equal(value, before[name]), name
    zeros, vector = torch.zeros(1, 3), torch.tensor([[0.0, 1.0]])
    velocity = module.velocity(zeros, torch.full((1,), 0.5), context[torch.zeros(1, dtype=torch.long)], vector)
    torch.testing.assert_close(velocity.effect[0], shift, atol=0.25, rtol=0)
