"""Sums of losses that both plans share."""

from __future__ import annotations

import torch

from cfmvc_scvi.train.parts import EpochSums


def test_sums_weigh_batches_by_their_cells():
    sums = EpochSums()
    sums.add(list(torch.tensor([1.0, 10.0])), 3)
    sums.add(list(torch.tensor([5.0, 20.0])), 1)
    torch.testing.assert_close(sums.means(), torch.tensor([2.0, 12.5]))
    assert sums.n_cells == 4
