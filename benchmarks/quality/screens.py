"""Held-out contexts, pairs, doses and unseen perturbations on simulated screens with known truth.

    python benchmarks/quality/screens.py [--seeds 0 1 2] [--only simulated-context ...]

The prediction of every control cell is compared with its known counterfactual mean: root mean squared error per cell
on log1p CP10k, and on the mean change Pearson-delta and mean squared error.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from kang import RESULTS

from cfmvc_scvi import CFMVC, data, metrics


def expression(adata: AnnData, key: str) -> np.ndarray:
    """Dense log1p CP10k of counts."""
    values = metrics.log1p_cp10k(adata.X, adata.obs[key].to_numpy())
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def train(adata: AnnData, seed: int, size_factor: str | None, **setup) -> CFMVC:
    """Model trained on all cells given."""
    scvi.settings.seed = seed
    CFMVC.setup_anndata(adata, size_factor_key=size_factor, spatial_key=None, **setup)
    model = CFMVC(adata)
    model.train(enable_progress_bar=False)
    return model


def truth_rows(
    control: AnnData, label: str, predictions: dict[str, np.ndarray], dosage: float | None = None
) -> list[dict]:
    """Scores against the known counterfactual means."""
    library = control.obs["total"].to_numpy()
    before = np.log1p(control.layers["true_mean"] / library[:, None] * 1e4)
    after = np.log1p(data.counterfactual_mean(control, label, dosage=dosage) / library[:, None] * 1e4)
    change = (after - before).mean(axis=0)
    own = expression(control, "total")
    rows = []
    for name, predicted in predictions.items():
        found = (predicted - own).mean(axis=0)
        rows.append(
            {
                "condition": label if dosage is None else f"{label} {dosage:g}",
                "method": name,
                "RMSE per cell": np.sqrt(np.mean((predicted - after) ** 2)),
                "Pearson-Δ": 0.0 if not found.any() else np.corrcoef(found, change)[0, 1],
                "MSE of mean Δ": np.mean((found - change) ** 2),
            }
        )
    return rows


def mean_change(adata: AnnData, label: str, within: np.ndarray | None = None) -> np.ndarray:
    """Mean log1p CP10k of a condition minus that of the controls, averaged over cell types."""
    y = expression(adata, "total")
    types = adata.obs["cell_type"].astype(str).to_numpy()
    perturbation = adata.obs["perturbation"].astype(str).to_numpy()
    within = np.ones(len(y), dtype=bool) if within is None else within
    changes = []
    for cell_type in np.unique(types[within]):
        one = within & (types == cell_type)
        treated, control = one & (perturbation == label), one & (perturbation == "control")
        if treated.sum() > 1 and control.sum() > 1:
            changes.append(y[treated].mean(axis=0) - y[control].mean(axis=0))
    return np.mean(changes, axis=0)


def simulated(seed: int, **arguments) -> AnnData:
    """Simulated screen with the row sums as library size."""
    adata = data.simulate_perturbation(6000, 500, spatial=False, seed=seed, **arguments)
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel()
    return adata


def simulated_context(seed: int) -> list[dict]:
    """One perturbation left out in one of four cell types."""
    adata = simulated(seed, n_cell_types=4, n_perturbations=4, n_pairs=0)
    obs = adata.obs
    rows = []
    held = (obs["cell_type"] == "type1") & (obs["perturbation"] == "P1")
    seen = adata[~held].copy()
    model = train(seen, seed, "total")
    control = adata[(obs["cell_type"] == "type1") & (obs["perturbation"] == "control")].copy()
    own = expression(control, "total")
    others = (seen.obs["cell_type"] != "type1").to_numpy()
    predictions = {
        "CFMVC": expression(model.predict_perturbation(control, "P1"), "total"),
        "no change": own,
        "control + mean shift": own + mean_change(seen, "P1", others),
    }
    rows += truth_rows(control, "P1", predictions)
    return rows


def simulated_pairs(seed: int, interaction: float) -> list[dict]:
    """Pairs of which both members were seen alone, half of them left out."""
    adata = simulated(seed, n_cell_types=3, n_perturbations=6, n_pairs=8, interaction=interaction)
    labels = adata.obs["perturbation"].astype(str)
    pairs = sorted(label for label in labels.unique() if "+" in label)
    held = pairs[: len(pairs) // 2]
    seen = adata[~labels.isin(held)].copy()
    model = train(seen, seed, "total", combination_delimiter="+")
    control = adata[(labels == "control").to_numpy()].copy()
    own = expression(control, "total")
    rows = []
    for pair in held:
        additive = sum(mean_change(seen, single) for single in pair.split("+"))
        predictions = {
            "CFMVC": expression(model.predict_perturbation(control, pair), "total"),
            "no change": own,
            "additive": own + additive,
        }
        rows += truth_rows(control, pair, predictions)
    return rows


def simulated_unseen(seed: int) -> list[dict]:
    """Perturbations never measured, predicted from informative and from shuffled vectors."""
    adata = simulated(seed, n_cell_types=3, n_perturbations=24, n_pairs=0)
    labels = adata.obs["perturbation"].astype(str)
    held = ["P3", "P8", "P15", "P20"]
    seen = adata[~labels.isin(held)].copy()
    control = adata[(labels == "control").to_numpy()].copy()
    own = expression(control, "total")
    table = adata.uns["perturbation_embedding"]
    order = np.random.default_rng(seed).permutation(len(table))
    singles = [label for label in seen.obs["perturbation"].astype(str).unique() if label != "control"]
    deltas = np.stack([mean_change(seen, label) for label in singles])
    rows = []
    models = {}
    for name, vectors in (("informative", table), ("shuffled", table.set_axis(table.index[order]))):
        seen.uns["vectors"] = vectors
        models[f"CFMVC, {name} vectors"] = train(seen, seed, "total", perturbation_embedding_key="vectors")
    for label in held:
        ridge = metrics.ridge_embedding(table.loc[singles].to_numpy(), deltas, table.loc[[label]].to_numpy())
        predictions = {
            **{name: expression(m.predict_perturbation(control, label), "total") for name, m in models.items()},
            "no change": own,
            "mean of the perturbations": own + deltas.mean(axis=0),
            "ridge on informative vectors": own + np.asarray(ridge).reshape(-1),
        }
        rows += truth_rows(control, label, predictions)
    return rows


def simulated_one_seen(seed: int) -> list[dict]:
    """Pairs of which one member was never measured, alone or in a pair, and is known by its vector."""
    adata = simulated(seed, n_cell_types=3, n_perturbations=16, n_pairs=24, interaction=0.5)
    labels = adata.obs["perturbation"].astype(str)
    unseen = {"P2", "P9"}
    holds = np.array([bool(unseen & set(label.split("+"))) for label in labels])
    seen = adata[~holds].copy()
    pairs = sorted({label for label in labels[holds] if "+" in label and not set(label.split("+")) <= unseen})
    control = adata[(labels == "control").to_numpy()].copy()
    own = expression(control, "total")
    table = adata.uns["perturbation_embedding"]
    order = np.random.default_rng(seed).permutation(len(table))
    singles = [label for label in seen.obs["perturbation"].astype(str).unique() if label in table.index]
    deltas = np.stack([mean_change(seen, label) for label in singles])
    models = {}
    for name, vectors in (("informative", table), ("shuffled", table.set_axis(table.index[order]))):
        seen.uns["vectors"] = vectors
        setup = {"combination_delimiter": "+", "perturbation_embedding_key": "vectors"}
        models[f"CFMVC, {name} vectors"] = train(seen, seed, "total", **setup)
    rows = []
    for pair in pairs:
        [known], [new] = set(pair.split("+")) - unseen, set(pair.split("+")) & unseen
        ridge = metrics.ridge_embedding(table.loc[singles].to_numpy(), deltas, table.loc[[new]].to_numpy())
        predictions = {
            **{name: expression(m.predict_perturbation(control, pair), "total") for name, m in models.items()},
            "no change": own,
            "the seen one alone": own + mean_change(seen, known),
            "additive, ridge for the unseen one": own + mean_change(seen, known) + np.asarray(ridge).reshape(-1),
        }
        rows += truth_rows(control, pair, predictions)
    return rows


def simulated_doses(seed: int) -> list[dict]:
    """A dose between seen ones, left out for every perturbation."""
    doses = [0.1, 0.3, 1.0, 3.0, 10.0]
    adata = simulated(seed, n_cell_types=3, n_perturbations=4, n_pairs=0, doses=doses)
    left_out, below, above = 1.0, 0.3, 3.0
    seen = adata[adata.obs["dosage"] != left_out].copy()
    model = train(seen, seed, "total", dosage_key="dosage")
    control = adata[(adata.obs["perturbation"] == "control").to_numpy()].copy()
    own = expression(control, "total")
    rows = []
    for label in sorted(set(adata.obs["perturbation"].astype(str)) - {"control"}):
        at = {}
        for dose in (below, above):
            chosen = seen[(seen.obs["dosage"] == dose) | (seen.obs["perturbation"] == "control")]
            at[dose] = mean_change(chosen, label)
        predictions = {
            "CFMVC": expression(model.predict_perturbation(control, label, dosage=left_out), "total"),
            "no change": own,
            "shift of the dose below": own + at[below],
            "shift of the dose above": own + at[above],
            "mean of both shifts": own + (at[below] + at[above]) / 2,
        }
        rows += truth_rows(control, label, predictions, left_out)
    return rows


TASKS: dict[str, Callable[[int], list[dict]]] = {
    "simulated-context": simulated_context,
    "simulated-pairs-interacting": partial(simulated_pairs, interaction=0.5),
    "simulated-pairs-additive": partial(simulated_pairs, interaction=0.0),
    "simulated-pairs-one-seen": simulated_one_seen,
    "simulated-unseen": simulated_unseen,
    "simulated-doses": simulated_doses,
}


def main() -> None:
    """Run the tasks and print one table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    for task in options.only:
        rows = [row | {"seed": seed} for seed in options.seeds for row in TASKS[task](seed)]
        table = pd.DataFrame(rows)
        table.to_csv(RESULTS / f"{task}.csv", index=False, float_format="%.5g")
        per_seed = table.drop(columns="condition").groupby(["method", "seed"], sort=False).mean()
        summary = per_seed.groupby("method", sort=False).agg(["mean", "std"]).round(4)
        print(f"\n{task}, {len(options.seeds)} seeds\n{summary.to_string()}", flush=True)


if __name__ == "__main__":
    main()
