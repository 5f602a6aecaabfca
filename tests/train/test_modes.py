"""Modes, sums and watches that both plans share."""

from __future__ import annotations

import pytest
import torch

from cfmvc_scvi.train.modes import EpochSums, FiniteWatch


def test_sums_weigh_batches_by_their_cells():
    sums = EpochSums()
    sums.add(list(torch.tensor([1.0, 10.0])), 3)
    sums.add(list(torch.tensor([5.0, 20.0])), 1)
    torch.testing.assert_close(sums.means(), torch.tensor([2.0, 12.5]))
    assert sums.n_cells == 4


def test_watch_names_stage_epoch_and_quantity():
    watch = FiniteWatch("stage 1 (VAE)", "negative ELBO", "vae_plan_kwargs", 0.1)
    watch(torch.tensor(2.0), 3, last=False)
    with pytest.raises(FloatingPointError, match=r"stage 1 \(VAE\) diverged in epoch 4: the negative ELBO is nan"):
        watch(torch.tensor(float("nan")), 4, last=False)
