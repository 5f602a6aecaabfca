"""All kinds of tasks in one table: the model and its estimators beside simple baselines and the ceiling.

    python benchmarks/quality/suite.py                              choosing folds of all tasks, seed 0
    python benchmarks/quality/suite.py --tasks zhao norman --seeds 0 1 2
    python benchmarks/quality/suite.py --confirm                    the folds that nothing was chosen on
    python benchmarks/quality/suite.py --summary benchmarks/results/suite.csv     tables of an earlier run

kang, kang-three-types  stimulated cells of one cell type left out; of all others, or of three, learned from
zhao                    treated cells of one patient left out
norman, norman-size     doubles of which both members were seen alone; without and with the cell's total as size factor
cao                     1 h of dexamethasone from 0 and 3 h
macpie                  the middle of three doses of 27 compounds; rows are wells
papalexi                knocked-out genes never measured, from vectors of pathway membership
simulated-context, simulated-pairs    as in screens.py, scored on the cells that were left out

One row for each task, fold, condition, seed and method, on log1p CP10k. Baselines and components are made from training
cells; the cells that were left out are read for scoring alone. A baseline is the control cells plus one mean change,
not clipped unless it says so.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import protocol
import scvi
import torch
from conditions import COLUMNS as SCORES
from conditions import PATHWAYS
from kang import RESULTS
from protocol import CHOOSE_ON, CONFIRM_ON, few_training_types, load_kang, make_fold
from protocol import data_path as kang_path
from screens import simulated

from cfmvc_scvi import CFMVC, metrics

#: Columns of the results that ranks are made of, and column -> title in the printed tables.
JUDGED = SCORES
COLUMNS = {name: protocol.COLUMNS[name] for name in JUDGED} | {
    "cosine_delta": "cosine",
    "mse_weighted": "MSE |t|",
    "direction_accuracy": "direction",
    "auprc_de": "AUPRC",
    "de_count_ratio": "DE called",
}
SCREEN = {"pds_l1": "PDS L1", "pds_cosine": "PDS cosine"}
OURS, DRAWN, CEILING, NO_CHANGE = "CFMVC", "CFMVC, drawn counts", "split-half ceiling", "no change"
LATENT_SHIFT = "latent shift, decoded"
ESTIMATORS = {"CFMVC, process": "process", "CFMVC, latent path": "latent", LATENT_SHIFT: "shift"}
NOT_SIMPLE = (OURS, DRAWN, CEILING, "CFMVC, process", "CFMVC, latent path")
#: Conditions that settings may be chosen on; all others are for confirming.
PATIENTS = ("PW030", "PW034", "PW036")
DOUBLES = ("KLF1+MAP2K6", "MAP2K3+MAP2K6", "MAPK1+TGFBR2")
CONDITION = ["task", "fold", "condition"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One condition that was left out; conditions of one fold share ``training`` and so the model.

    Attributes
    ----------
    fold, condition
        Names in the table.
    training, setup
        What the model is trained on, and arguments of ``setup_anndata``.
    control, truth
        Control cells to predict from, and the cells that were left out: the latter for scoring only.
    perturbation, dosage
        What is asked for.
    library
        Column of ``obs`` with the library size; ``None``: the row sums.
    simple
        Cells predicted by simple baselines.
    screen
        Real mean changes of all conditions of the screen, this one included; empty where there is one.
    """

    fold: str
    condition: str
    training: ad.AnnData
    setup: dict[str, Any]
    control: ad.AnnData
    truth: ad.AnnData
    perturbation: str
    dosage: float | None = None
    library: str | None = None
    simple: dict[str, np.ndarray] = field(default_factory=dict)
    screen: dict[str, np.ndarray] = field(default_factory=dict)


def expression(adata: ad.AnnData, library: str | None) -> np.ndarray:
    """Dense log1p CP10k."""
    y = metrics.log1p_cp10k(adata.X, None if library is None else adata.obs[library].to_numpy())
    return y.toarray() if hasattr(y, "toarray") else np.asarray(y)


def read(name: str) -> ad.AnnData:
    """A file of the real data."""
    return ad.read_h5ad(kang_path().parent / f"{name}.h5ad")


def text(adata: ad.AnnData, column: str) -> np.ndarray:
    """A column of ``obs`` as an array of strings."""
    return adata.obs[column].astype(str).to_numpy()


# ---- mean changes and baselines -----------------------------------------------------------------------------------


def change(y: np.ndarray, treated: np.ndarray, control: np.ndarray, strata: np.ndarray | None = None) -> np.ndarray:
    """Mean of the treated minus that of the control cells; mean over strata that have both, where given."""
    if strata is None:
        return y[treated].mean(axis=0) - y[control].mean(axis=0)
    pairs = [(treated & (strata == s), control & (strata == s)) for s in np.unique(strata)]
    return np.mean([change(y, t, c) for t, c in pairs if min(t.sum(), c.sum()) > 1], axis=0)


def from_contexts(own: np.ndarray, changes: np.ndarray, controls: np.ndarray) -> dict[str, np.ndarray]:
    """Baselines from changes and control means of other contexts, one row each."""
    shift = own + changes.mean(axis=0)
    perturbed = (controls + changes).mean(axis=0)
    nearest = changes[np.argmax([np.corrcoef(own.mean(axis=0), c)[0, 1] for c in controls])]
    return {
        "shift": shift,
        "shift, clipped at 0": np.maximum(shift, 0.0),
        "mean perturbed of other contexts": own + perturbed - own.mean(axis=0),
        "shift of the nearest context": own + nearest,
    }


def from_members(own: np.ndarray, effects: dict[str, np.ndarray], pair: str) -> dict[str, np.ndarray]:
    """Baselines of a combination from the changes of training perturbations."""
    members = sorted({gene for name in [*effects, pair] for gene in name.split("+")})
    hot = np.array([[float(gene in name.split("+")) for gene in members] for name in effects])
    new = np.array([[float(gene in pair.split("+")) for gene in members]])
    table = np.stack(list(effects.values()))
    least = metrics.ridge_embedding(hot, table, new, alpha=0.0, fit_intercept=False).ravel().round(9)
    singles = [effects[gene] for gene in pair.split("+")]
    return {
        "additive": own + sum(singles),
        "least squares on members": own + least,
        "larger of the singles": own + max(singles, key=np.linalg.norm),
        "mean of the perturbations": own + table.mean(axis=0),
    }


def from_vectors(
    own: np.ndarray, effects: dict[str, np.ndarray], vectors: pd.DataFrame, name: str
) -> dict[str, np.ndarray]:
    """Baselines of a perturbation without cells from vectors and the changes of training perturbations."""
    known, new, table = (
        vectors.loc[list(effects)].to_numpy(),
        vectors.loc[[name]].to_numpy(),
        np.stack([*effects.values()]),
    )
    size = np.linalg.norm(known, axis=1) * np.linalg.norm(new)
    cosine = np.divide(known @ new[0], size, out=np.zeros(len(known)), where=size > 0)
    return {
        "mean of the perturbations": own + table.mean(axis=0),
        "ridge on vectors": own + metrics.ridge_embedding(known, table, new).ravel(),
        "nearest vector": own + table[cosine == cosine.max()].mean(axis=0),
    }


# ---- tasks --------------------------------------------------------------------------------------------------------


def kang(confirm: bool, seed: int, n_types: int | None = None) -> Iterator[Task]:
    """Stimulated cells of one cell type."""
    adata, library = load_kang(), "total_counts"
    setup = {"batch_key": "donor", "labels_key": "cell_type", "perturbation_key": "condition", "control_group": "ctrl"}
    for cell_type in CONFIRM_ON if confirm else CHOOSE_ON:
        types = None if n_types is None else few_training_types(adata, cell_type, n_types, seed)
        fold = make_fold(adata, cell_type, 2000, types)
        pairs = [pair for pair in fold.contexts.values() if min(map(len, pair)) >= 10]
        means = np.array([[x.mean(axis=0) for x in pair] for pair in pairs])
        yield Task(
            fold=cell_type,
            condition=cell_type,
            training=fold.training,
            setup=setup | {"size_factor_key": library},
            control=fold.control,
            truth=fold.truth,
            perturbation="stim",
            library=library,
            simple=from_contexts(expression(fold.control, library), means[:, 1] - means[:, 0], means[:, 0]),
        )


def contexts(adata: ad.AnnData, label: str, held: Sequence[str], perturbation: str, setup: dict) -> Iterator[Task]:
    """One perturbation in one context after the other, with all other contexts known."""
    y, where, what = expression(adata, None), text(adata, label), text(adata, setup["perturbation_key"])
    control, treated = what == setup["control_group"], what == perturbation
    for name in held:
        here = where == name
        others = [where == other for other in np.unique(where) if other != name]
        yield Task(
            fold=name,
            condition=name,
            training=adata[~(here & treated)].copy(),
            setup=setup,
            control=adata[here & control].copy(),
            truth=adata[here & treated].copy(),
            perturbation=perturbation,
            simple=from_contexts(
                y[here & control],
                np.stack([change(y, there & treated, there & control) for there in others]),
                np.stack([y[there & control].mean(axis=0) for there in others]),
            ),
        )


def zhao(confirm: bool, seed: int) -> Iterator[Task]:
    """Treated cells of one patient."""
    adata = read("zhao2021_gbm_panobinostat_300genes")
    held = [donor for donor in np.unique(text(adata, "donor")) if (donor in PATIENTS) != confirm]
    setup = {"batch_key": None, "labels_key": "donor", "perturbation_key": "condition", "control_group": "control"}
    return contexts(adata, "donor", held, "panobinostat", setup)


def simulated_context(confirm: bool, seed: int) -> Iterator[Task]:
    """One perturbation in one of four cell types."""
    adata = simulated(seed, n_cell_types=4, n_perturbations=4, n_pairs=0)
    setup = {"labels_key": "cell_type", "perturbation_key": "perturbation", "control_group": "control"}
    setup |= {"spatial_key": None, "batch_key": "batch"}
    return contexts(adata, "cell_type", ["type3", "type4"] if confirm else ["type1", "type2"], "P1", setup)


def pairs(
    adata: ad.AnnData, held: Sequence[str], asked: Sequence[str], setup: dict, library: str | None, strata: str | None
) -> Iterator[Task]:
    """Combinations: all of ``held`` left out, those of ``asked`` predicted."""
    y, what = expression(adata, library), text(adata, "perturbation")
    control = what == "control"
    types = None if strata is None else text(adata, strata)
    effects = {name: change(y, what == name, control, types) for name in np.unique(what[~control])}
    seen = {name: effect for name, effect in effects.items() if name not in held}
    training = adata[~np.isin(what, held)].copy()
    setup = setup | {"combination_delimiter": "+", "perturbation_key": "perturbation", "control_group": "control"}
    for pair in asked:
        yield Task(
            fold="pairs",
            condition=pair,
            training=training,
            setup=setup | {"size_factor_key": library},
            control=adata[control].copy(),
            truth=adata[what == pair].copy(),
            perturbation=pair,
            library=library,
            simple=from_members(y[control], seen, pair),
            screen=effects,
        )


def with_both_singles(adata: ad.AnnData, min_cells: int = 20) -> list[str]:
    """Pairs of which both members have cells of their own."""
    counts = pd.Series(text(adata, "perturbation")).value_counts()
    enough = set(counts.index[counts >= min_cells])
    return sorted(name for name in enough if name.count("+") == 1 and set(name.split("+")) <= enough)


def norman(confirm: bool, seed: int, library: str | None = None) -> Iterator[Task]:
    """Doubles of which both members were seen alone."""
    adata = read("norman2019_crispra_500genes")
    held = with_both_singles(adata)
    return pairs(adata, held, [pair for pair in held if (pair in DOUBLES) != confirm], {}, library, None)


def simulated_pairs(confirm: bool, seed: int) -> Iterator[Task]:
    """Pairs with interactions, half of them left out."""
    adata = simulated(seed, n_cell_types=3, n_perturbations=6, n_pairs=8, interaction=0.5)
    held = with_both_singles(adata)[confirm::2]
    return pairs(adata, held, held, {"spatial_key": None, "labels_key": "cell_type"}, "total", "cell_type")


def cao(confirm: bool, seed: int) -> Iterator[Task]:
    """1 h from 0 and 3 h; one condition, for choosing."""
    if confirm:
        return
    adata = read("cao2018_scicar_a549_dex")
    y, hours = expression(adata, None), adata.obs["time_h"].to_numpy()
    own, full, rng = y[hours == 0], change(y, hours == 3, hours == 0), np.random.default_rng(seed)
    three = y[hours == 3]
    mixture = [own[rng.random(len(own)) < 2 / 3], three[rng.random(len(three)) < len(own) / len(three) / 3]]
    yield Task(
        fold="1 h",
        condition="1 h",
        training=adata[hours != 1].copy(),
        setup={"labels_key": None, "batch_key": None, "dosage_key": "time_h", "control_group": "control"},
        control=adata[hours == 0].copy(),
        truth=adata[hours == 1].copy(),
        perturbation="dexamethasone",
        dosage=1.0,
        simple={
            "change in proportion to the dose": own + full / 3,
            "half the change": own + full / 2,
            "change of the dose above": own + full,
            "cells of both in proportion": np.concatenate(mixture),
        },
    )


def macpie(confirm: bool, seed: int) -> Iterator[Task]:
    """The middle dose of every compound left out; every second compound asked for."""
    adata = read("macpie2025_mcf10a_27drugs_3doses_1000genes")
    y, what, dose = expression(adata, None), text(adata, "perturbation"), adata.obs["dose_uM"].to_numpy()
    control, middle = what == "control", np.isclose(dose, 1.0)
    training = adata[~middle].copy()
    names = np.unique(what[~control])
    effects = {name: change(y, (what == name) & middle, control) for name in names}
    for name in names[int(confirm) :: 2]:
        below, above = (change(y, (what == name) & np.isclose(dose, d), control) for d in (0.1, 10.0))
        yield Task(
            fold="middle dose",
            condition=name,
            training=training,
            setup={
                "labels_key": None,
                "batch_key": None,
                "dosage_key": "dose_uM",
                "perturbation_key": "perturbation",
                "control_group": "control",
            },
            control=adata[control].copy(),
            truth=adata[(what == name) & middle].copy(),
            perturbation=name,
            dosage=1.0,
            simple={
                "change of the dose below": y[control] + below,
                "change of the dose above": y[control] + above,
                "mean of both changes": y[control] + (below + above) / 2,
            },
            screen=effects,
        )


def papalexi(confirm: bool, seed: int, n_models: int = 3) -> Iterator[Task]:
    """Every second target, a third of them left out at a time, from vectors of pathway membership."""
    adata, library = read("papalexi2021_eccite_303genes"), "n_umis_total"
    y, what = expression(adata, library), text(adata, "perturbation")
    control = what == "control"
    names = np.unique(what[~control])
    vectors = pd.DataFrame({path: [float(n in genes) for n in names] for path, genes in PATHWAYS.items()}, index=names)
    effects = {name: change(y, what == name, control) for name in names}
    setup = {"size_factor_key": library, "perturbation_embedding_key": "vectors", "control_group": "control"}
    asked = names[int(confirm) :: 2]
    for part in range(n_models):
        held = asked[part::n_models]
        training = adata[~np.isin(what, held)].copy()
        training.uns["vectors"] = vectors
        seen = {name: effect for name, effect in effects.items() if name not in held}
        for name in held:
            yield Task(
                fold=f"targets {part}",
                condition=name,
                training=training,
                setup=setup | {"perturbation_key": "perturbation"},
                control=adata[control].copy(),
                truth=adata[what == name].copy(),
                perturbation=name,
                library=library,
                simple=from_vectors(y[control], seen, vectors, name),
                screen=effects,
            )


TASKS: dict[str, Callable[[bool, int], Iterator[Task]]] = {
    "norman": norman,
    "norman-size": partial(norman, library="n_umis_total"),
    "zhao": zhao,
    "cao": cao,
    "simulated-pairs": simulated_pairs,
    "simulated-context": simulated_context,
    "macpie": macpie,
    "papalexi": papalexi,
    "kang": kang,
    "kang-three-types": partial(kang, n_types=3),
}


# ---- running ------------------------------------------------------------------------------------------------------


def fit(task: Task, seed: int, options: argparse.Namespace) -> CFMVC:
    """Model trained on the cells of the task."""
    scvi.settings.seed = seed
    adata = task.training.copy()
    CFMVC.setup_anndata(adata, **task.setup)
    model = CFMVC(adata, **options.model)
    model.train(enable_progress_bar=False, **options.train)
    return model


def calibrations(model: CFMVC) -> dict[str, Any]:
    """The model's own calibration and that by each estimator alone, by the name in the table.

    Without the shift where there are doses: at a dose that was not trained on it is the latent path.
    """
    found = {OURS: model.calibration_}
    for name, estimator in ESTIMATORS.items():
        if name != LATENT_SHIFT or model.setup_keys.dosage_key is None:
            model.calibrate(estimator)
            found[name] = model.calibration_
    return found


def predictions(model: CFMVC, calibrated: dict[str, Any], task: Task, seed: int) -> dict[str, np.ndarray]:
    """Cells predicted by the model with each calibration, and counts drawn with its own."""
    asked = {} if task.dosage is None else {"dosage": task.dosage}

    def predicted(name: str, return_type: str = "lognorm") -> np.ndarray:
        model.calibration_ = calibrated[name]
        cells = model.predict_perturbation(
            task.control, task.perturbation, return_type=return_type, seed=seed, show_progress=False, **asked
        )
        return expression(cells, task.library) if return_type == "counts" else np.asarray(cells.X, dtype=np.float64)

    return {name: predicted(name) for name in calibrated} | {DRAWN: predicted(OURS, "counts")}


def score(task: Task, predicted: dict[str, np.ndarray], pcs: metrics.PrincipalComponents, seed: int) -> pd.DataFrame:
    """One row for each method."""
    truth, own = expression(task.truth, task.library), expression(task.control, task.library)
    rows = predicted | task.simple
    table = metrics.evaluate(rows, truth, own, pcs=pcs, metrics=list(COLUMNS), seed=seed)["raw"].copy()
    if task.screen:
        center = own.mean(axis=0)
        for kind in ("l1", "cosine"):
            for name, cells in [*rows.items(), (NO_CHANGE, own)]:
                change = {task.condition: cells.mean(axis=0) - center}
                pds = metrics.perturbation_discrimination(change, task.screen, distance=kind)
                table.loc[name, f"pds_{kind}"] = pds[task.condition]
    return table.rename_axis("method").reset_index()


def run(name: str, seed: int, options: argparse.Namespace) -> Iterator[pd.DataFrame]:
    """Rows of the conditions of one task, one after the other."""
    training = None
    for task in TASKS[name](options.confirm, seed):
        if options.folds and not {task.fold, task.condition} & set(options.folds):
            continue
        if task.training is not training:
            start, training = time.perf_counter(), task.training
            model = None if options.baselines else fit(task, seed, options)
            calibrated = {} if model is None else calibrations(model)
            seconds = time.perf_counter() - start
            pcs = metrics.fit_pcs(expression(training, task.library), 50)
        table = score(task, {} if model is None else predictions(model, calibrated, task, seed), pcs, seed)
        place = {"task": name, "fold": task.fold, "condition": task.condition, "seed": seed}
        for at, (column, value) in enumerate(place.items()):
            table.insert(at, column, value)
        table["chosen on"], table["train s"] = not options.confirm, seconds
        print(f"{name} {task.condition} seed {seed}: trained in {seconds:.0f} s", flush=True)
        yield table


# ---- summary ------------------------------------------------------------------------------------------------------


def better(column: str) -> float:
    """1 where higher scores of a column are better, else -1."""
    return 1.0 if column in SCREEN else metrics.METRICS[column].sign


def per_condition(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds."""
    values = [name for name in [*COLUMNS, *SCREEN] if name in rows]
    return rows.groupby([*CONDITION, "method"], sort=False)[values].mean().reset_index()


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over conditions of every task and method."""
    values = [name for name in [*COLUMNS, *SCREEN] if name in rows]
    return per_condition(rows).groupby(["task", "method"], sort=False)[values].mean()


def ranks(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean rank over the tasks and the six scores judged by, 1 being best, and its place from 0 (best) to 1 (worst)."""
    table = means(rows)[JUDGED].drop(index=[DRAWN, CEILING], level="method", errors="ignore")
    signed = table * [-better(name) for name in table]
    rank = signed.groupby("task", sort=False).rank()
    size = signed.groupby("task", sort=False).transform("size")
    rank = rank.mean(axis=1)
    found = pd.DataFrame({"mean rank": rank, "place": (rank - 1) / (size - 1), "methods": size})
    summary = found.groupby("method", sort=False).mean()
    summary["tasks"] = found.groupby("method", sort=False).size()
    return summary.sort_values("place")


def best_simple(table: pd.DataFrame, column: str) -> tuple[str, pd.Series]:
    """Simple baseline with the best mean over the conditions of one task, and its scores."""
    simple = table[~table["method"].isin(NOT_SIMPLE)]
    scores = simple.pivot(index=CONDITION, columns="method", values=column)
    name = (scores.mean() * better(column)).idxmax()
    return str(name), scores[name]


def harm(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of conditions whose squared error is larger than that of no change, and of the best simple baseline."""
    found = []
    for task, table in per_condition(rows).groupby("task", sort=False):
        errors = table.pivot(index=CONDITION, columns="method", values="mse_mean")
        name, simple = best_simple(table, "mse_mean")
        for method in errors.drop(columns=[CEILING, NO_CHANGE], errors="ignore"):
            than_none = metrics.harm_rate(errors[method], errors[NO_CHANGE])
            than_simple = metrics.harm_rate(errors[method], simple)
            found.append((task, method, len(errors), than_none, than_simple, name))
    columns = ["task", "method", "conditions", "worse than no change", "worse than the best simple", "best simple"]
    return pd.DataFrame(found, columns=columns).set_index(["task", "method"])


def behind(rows: pd.DataFrame, method: str = OURS) -> pd.DataFrame:
    """Scores in which the best simple baseline leads by more than two standard errors over conditions.

    With a single condition there is no standard error: every lead is listed.
    """
    found = []
    for task, table in per_condition(rows).groupby("task", sort=False):
        for column in [name for name in [*COLUMNS, *SCREEN] if name in table and table[name].notna().any()]:
            if column == "de_count_ratio":
                continue
            name, theirs = best_simple(table, column)
            ours = table[table["method"] == method].set_index(CONDITION)[column]
            lead = (better(column) * (theirs - ours)).dropna()
            error = lead.sem() if len(lead) > 1 else 0.0
            if len(lead) and lead.mean() > 2 * error:
                found.append((task, column, name, ours.mean(), theirs.mean(), lead.mean(), error, len(lead)))
    columns = ["task", "score", "baseline", method, "theirs", "lead", "standard error", "conditions"]
    return pd.DataFrame(found, columns=columns)


def summarise(rows: pd.DataFrame) -> None:
    """Print all tables."""
    table = means(rows)
    for task in table.index.unique("task"):
        one = rows[rows["task"] == task]
        n = one[CONDITION].drop_duplicates().shape[0]
        columns = table.loc[task].dropna(axis=1, how="all").rename(columns=COLUMNS | SCREEN)
        print(f"\n{task}: mean over {n} conditions, {one['seed'].nunique()} seed(s)\n{columns.round(4).to_string()}")
    print(f"\nranks over tasks, on {', '.join(COLUMNS[name] for name in JUDGED)}\n{ranks(rows).round(3).to_string()}")
    print(f"\nharm rates\n{harm(rows).round(2).to_string()}")
    print(f"\na simple baseline ahead by more than two standard errors\n{behind(rows).round(4).to_string()}")


def main() -> None:
    """Run the tasks, write all rows, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--folds", nargs="+", default=None, help="names of folds or conditions; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--confirm", action="store_true", help="the conditions that nothing was chosen on")
    parser.add_argument("--baselines", action="store_true", help="no model: simple baselines and the ceiling alone")
    parser.add_argument("--out", type=Path, default=None, help="CSV of all rows")
    parser.add_argument("--model", type=json.loads, default={}, help="arguments of CFMVC, as JSON")
    parser.add_argument("--train", type=json.loads, default={}, help="arguments of train, as JSON")
    parser.add_argument("--summary", type=Path, nargs="+", default=None, help="CSVs to summarise; nothing is run")
    options = parser.parse_args()
    if options.summary:
        summarise(pd.concat(map(pd.read_csv, options.summary), ignore_index=True))
        return
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    out = options.out or RESULTS / ("suite-confirm.csv" if options.confirm else "suite.csv")
    out.parent.mkdir(exist_ok=True)
    tables = []
    for name in options.tasks:
        for seed in options.seeds:
            for table in run(name, seed, options):
                tables.append(table)
                pd.concat(tables).to_csv(out, index=False, float_format="%.5g")
    if tables:
        summarise(pd.concat(tables, ignore_index=True))


if __name__ == "__main__":
    main()
