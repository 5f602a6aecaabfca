"""Effects taken apart into those of single genes and an offset that all share."""

from __future__ import annotations

import numpy as np
import pytest

from cfmvc_scvi.calibration.composition import Composition
from cfmvc_scvi.calibration.process import MeanEffects
from cfmvc_scvi.calibration.process_error import EffectError
from cfmvc_scvi.registration.members import Members


def levels(n_contexts: int = 2, n_genes: int = 300, seed: int = 0) -> np.ndarray:
    """Shares of the genes in some contexts."""
    share = np.exp(np.random.default_rng(seed).normal(0, 1.5, (n_contexts, n_genes)))
    return share / share.sum(axis=1, keepdims=True)


def screen(
    closed: bool = True, noise: float = 0.0, n: int = 24, seed: int = 1
) -> tuple[MeanEffects, np.ndarray, np.ndarray]:
    """Observed effects where thirty genes respond, control levels, and true offsets; shares sum to one if closed."""
    rng = np.random.default_rng(seed)
    share = levels()
    context = rng.integers(2, size=n)
    response = np.zeros((n, share.shape[1]))
    response[:, rng.choice(share.shape[1], 30, replace=False)] = rng.normal(0.5, 1.0, (n, 30))
    after = share[context] * np.exp(response)
    total = after.sum(axis=1, keepdims=True) if closed else 1.0
    profiles = np.log1p(1e4 * share)
    effect = np.log1p(1e4 * after / total) - profiles[context] + rng.normal(0, noise, response.shape)
    variance = np.full_like(effect, max(noise, 1e-3) ** 2)
    members = Members.of_dense(np.eye(n, dtype=np.float32)[:, None])
    return MeanEffects(effect, variance, members, context), profiles, -np.log(np.ravel(total) * np.ones(n))


def test_shares_that_sum_to_one_push_all_genes_by_what_the_others_gain():
    effects, profiles, offset = screen()
    found = Composition.fit(effects, profiles)
    raw = Composition(found.profiles, found.excess).split(effects).effect[:, -1]
    assert offset.std() > 0.05
    np.testing.assert_allclose(raw, offset, atol=0.03)
    assert found.closure > 0.9
    left = found.split(effects).effect[:, -1]
    assert (left**2).mean() < 0.02 * (raw**2).mean()


def test_a_panel_with_library_sizes_of_its_own_has_no_such_push():
    effects, profiles, _ = screen(closed=False)
    found = Composition.fit(effects, profiles)
    assert found.closure < 0.05
    assert np.abs(found.split(effects).effect[:, -1]).max() < 0.03


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_effects_come_together_as_they_were(noise):
    effects, profiles, _ = screen(noise=noise)
    found = Composition.fit(effects, profiles)
    parts = found.split(effects)
    assert parts.effect.shape == (24, 301)
    joined = found.join(parts.effect.astype(np.float64), effects.context)
    # of noisy effects the part that is signal is taken for the push, so they differ by how the noise would push
    pushed = found._pushed(parts.effect[:, :-1], effects.context)
    drawn = found._pushed_by_noisy(parts, slice(None))
    expected = effects.effect + found.closure * (pushed - drawn) * found.slope[effects.context]
    np.testing.assert_allclose(joined, expected, atol=1e-5)
    one = found.join(parts.effect[3].astype(np.float64), int(effects.context[3]))
    np.testing.assert_allclose(one, joined[3])


def test_no_effect_is_no_effect():
    effects, profiles, _ = screen()
    found = Composition.fit(effects, profiles)
    assert (found.join(np.zeros(301), 1) == 0).all()


def test_offsets_of_some_populations_are_those_of_all(monkeypatch):
    effects, profiles, _ = screen(noise=0.1)
    found = Composition.fit(effects, profiles)
    whole, rows = found.split(effects), np.array([5, 2, 17])
    np.testing.assert_array_equal(found.split(effects.take(rows)).effect, whole.effect[rows])
    monkeypatch.setattr("cfmvc_scvi.calibration.composition.BLOCK", 1)  # one population at a time
    np.testing.assert_allclose(found.split(effects).effect, whole.effect, atol=1e-6)


def test_freedom_of_the_offset_is_that_of_the_typical_gene():
    effects, profiles, _ = screen()
    freedom = np.full(effects.effect.shape, 3.0)
    effects = MeanEffects(effects.effect, effects.variance, effects.members, effects.context, freedom)
    parts = Composition.fit(effects, profiles).split(effects)
    assert parts.freedom.shape == (24, 301)
    assert (parts.freedom == 3.0).all()


def test_errors_are_those_of_draws_put_together():
    effects, profiles, _ = screen()
    found = Composition.fit(effects, profiles)
    parts, context = found.split(effects), np.array([0, 1])
    mean = parts.effect[[0, 1]].astype(np.float64)
    rng = np.random.default_rng(0)
    root = rng.normal(0, 0.03, (301, 2, 2))
    covariance = root @ root.transpose(0, 2, 1)
    error = found.join_error(EffectError(mean, covariance, np.zeros_like(covariance)), context)
    noise = np.einsum("gij,ngj->nig", root, rng.normal(size=(4000, 301, 2)))
    drawn = np.stack([found.join(mean + one, context) for one in noise])
    np.testing.assert_allclose(error.mean, found.join(mean, context))
    np.testing.assert_array_equal(error.noise, 0.0)
    assert np.median(np.einsum("gcc->cg", error.process) / drawn.var(axis=0)) == pytest.approx(1.0, abs=0.05)
    both = drawn - drawn.mean(axis=0)
    between = (both[:, 0] * both[:, 1]).mean(axis=0)
    scale = np.sqrt(drawn.var(axis=0).prod(axis=0))
    assert np.median(np.abs(error.process[:, 0, 1] - between) / scale) < 0.1


def test_it_is_kept_whole():
    effects, profiles, _ = screen()
    found = Composition.fit(effects, profiles)
    again = Composition.from_saved(found.to_saved())
    np.testing.assert_array_equal(again.split(effects).effect, found.split(effects).effect)
