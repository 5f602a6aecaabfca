"""Latents of cells: rows of all parts, and the same in the flow's units."""

from __future__ import annotations

import numpy as np
import torch

from cfmvc_scvi.cells.latents import CellPosterior, LatentCache
from cfmvc_scvi.registration.members import Members
from cfmvc_scvi.registration.vocabulary import Condition


def posterior(n: int) -> CellPosterior:
    torch.manual_seed(n)
    return CellPosterior(*(torch.randn(n, size) for size in (3, 3, 2, 2)))


def test_rows_are_those_of_every_part():
    whole = posterior(8)
    part = whole[2:5]
    assert torch.equal(part.mean, whole.mean[2:5]) and torch.equal(part.technical_scale, whole.technical_scale[2:5])


def test_pieces_put_one_after_another_are_the_whole():
    whole, filled = posterior(9), posterior(9)[torch.arange(8, -1, -1)]
    assert not torch.equal(filled.scale, whole.scale)
    for start in (0, 4, 8):
        filled.put(start, whole[start : start + 4])
    for name in ("mean", "scale", "technical_mean", "technical_scale"):
        assert torch.equal(getattr(filled, name), getattr(whole, name)), name


def test_units_of_the_flow_can_be_undone(few_cells):
    found = posterior(40)
    cache = LatentCache(few_cells, found, np.zeros(40, dtype=int), [Condition("control")])
    center, scale, p = torch.tensor([1.0, -2.0, 0.5]), torch.tensor(4.0), Members.of_dense(np.zeros((1, 1, 2)))
    data = cache.flow_data(center, scale, p)
    torch.testing.assert_close(data.mean * scale + center, found.mean)
    torch.testing.assert_close(data.scale * scale, found.scale)
    assert data.context is few_cells.context and data.p is p
