"""Time and memory of the gene-space process on simulated mean effects, with the dense form beside it.

``process.py`` runs the sizes of the table below, each in a process of its own so that peaks are its own;
``process.py N GENES CONTEXTS FORM`` runs one: ``FORM`` is ``blocks`` (as the package solves it) or ``dense`` (all
populations in one block). Printed are seconds of the fit, of the misfit, and of one estimate with its error; peak
resident memory; size of the saved state; and for ``dense`` the largest differences from ``blocks``, relative to the
largest value.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from functools import cached_property

import numpy as np
import torch

from cfmvc_scvi.calibration import process, process_query
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import Misfit, effect_error, find_misfit
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.io.codec import to_plain
from cfmvc_scvi.registration.members import Members

#: Perturbations, genes, contexts, features (0: a unit vector for each) and form.
SIZES = [
    (300, 500, 1, 0, "blocks"),
    (300, 500, 1, 0, "dense"),
    (75, 500, 4, 0, "dense"),
    (1_000, 1_000, 1, 0, "blocks"),
    (2_000, 2_000, 4, 0, "blocks"),
    (10_000, 2_000, 1, 0, "blocks"),
    (1_135, 2_000, 50, 0, "blocks"),
    (1_000, 200, 1, 20, "blocks"),
    (1_000, 20, 1, 20, "dense"),
    (10_000, 2_000, 1, 50, "blocks"),
]


class Dense(MeanEffects):
    """Effects whose populations are taken as one block."""

    @cached_property
    def component(self) -> np.ndarray:
        """One number for all."""
        return np.zeros(len(self.effect), dtype=int)


def simulate(n: int, n_genes: int, n_contexts: int, n_features: int, kind: type[MeanEffects]):
    """Control profiles, and effects of n perturbations in every context that are alike in contexts, with noise."""
    rng = np.random.default_rng(0)
    size = rng.gamma(0.5, 0.5, n_genes).astype(np.float32)
    profiles = rng.gamma(1.0, 1.0, (n_contexts, n_genes))
    n_populations = n * n_contexts
    index = np.repeat(np.arange(n, dtype=np.int32), n_contexts)
    table = None
    if n_features:
        table = rng.normal(size=(n, n_features)).astype(np.float32) / np.float32(n_features**0.5)
        effect = ((table @ rng.normal(size=(n_features, n_genes)).astype(np.float32)) * size)[index]
    else:
        effect = (rng.standard_normal((n, n_genes), dtype=np.float32) * size)[index]
    variance = rng.standard_gamma(2.0, (n_populations, n_genes), dtype=np.float32) * np.float32(0.01)
    effect += np.sqrt(variance) * rng.standard_normal(effect.shape, dtype=np.float32)
    weight = np.ones((n_populations, 1), dtype=np.float32)
    members = Members(index[:, None], weight, table, n_features or n)
    return profiles, kind(effect, variance, members, np.tile(np.arange(n_contexts), n))


def measured(profiles: np.ndarray, data: MeanEffects) -> dict[str, float]:
    """Seconds of each part, and the size of the saved state."""
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = time.perf_counter() - start, time.perf_counter()

    gp = EffectGP(profiles).fit(data)
    lap("fit")
    query = Conditions(data.members.take(np.array([0])).dense(), data.context[:1])
    gp.predict(query.members[0], 0)
    lap("predict")
    misfit = find_misfit(gp, data)
    lap("misfit")
    effect_error(gp, data, query, misfit)
    lap("error")
    arrays = to_plain(gp.to_dict())[1].values()
    seconds["saved_mb"] = sum(array.nbytes for array in arrays) / 1e6
    return seconds


def said(gp: EffectGP, data: MeanEffects) -> list[np.ndarray]:
    """Prediction for the first population, and its estimate with both parts of the error, with some misfit."""
    query = Conditions(data.members.take(np.array([0])).dense(), data.context[:1])
    error = effect_error(gp, data, query, Misfit(np.full((3, 2), 0.1)))
    return [gp.predict(query.members[0], int(query.context[0])), error.mean, error.process, error.noise]


def one(n: int, n_genes: int, n_contexts: int, n_features: int, form: str) -> None:
    """Run one size and print a line."""
    torch.set_num_threads(1)
    limit = process.DENSE
    if form == "dense":
        process.DENSE = process_query.DENSE = n * n_contexts
    profiles, data = simulate(n, n_genes, n_contexts, n_features, MeanEffects if form == "blocks" else Dense)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    seconds = measured(profiles, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    line = f"{n:6} x {n_contexts:2} contexts, {n_genes:5} genes, {n_features or 'unit':>4} features, {form:6}: "
    line += ", ".join(f"{name} {value:.3g}" for name, value in seconds.items())
    line += (
        f", data {(data.effect.nbytes + data.variance.nbytes) / 1e6:.0f} MB, before {before:.0f} MB, peak {peak:.0f} MB"
    )
    if form == "dense":  # the same hyperparameters, which come from samples of different populations above 300
        again = simulate(n, n_genes, n_contexts, n_features, MeanEffects)
        gp = EffectGP(profiles).fit(data)
        found = said(gp, data)
        process.DENSE = process_query.DENSE = limit
        gp.state["weights"] = gp._solve(again[1])
        other = said(gp, again[1])
        apart = [np.abs(a - b).max() / max(np.abs(b).max(), 1e-30) for a, b in zip(other, found, strict=True)]
        line += ", relative difference " + " ".join(f"{value:.1e}" for value in apart)
    print(line, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        *numbers, form = sys.argv[1:]
        one(*map(int, numbers), form)
    else:
        for size in SIZES:
            subprocess.run([sys.executable, __file__, *map(str, size)], check=True)
