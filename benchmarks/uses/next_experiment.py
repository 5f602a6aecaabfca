"""Five experiments chosen by the variance of the process against five random ones.

    python benchmarks/uses/next_experiment.py [vectors | pairs] [--screens 20]

vectors   24 perturbations with vectors of length 8, 6 of them measured in 2 cell types; any of the others can be
          measured next
pairs     10 perturbations, all measured alone, and none of their 45 pairs; without vectors

All cells of the simulation are drawn beforehand; those of conditions that are not yet measured are hidden. Error: mean
squared error of the process's mean effects over genes and all conditions that could have been measured, against the
effects of the simulation (those of drawn counts, 10 draws). The process alone, hyperparameters refitted; no networks.
Random: mean over 5 choices. Relative: error after five experiments / error before.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import wilcoxon

from cfmvc_scvi import CFMVC, data
from cfmvc_scvi.calibration.composition import Composition
from cfmvc_scvi.calibration.design import choose_experiments
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.calibration.process import EffectGP, MeanEffects
from cfmvc_scvi.calibration.process_error import effect_error, find_misfit
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.cells.latents import LatentCache

N_CHOSEN, N_RANDOM, N_GENES = 5, 5, 200


@dataclass
class Screen:
    """A simulated screen with the populations of all its conditions.

    Attributes
    ----------
    effects
        Observed mean effects of all populations.
    profiles
        Control profiles of the cell types.
    measured
        Places of the populations that are measured at first; all others could be next.
    truth
        True effects of all populations.
    has_vectors
        Whether perturbations have vectors.
    """

    effects: MeanEffects
    profiles: np.ndarray
    measured: np.ndarray
    truth: np.ndarray
    has_vectors: bool

    @property
    def candidates(self) -> np.ndarray:
        """Populations that could be measured next."""
        return np.setdiff1d(np.arange(len(self.truth)), self.measured)

    def fitted(self, rows: np.ndarray) -> tuple[EffectGP, MeanEffects, Composition | None]:
        """Process of the populations at some rows."""
        effects = self.effects.take(rows)
        if not self.has_vectors:
            return EffectGP(self.profiles).fit(effects), effects, None
        composition = Composition.fit(effects, self.profiles)
        parts = composition.split(effects)
        return EffectGP(composition.with_column).fit(parts), parts, composition

    def error(self, rows: np.ndarray) -> float:
        """Error over all candidates of the process of the populations at some rows."""
        gp, _, composition = self.fitted(rows)
        errors = []
        for at in self.candidates:
            context = self.effects.context[at]
            found = gp.predict(self.effects.members.take(np.array([at])).dense()[0], context)
            found = found if composition is None else composition.join(found, context)
            errors.append(((found - self.truth[at]) ** 2).mean())
        return float(np.mean(errors))

    def chosen(self) -> np.ndarray:
        """Places of the best five experiments, as ``model.suggest_experiments`` finds them."""
        gp, effects, _ = self.fitted(self.measured)
        places = self.candidates
        queries = Conditions(self.effects.members.take(places).dense(), self.effects.context[places])
        genes = np.argsort(-effects.amplitudes[1][: self.truth.shape[1]])[:N_GENES]
        error = effect_error(gp, effects, queries, find_misfit(gp, effects), genes)
        typical = max(gp.hyper["noise"], 1.0) * np.median(effects.variance, axis=0)[genes].astype(np.float64)
        every = np.arange(len(places))
        noise = np.repeat(typical[:, None], len(places), axis=1)
        return places[choose_experiments(error.process + error.noise, noise, every, every, N_CHOSEN).chosen]


def true_effects(cells: AnnData, labels: Sequence[str], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Mean change of log1p CP10k of drawn counts over some cells, by perturbation."""
    theta, levels = cells.var["dispersion"].to_numpy(), {}
    for label in ("control", *labels):
        mean = data.counterfactual_mean(cells, label).astype(np.float64)
        draws = [rng.poisson(rng.gamma(theta, mean / theta)) for _ in range(10)]
        levels[label] = np.mean([np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4).mean(axis=0) for x in draws], axis=0)
    return {label: levels[label] - levels["control"] for label in labels}


def simulated(task: str, seed: int) -> Screen:
    """A screen of one of the tasks."""
    shape = {"n_perturbations": 24, "n_pairs": 0, "n_embedding": 8}
    if task == "pairs":
        shape = {"n_perturbations": 10, "n_pairs": 45, "interaction": 1.0}
    adata = data.simulate_perturbation(
        n_cells=8000, n_genes=400, n_cell_types=2, n_batches=1, spatial=False, store_true_mean=False, seed=seed, **shape
    )
    has_vectors = task == "vectors"
    setup = {"perturbation_embedding_key": "perturbation_embedding"} if has_vectors else {}
    CFMVC.setup_anndata(adata, combination_delimiter="+", **setup)
    model = CFMVC(adata)
    found, cells = model._conditions_of(adata), model._read(adata)
    cache = LatentCache(cells, None, found.code, found.conditions)
    populations = Populations.of(cache, np.arange(adata.n_obs), len(model.cell_types))
    effects = populations.observed(model.vocabulary.members(found.conditions).take(populations.condition))
    names = [found.conditions[code].label for code in populations.condition]
    rng = np.random.default_rng(seed)
    by_type = {}
    for code, cell_type in enumerate(model.cell_types):
        some = adata[(adata.obs["cell_type"] == cell_type).to_numpy()]
        some = some[np.sort(rng.choice(some.n_obs, 400, replace=False))]
        by_type[code] = true_effects(some, sorted(set(names)), rng)
    truth = np.stack([by_type[int(code)][name] for code, name in zip(populations.label, names, strict=True)])
    first = [f"P{k + 1}" for k in range(6 if has_vectors else 10)]
    return Screen(effects, populations.mean0, np.flatnonzero(np.isin(names, first)), truth, has_vectors)


def compared(task: str, n_screens: int) -> pd.DataFrame:
    """Errors before, after the chosen and after random experiments, one row per screen."""
    rows = []
    for seed in range(n_screens):
        screen, rng = simulated(task, seed), np.random.default_rng(seed)
        before = screen.error(screen.measured)
        chosen = screen.error(np.r_[screen.measured, screen.chosen()])
        draws = [rng.choice(screen.candidates, N_CHOSEN, replace=False) for _ in range(N_RANDOM)]
        random = [screen.error(np.r_[screen.measured, draw]) for draw in draws]
        row = {"before": before, "chosen": chosen / before, "random": np.mean(random) / before}
        rows.append(row | {"chosen is better than": np.mean(np.array(random) > chosen)})
        print(seed, {name: round(float(value), 4) for name, value in row.items()}, flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["vectors", "pairs"], nargs="?", default="vectors")
    parser.add_argument("--screens", type=int, default=20)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    table = compared(arguments.task, arguments.screens)
    print(table.agg(["mean", "median"]).round(4).to_string())
    print(f"{(table['chosen'] < table['random']).sum()} of {len(table)} screens, ", end="")
    print(f"Wilcoxon p = {wilcoxon(table['chosen'], table['random']).pvalue:.2g}")
