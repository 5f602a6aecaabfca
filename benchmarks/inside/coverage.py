"""Coverage of the intervals of ``get_perturbation_effect`` on simulated screens with known truth.

    python benchmarks/inside/coverage.py [--seeds 0 1 2] [--cells 6000] [--screens singles vectors]

The truth of a perturbation in a cell type is the mean change of log1p of counts per 10,000 over all simulated cells of
that type, with counts drawn from each cell's known means under the perturbation and under control. Rows are grouped by
what the estimate rests on (``support``) and by whether any simulated perturbation moves the gene at all (the others
move a little, since shares sum to one). Calls are those at a nominal 5 %: how many have the wrong sign, how many the
wrong sign or an effect below 0.02, and how many the wrong sign when called by the s-value instead. Prints the table
and writes it to ``benchmarks/results/coverage.csv``.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from populations import RESULTS, true_effect

from cfmvc_scvi import CFMVC, data

#: Effects smaller than this count as none when the calls are checked; the error of the simulated truth is far below.
NO_EFFECT = 0.02


def singles(seed: int, n_cells: int) -> tuple[AnnData, np.ndarray, dict]:
    """Four perturbations and three pairs in four cell types; two contexts and one pair left out."""
    adata = data.simulate_perturbation(
        n_cells, 500, n_cell_types=4, n_perturbations=4, n_pairs=3, spatial=False, seed=seed
    )
    labels, types = adata.obs["perturbation"].astype(str), adata.obs["cell_type"].astype(str)
    pair = sorted(label for label in labels.unique() if "+" in label)[0]
    held = ((types == "type1") & (labels == "P1")) | ((types == "type2") & (labels == "P2")) | (labels == pair)
    return adata, held.to_numpy(), {"combination_delimiter": "+"}


def vectors(seed: int, n_cells: int) -> tuple[AnnData, np.ndarray, dict]:
    """Sixteen perturbations known by their vectors in three cell types; three of them left out."""
    adata = data.simulate_perturbation(
        n_cells, 500, n_cell_types=3, n_perturbations=16, n_pairs=0, spatial=False, seed=seed
    )
    held = adata.obs["perturbation"].isin(["P3", "P8", "P15"])
    return adata, held.to_numpy(), {"perturbation_embedding_key": "perturbation_embedding"}


SCREENS = {"singles": singles, "vectors": vectors}


def gene_rows(screen: str, seed: int, n_cells: int) -> pd.DataFrame:
    """Estimate, intervals and truth of every gene of every perturbation in every cell type."""
    adata, held, setup = SCREENS[screen](seed, n_cells)
    scvi.settings.seed = seed
    training = adata[~held].copy()
    CFMVC.setup_anndata(training, spatial_key=None, **setup)
    model = CFMVC(training)
    model.train(enable_progress_bar=False, accelerator="cpu")
    rng = np.random.default_rng(seed)
    labels = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})
    tables = []
    for label in labels:
        truths = []
        for cell_type in model.cell_types:
            cells = adata[(adata.obs["cell_type"] == cell_type).to_numpy()]
            truths.append(true_effect(cells, label, rng))
            tables.append(one_table(model, label, cell_type, truths[-1]))
        n_control = (training.obs["perturbation"] == "control").groupby(training.obs["cell_type"], observed=True).sum()
        pooled = np.average(truths, axis=0, weights=n_control[model.cell_types])
        tables.append(one_table(model, label, None, pooled))
    rows = pd.concat(tables)
    rows["affected"] = np.tile(adata.var["affected"].to_numpy(), len(tables))
    misfit = model.calibration_.state.observed.misfit.kappa.round(4).tolist()
    print(f"{screen} seed {seed}: misfit {misfit}", flush=True)
    return rows.assign(screen=screen, seed=seed)


def one_table(model: CFMVC, label: str, cell_type: str | None, truth: np.ndarray) -> pd.DataFrame:
    """Effects of one perturbation beside the truth."""
    table = model.get_perturbation_effect(label, cell_type)
    narrow = model.get_perturbation_effect(label, cell_type, level=0.8)
    kinds = set(table.attrs["support"])
    support = table.attrs["support"][0] if cell_type is not None else f"all types: {' / '.join(sorted(kinds))}"
    return table.assign(lower80=narrow["lower"], upper80=narrow["upper"], truth=truth, support=support)


def summary(rows: pd.DataFrame) -> pd.Series:
    """Coverage, width and errors of some rows."""
    truth, called = rows["truth"], rows["significant"]
    along = np.sign(rows["log_fold_change"]) * truth
    by_s_value = rows["s_value"] <= 0.05
    return pd.Series(
        {
            "genes": len(rows),
            "95 %": 100 * ((truth >= rows["lower"]) & (truth <= rows["upper"])).mean(),
            "80 %": 100 * ((truth >= rows["lower80"]) & (truth <= rows["upper80"])).mean(),
            "mean width": (rows["upper"] - rows["lower"]).mean(),
            "RMSE": np.sqrt(((truth - rows["log_fold_change"]) ** 2).mean()),
            "called": int(called.sum()),
            "% false sign": 100 * (called & (along <= 0)).sum() / max(called.sum(), 1),
            "% no effect": 100 * (called & (along < NO_EFFECT)).sum() / max(called.sum(), 1),
            "% false sign by s": 100 * (by_s_value & (along <= 0)).sum() / max(by_s_value.sum(), 1),
        }
    )


def main() -> None:
    """Run the screens and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, default=6000)
    parser.add_argument("--screens", nargs="+", choices=list(SCREENS), default=list(SCREENS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = pd.concat([gene_rows(screen, seed, options.cells) for screen in options.screens for seed in options.seeds])
    rows["genes moved"] = np.where(rows["affected"], "by some perturbation", "by none")
    every = rows.assign(**{"genes moved": "all"})
    groups = pd.concat([every, rows]).groupby(["screen", "support", "genes moved"], sort=True)
    table = pd.DataFrame({key: summary(group) for key, group in groups}).T.rename_axis(
        ["screen", "support", "genes moved"]
    )
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "coverage.csv", float_format="%.4g")
    print(
        f"\nNominal 95 % and 80 %; {len(options.seeds)} seeds, {options.cells} cells each\n{table.round(3).to_string()}"
    )


if __name__ == "__main__":
    main()
