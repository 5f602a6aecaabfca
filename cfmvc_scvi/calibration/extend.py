"""A calibration that learns of further populations, beside those of its training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cfmvc_scvi.calibration.latent_shift import latent_shift
from cfmvc_scvi.calibration.moments import highest_lognorm
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import find_misfit
from cfmvc_scvi.calibration.reach import VectorReach
from cfmvc_scvi.calibration.reference import StoredReference
from cfmvc_scvi.calibration.state import CalibrationState, ObservedEffects
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.registration.members import Members


def extended(
    state: CalibrationState,
    cache: LatentCache,
    rows: np.ndarray,
    populations: Populations,
    members: Members,
    seed: int = 0,
) -> CalibrationState:
    """State of a calibration with the populations of further cells added to its own.

    The process is fitted anew on all populations together, hyperparameters included. Cell types that were there keep
    their control profile and the cells that stand for them; new ones get theirs from the further cells. Spread and
    latent shift are those that were learned, with those of new perturbations beside them.

    Parameters
    ----------
    state
        What was learned, with the observed effects of the training populations.
    cache, rows
        The further cells with their latents, and those of them to learn from.
    populations
        Their populations; codes of cell types go on behind those of ``state``.
    members
        Perturbations of each of these.
    seed
        Of the choice of control cells.

    Raises
    ------
    ValueError
        Where the state has no observed effects.
    """
    if state.observed is None or state.process is None:
        raise ValueError("The effects of the training populations are needed, and the calibration does not have them.")
    n_trained, rng = len(state.profiles), np.random.default_rng(seed)
    known, new = state.observed.effects, populations.observed(members)
    profiles, composition = np.vstack([state.process.profiles, _padded(state, populations.mean0[n_trained:])]), None
    if state.composition is not None:
        own = state.composition.profiles
        composition = replace(state.composition, profiles=np.vstack([own, populations.mean0[n_trained:]]))
        new = composition.split(new)
    effects = joined(known, new)
    process, reach = EffectGP(profiles).fit(effects), None
    if composition is not None:
        whole = replace(effects, effect=composition.join(effects.effect, effects.context), freedom=None)
        whole = replace(whole, variance=effects.variance[:, :-1])
        reach = VectorReach.fit(process, whole, effects.members.kinds(), seed)
    n_control = np.array([len(cells) for cells in populations.control])
    has_own = np.isin(np.arange(len(n_control)), cache.cells.context.labels.numpy()[rows][cache.condition[rows] == 0])
    before = np.pad(state.observed.n_control, (0, len(n_control) - n_trained))
    observed = ObservedEffects(effects, before + has_own * n_control, find_misfit(process, effects))
    n_features = len(state.latent_shift)
    shift = latent_shift(cache, rows, populations, members)[n_features:]
    spread = populations.spread_effect(members)[n_features:] * bool(state.spread_effect.any())
    stored = [StoredReference.sample(cache, cells, rng) for cells in populations.control[n_trained:]]
    return replace(
        state,
        profiles=np.vstack([state.profiles, populations.mean0[n_trained:]]).astype(np.float32),
        variance=np.vstack([state.variance, populations.spread0[n_trained:]]).astype(np.float32),
        highest=np.maximum(state.highest, highest_lognorm(cache.cells, rows)),
        spread_effect=np.vstack([state.spread_effect, spread]),
        latent_shift=np.vstack([state.latent_shift, shift]),
        reference=[*state.reference, *stored],
        process=process,
        composition=composition,
        reach=reach,
        observed=observed,
    )


def joined(first: MeanEffects, second: MeanEffects) -> MeanEffects:
    """The populations of both, one below another."""
    freedom = None
    if first.freedom is not None or second.freedom is not None:
        parts = [np.full_like(e.effect, np.inf) if e.freedom is None else e.freedom for e in (first, second)]
        freedom = np.concatenate(parts)
    return MeanEffects(
        effect=np.concatenate([first.effect, second.effect]),
        variance=np.concatenate([first.variance, second.variance]),
        members=first.members.joined(second.members),
        context=np.concatenate([first.context, second.context]),
        freedom=freedom,
    )


def _padded(state: CalibrationState, profiles: np.ndarray) -> np.ndarray:
    """Profiles of new cell types with the column of the offset, where the process has one."""
    return profiles if state.composition is None else np.pad(profiles, ((0, 0), (0, 1)))
