"""Training of new perturbations alone: what they do to a flow that stays as it is."""

from __future__ import annotations

import math

import torch

from cfmvc_scvi.cells.pairs import PairLoader
from cfmvc_scvi.module import CFMVCModule

#: Steps, and step size of Adam at the first of them; it falls to zero along a half cosine.
_N_STEPS, _LR = 300, 1e-2


def fit_new_columns(module: CFMVCModule, pairs: PairLoader, n_trained: int, seed: int, n_steps: int = _N_STEPS) -> None:
    """Learn the columns of new perturbations in the adapter; every other weight keeps its bits.

    They start at zero, which is no effect. The new perturbations are combined of the flow's trained basis fields, so
    few cells tell what they do.

    Parameters
    ----------
    module
        With a trained flow.
    pairs
        Pairs of control cells and cells under the new perturbations.
    n_trained
        Features of the perturbation vector that were trained on; those behind them are learned.
    seed
        Of the times along the paths.
    n_steps
        Steps of Adam.
    """
    module.eval().requires_grad_(False)
    weight = module.adapter.first.weight.requires_grad_(True)
    is_new = torch.arange(weight.shape[1], device=weight.device) >= n_trained
    optimizer = torch.optim.Adam([weight], lr=_LR)
    generator = torch.Generator().manual_seed(seed)
    step = 0
    while step < n_steps:
        for batch in pairs:
            optimizer.param_groups[0]["lr"] = 0.5 * _LR * (1.0 + math.cos(math.pi * step / n_steps))
            optimizer.zero_grad()
            t = torch.rand(len(batch), generator=generator).to(weight.device)
            module.flow_loss(batch.z0, batch.z1, t, batch.context, batch.p, batch.condition).backward()
            assert weight.grad is not None  # of a loss that depends on it
            weight.grad.mul_(is_new)  # without a gradient Adam does not move a weight
            optimizer.step()
            step += 1
            if step == n_steps:
                break
    weight.requires_grad_(False)
    weight.grad = None
