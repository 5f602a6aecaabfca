"""Time courses, CRISPR targets and guide combinations in real data.

    python benchmarks/quality/conditions.py [--only cao papalexi-held-out papalexi-embedding gasperini] [--seeds 0 1 2]

cao                 dexamethasone, 1 h left out and predicted from 0 and 3 h, time as dose
papalexi-held-out   five knocked-out genes left out and predicted from vectors of pathway membership
papalexi-embedding  how near the members of the interferon-gamma pathway lie to each other
gasperini           308 labels of guide combinations: train, and predict all of them to disk; seconds and memory
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from kang import RESULTS
from protocol import data_path
from screens import expression

from cfmvc_scvi import CFMVC, data, metrics

COLUMNS = [
    "pearson_delta",
    "pearson_delta_top",
    "mse_mean",
    "mse_mean_top",
    "energy_distance_top",
    "energy_distance_pcs",
]

#: Textbook membership, written down before any prediction was looked at: one feature per row.
PATHWAYS = {
    "interferon-gamma receptor to STAT1": ["IFNGR1", "IFNGR2", "JAK2", "STAT1"],
    "interferon regulatory factor": ["IRF1", "IRF7"],
    "interferon-stimulated": ["IRF1", "IRF7", "STAT2", "UBE2L6", "ETV7"],
    "STAT": ["STAT1", "STAT2", "STAT3", "STAT5A"],
    "checkpoint ligand or its handling": ["CD86", "PDCD1LG2", "TNFRSF14", "CMTM6", "MARCH8"],
    "ubiquitin ligase": ["CUL3", "MARCH8", "UBE2L6"],
    "NF-kappaB": ["NFKBIA"],
    "growth": ["MYC", "BRD4"],
    "lineage factor": ["SPI1", "POU2F2", "ATF2"],
    "TGF-beta": ["SMAD4", "CAV1"],
}
TARGETS = ["IFNGR2", "STAT1", "CD86", "IRF7", "CUL3"]
CORE = PATHWAYS["interferon-gamma receptor to STAT1"]


def fit(adata: AnnData, seed: int, **setup) -> CFMVC:
    """Model trained on all cells given."""
    scvi.settings.seed = seed
    CFMVC.setup_anndata(adata, **setup)
    model = CFMVC(adata)
    model.train(enable_progress_bar=False)
    return model


def scored(predictions: dict, truth: np.ndarray, control: np.ndarray, pcs) -> pd.DataFrame:
    """Table of the metrics, on log1p CP10k, with the ceiling and without the baselines of cell types."""
    table = metrics.evaluate(predictions, truth, control, pcs=pcs, metrics=COLUMNS)["raw"]
    return table.rename_axis("method").reset_index()


def cao(seed: int) -> pd.DataFrame:
    """1 h of dexamethasone from 0 and 3 h."""
    adata = data.cao2018(path=data_path().parent)
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel()
    hours = adata.obs["time_h"].to_numpy()
    seen = adata[hours != 1].copy()
    setup = {"size_factor_key": "total", "labels_key": None, "batch_key": None}
    as_dose = fit(seen.copy(), seed, dosage_key="time_h", **setup)
    as_covariate = fit(seen.copy(), seed, continuous_covariate_keys=["time_h"], **setup)
    control = adata[hours == 0].copy()
    label = str(adata.obs["perturbation"][hours == 1].iloc[0])
    own, three = expression(control, "total"), expression(adata[hours == 3], "total")
    truth = expression(adata[hours == 1], "total")
    shift = three.mean(axis=0) - own.mean(axis=0)
    expected = expression(as_dose.predict_perturbation(control, label, dosage=1.0), "total")
    drawn = expression(as_dose.predict_perturbation(control, label, dosage=1.0, return_type="counts"), "total")
    later = control.copy()
    later.obs["time_h"] = 1.0
    covariate = expression(as_covariate.predict_perturbation(later, label), "total")
    rng = np.random.default_rng(seed)
    both = np.concatenate(
        [own[rng.random(len(own)) < 0.5], three[rng.random(len(three)) < 0.5 * len(own) / len(three)]]
    )
    predictions = {
        "CFMVC, time as dose": expected,
        "CFMVC, time as dose, drawn counts": drawn,
        "CFMVC, time as covariate": covariate,
        "control + half the shift at 3 h": own + shift / 2,
        "half the cells of 0 h, half of 3 h": both,
        "control + the shift at 3 h": own + shift,
    }
    print(f"response to 1 h, of that to 3 h: {as_dose.vocabulary.response(label, 1.0):.3f}")
    return scored(predictions, truth, own, metrics.fit_pcs(expression(seen, "total"), 50))


def papalexi() -> AnnData:
    """The screen, with names of its genes as labels."""
    return data.papalexi2021(path=data_path().parent)


def papalexi_held_out(seed: int) -> pd.DataFrame:
    """Five targets left out, from vectors of pathway membership; the panel holds none of their genes."""
    adata = papalexi()
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    control_label = data_control(adata)
    names = sorted(set(labels) - {control_label})
    table = pd.DataFrame({path: [float(n in genes) for n in names] for path, genes in PATHWAYS.items()}, index=names)
    seen = adata[~np.isin(labels, TARGETS)].copy()
    order = np.random.default_rng(seed).permutation(len(table))
    models = {}
    for name, vectors in (("pathway", table), ("shuffled", table.set_axis(table.index[order]))):
        seen.uns["vectors"] = vectors
        setup = {"size_factor_key": "n_umis_total", "perturbation_embedding_key": "vectors"}
        models[name] = fit(seen.copy(), seed, control_group=control_label, **setup)
    control = adata[labels == control_label].copy()
    own = expression(control, "n_umis_total")
    seen_names = [name for name in names if name not in TARGETS]
    deltas = np.stack(
        [expression(adata[labels == n], "n_umis_total").mean(axis=0) - own.mean(axis=0) for n in seen_names]
    )
    pcs = metrics.fit_pcs(expression(seen, "n_umis_total"), 30)
    tables = []
    for target in TARGETS:
        ridge = metrics.ridge_embedding(table.loc[seen_names].to_numpy(), deltas, table.loc[[target]].to_numpy())
        predictions = {
            f"CFMVC, {name} vectors": expression(m.predict_perturbation(control, target), "n_umis_total")
            for name, m in models.items()
        }
        predictions["control + mean shift of the targets"] = own + deltas.mean(axis=0)
        predictions["ridge on pathway vectors"] = own + np.asarray(ridge).reshape(-1)
        scores = scored(predictions, expression(adata[labels == target], "n_umis_total"), own, pcs)
        tables.append(scores.assign(target=target))
    return pd.concat(tables)


def papalexi_embedding(seed: int) -> pd.DataFrame:
    """Ranks of the core pathway's members among the 24 neighbours of each other, and distances."""
    adata = papalexi()
    model = fit(adata, seed, size_factor_key="n_umis_total", control_group=data_control(adata))
    table = model.get_perturbation_embedding().iloc[1:]
    unit = table.to_numpy() / np.linalg.norm(table, axis=1, keepdims=True)
    distance = pd.DataFrame(1 - unit @ unit.T, table.index, table.index)
    rows = []
    for member in CORE:
        neighbours = distance[member].drop(member).sort_values().index.tolist()
        others = [name for name in CORE if name != member]
        rows.append(
            {
                "method": member,
                "ranks of the other three": " ".join(str(neighbours.index(name) + 1) for name in others),
                "cosine distance to them": distance.loc[member, others].mean(),
                "to all others": distance.loc[member].drop(CORE).mean(),
            }
        )
    return pd.DataFrame(rows)


def gasperini(seed: int) -> pd.DataFrame:
    """All labels of guide combinations, trained on and predicted to disk."""
    adata = data.gasperini2019(path=data_path().parent)
    start, before = time.perf_counter(), peak_mb()
    model = fit(
        adata,
        seed,
        combination_delimiter="+",
        size_factor_key="n_umis_total",
        control_group=[name for name in ("control", "non-targeting") if name in set(adata.obs["perturbation"])],
    )
    trained, after_train = time.perf_counter(), peak_mb()
    conditions = len({key for key, _ in model.trained_conditions_ if key[0]})
    control = np.flatnonzero((adata.obs["perturbation"] == "control").to_numpy())[:5000]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "screen.h5ad"
        result = model.predict_perturbation(indices=control, out=path, show_progress=False)
        predicted, after_predict = time.perf_counter(), peak_mb()
        shape, size = result.shape, path.stat().st_size / 2**20
        result.file.close()
    return pd.DataFrame(
        [
            {
                "method": "CFMVC",
                "labels": adata.obs["perturbation"].nunique(),
                "conditions": conditions,
                "train s": trained - start,
                "train peak MB above the data": after_train - before,
                "predicted rows": shape[0],
                "predict s": predicted - trained,
                "on disk MB": size,
                "predict peak MB above training": after_predict - after_train,
            }
        ]
    )


def data_control(adata: AnnData) -> str:
    """The control label of the screen."""
    return next(name for name in ("non-targeting", "control") if name in set(adata.obs["perturbation"]))


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


TASKS: dict[str, Callable[[int], pd.DataFrame]] = {
    "cao": cao,
    "papalexi-held-out": papalexi_held_out,
    "papalexi-embedding": papalexi_embedding,
    "gasperini": gasperini,
}


def main() -> None:
    """Run the tasks and print one table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    for task in options.only:
        table = pd.concat([TASKS[task](seed).assign(seed=seed) for seed in options.seeds], ignore_index=True)
        table.to_csv(RESULTS / f"{task}.csv", index=False, float_format="%.5g")
        groups = [name for name in ("target", "method") if name in table]
        summary = table.groupby(groups, sort=False).mean(numeric_only=True).drop(columns="seed")
        text = table.drop(columns="seed") if "ranks of the other three" in table else summary.round(4)
        print(f"\n{task}, {len(options.seeds)} seeds\n{text.to_string()}", flush=True)


if __name__ == "__main__":
    main()
