"""What the benchmarks here share: true effects, and effect tables of the Gaussian process alone, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from cfmvc_scvi import CFMVC, data
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import Misfit, effect_error, find_misfit
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.model.effects import effect_table

RESULTS = Path(__file__).parents[1] / "results"


def true_effect(cells: AnnData, perturbation: str, rng: np.random.Generator, draws: int = 10) -> np.ndarray:
    """Mean change (n_genes,) of log1p CP10k of drawn counts, over these cells."""
    theta = cells.var["dispersion"].to_numpy()
    levels = []
    for label in (perturbation, "control"):
        mean = data.counterfactual_mean(cells, label).astype(np.float64)
        level = np.zeros(cells.n_vars)
        for _ in range(draws):
            x = rng.poisson(rng.gamma(theta, mean / theta))
            level += np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4).mean(axis=0) / draws
        levels.append(level)
    return levels[0] - levels[1]


def process_effects(model: CFMVC, asked: Sequence[tuple[str, str]], fdr: float = 0.05) -> list[pd.DataFrame]:
    """Tables as of ``get_perturbation_effect`` with the process's own estimate.

    Parameters
    ----------
    model
        A model with registered data; it need not be trained.
    asked
        Perturbations and cell types.
    fdr
        Local false sign rate of calls.
    """
    found = model._conditions_of(model.adata)
    cells = model._reader.read(model.adata)
    rows = np.arange(model.adata.n_obs)
    populations = Populations.of(LatentCache(cells, None, found.code, found.conditions), rows, len(model.cell_types))
    members = model.vocabulary.members(found.conditions).take(populations.condition)
    effects = populations.observed(members)
    gp = EffectGP(populations.mean0).fit(effects)
    by_label = {c.label: c for c in found.conditions}
    requests = [by_label.get(name) or model._requests([name], None, None)[0].condition for name, _ in asked]
    codes = np.array([model.cell_types.index(cell_type) for _, cell_type in asked])
    queries = Conditions(model.vocabulary.encode_members(requests), codes)
    misfit = find_misfit(gp, effects)
    tables = []
    for i in range(len(asked)):  # one at a time: the covariances of all are not needed
        query = Conditions(queries.members[i : i + 1], queries.context[i : i + 1])
        tables.append(one_table(gp, effects, query, misfit, populations.mean0[codes[i]], fdr))
    return tables


def one_table(
    gp: EffectGP, effects: MeanEffects, query: Conditions, misfit: Misfit, profile: np.ndarray, fdr: float
) -> pd.DataFrame:
    """Table of one condition."""
    error = effect_error(gp, effects, query, misfit)
    variance, freedom = error.averaged(np.ones(1))
    return effect_table(error.mean[0], np.sqrt(variance), -profile, freedom, level=0.95, min_change=0.0, fdr=fdr)
