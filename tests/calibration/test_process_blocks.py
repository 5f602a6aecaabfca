"""The process by blocks against all populations in one: the same predictions, misfit and errors."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pytest

from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import Misfit, effect_error, find_misfit
from cfmvc_scvi.calibration.process_query import Conditions, related
from cfmvc_scvi.io.codec import to_plain
from cfmvc_scvi.registration.members import Members

N_GENES = 8


class Together(MeanEffects):
    """Effects whose populations are taken as one block."""

    @cached_property
    def component(self) -> np.ndarray:
        """One number for all."""
        return np.zeros(len(self.effect), dtype=int)


def screen(conditions: list[tuple[int, ...]], n_contexts: int, table: np.ndarray | None = None, dose: float = 1.0):
    """Profiles of the contexts, and effects of conditions in every context, one population missing."""
    rng = np.random.default_rng(0)
    n, most = len(conditions) * n_contexts - 1, max(map(len, conditions))
    given = np.array([[*condition, *[-1] * (most - len(condition))] for condition in conditions])
    index = np.repeat(given, n_contexts, axis=0)[:n]
    n_features = given.max() + 1 if table is None else table.shape[1]
    members = Members(index, np.where(index < 0, 0, dose).astype(np.float32), table, n_features)
    effect = np.repeat(rng.normal(size=(len(conditions), N_GENES)), n_contexts, axis=0)[:n]
    effect = (effect + 0.3 * rng.normal(size=effect.shape)) * np.linspace(0.2, 2.0, N_GENES)
    variance = rng.uniform(0.01, 0.1, size=effect.shape)
    freedom = np.where(rng.random(effect.shape) < 0.5, 5.0, np.inf)
    profiles = rng.gamma(1.0, 1.0, size=(n_contexts, N_GENES))
    return profiles, (effect, variance, members, np.tile(np.arange(n_contexts), len(conditions))[:n], freedom)


SINGLES = [(k,) for k in range(6)]
PAIRS = [(0,), (1,), (2,), (0, 1), (1, 2), (5,), (6,), (5, 6), (7,)]
SPARSE = np.array([[1.0, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]])
SCREENS = {
    "one context": screen(SINGLES, 1),
    "contexts": screen(SINGLES, 3, dose=0.7),
    "pairs": screen(PAIRS, 1),
    "pairs in contexts": screen(PAIRS, 2),
    "vectors": screen([(0,), (1,), (2,), (3,), (0, 2)], 2, SPARSE),
}


@pytest.mark.parametrize("name", SCREENS)
def test_blocks_say_what_all_populations_in_one_say(name):
    profiles, columns = SCREENS[name]
    found = []
    for kind in (Together, MeanEffects):
        data = kind(*columns)
        gp = EffectGP(profiles).fit(data)
        misfit = find_misfit(gp, data)
        queries = Conditions(data.members.take(np.array([0, 3])).dense(), np.array([0, len(profiles) - 1]))
        error = effect_error(gp, data, queries, Misfit(misfit.kappa + 0.1))
        predicted = [gp.predict(members, code) for members, code in zip(queries.members, queries.context, strict=True)]
        hyper = np.array(list(gp.hyper.values()))
        found.append([np.stack(predicted), hyper, misfit.kappa, error.mean, error.process, error.noise, error.freedom])
    assert len(np.unique(MeanEffects(*columns).component)) > 1
    for one, blocks in zip(*found, strict=True):
        np.testing.assert_allclose(blocks, one, rtol=1e-5, atol=1e-8)


def test_estimates_rest_on_the_populations_that_share_features():
    _, columns = SCREENS["pairs"]
    data = MeanEffects(*columns)
    asked = Conditions(data.members.take(np.array([0])).dense(), np.array([0]))
    np.testing.assert_array_equal(related(data, asked).effect, data.effect[:5])


def test_many_perturbations_take_memory_in_proportion():
    n, n_genes = 4_000, 10
    rng = np.random.default_rng(1)
    members = Members(np.arange(n)[:, None], np.ones((n, 1), dtype=np.float32), None, n)
    effect = rng.normal(size=(n, n_genes)).astype(np.float32)
    data = MeanEffects(effect, np.full_like(effect, 0.1), members, np.zeros(n, dtype=int))
    gp = EffectGP(np.ones((1, n_genes))).fit(data)
    sizes = [array.nbytes for array in to_plain(gp.to_dict())[1].values()]
    assert sum(sizes) < n * (4 * n_genes + 24) + 10_000
    again = EffectGP.from_dict(gp.to_dict())
    predicted = again.predict(members.take(np.array([17])).dense()[0], 0)
    hyper, amplitude = gp.hyper, gp.state["amplitude"]
    kernel = (hyper["common"] + hyper["context"]) * amplitude
    np.testing.assert_allclose(predicted, effect[17] * kernel / (kernel + hyper["noise"] * 0.1 + 1e-6), rtol=1e-5)
    error = effect_error(gp, data, Conditions(members.take(np.array([17])).dense(), np.array([0])))
    np.testing.assert_allclose(error.mean[0], predicted, rtol=1e-5)
