"""Source cells: where they go, what they decode to, and that no cell notices the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.prediction.request import PredictionCall

EFFECT = np.array([1.0, -0.5], dtype=np.float32)


def test_padding_is_not_among_what_was_asked(sources):
    found = sources([5, 8, 2])
    assert len(found.cells) == 32 and found.asked.obs.index.tolist() == ["c5", "c8", "c2"]
    assert found.codes.tolist() == [1, 0, 0]
    assert sources([5, 8, 2], nearest=np.array([False, True, False])).codes.tolist() == [1, -1, 0]


@pytest.mark.parametrize("solver", ["euler", "midpoint", "adaptive"])
def test_nothing_done_moves_nothing(sources, solver):
    found = sources([0, 1, 2], PredictionCall.of("mean", solver=solver))
    assert torch.equal(found.move(np.zeros(2, dtype=np.float32)), found.z)
    assert (found.move(EFFECT) != found.z).any(dim=-1).all()


def test_a_cell_moves_and_draws_alike_among_any_others(sources):
    call = PredictionCall.of("mean", n_samples=3, seed=4)
    one, other = sources(list(range(50)), call), sources([9, 30, 2], call)
    assert other.z.shape == (3, 32, 4) and (other.z[0] != other.z[1]).all()
    np.testing.assert_array_equal(other.z[:, :3], one.z[:, [9, 30, 2]])
    np.testing.assert_array_equal(other.move(EFFECT)[:, :3], one.move(EFFECT)[:, [9, 30, 2]])
    assert not torch.equal(sources([9], PredictionCall.of("mean", n_samples=3, seed=5)).z[:, 0], other.z[:, 0])


def test_draws_have_the_mean_and_spread_of_the_posterior(sources):
    found = sources([3], PredictionCall.of("mean", n_samples=4000))
    cell = found.z[:, 0]
    torch.testing.assert_close(cell.mean(dim=0), found.posterior.mean[0], atol=0.15, rtol=0.05)
    torch.testing.assert_close(cell.std(dim=0), found.posterior.scale[0], atol=0.0, rtol=0.1)


def test_drawn_counts_start_at_the_posterior_mean(sources):
    found = sources([3], PredictionCall.of("counts", n_samples=5))
    torch.testing.assert_close(found.z, found.posterior.mean.unsqueeze(0))


def test_shares_sum_to_one_and_counts_get_their_log(sources):
    share, log = (sources([0, 1], PredictionCall.of(kind)) for kind in ("mean", "counts"))
    rows = slice(0, 32)
    torch.testing.assert_close(share.decoded(rows).sum(dim=1), torch.ones(32))
    torch.testing.assert_close(log.decoded(rows).exp(), share.decoded(rows))


def test_several_draws_are_averaged_on_the_log_scale(sources):
    found = sources([0, 1])
    z, technical = found.z[0], found.posterior.technical_mean
    batch = found.cells.context.batch
    same = found.decode(torch.stack([z, z, z]), technical, batch)
    torch.testing.assert_close(same, found.decode(z.unsqueeze(0), technical, batch))


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_decoded_is_kept_where_asked(sources, keep):
    found = sources([0, 1], keep_decoded=keep)
    assert (found.decoded(slice(0, 32)) is found.decoded(slice(0, 32))) is keep


def test_too_much_is_not_kept(sources, monkeypatch):
    monkeypatch.setattr("cfmvc_scvi.prediction.sources._KEPT_BYTES", 100)
    assert not sources([0, 1], keep_decoded=True).keep_decoded
