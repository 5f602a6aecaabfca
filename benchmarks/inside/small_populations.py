"""Effects of perturbations with 1 to 50 cells, on simulated screens with known truth.

    python benchmarks/inside/small_populations.py [--seeds 0 1 2] [--process-only]

One cell type, two perturbations of each size beside four with about 100 cells, vectors of their own, 400 control cells.
The slope is that of the estimated on the true effects of the genes that perturbations move. Beside it is that of the
best linear shrinkage: the observed difference of means times t / (t + s), with t the mean squared true effect of the
gene over perturbations and s the true sampling variance. "process" is the Gaussian process alone, "model" what
``get_perturbation_effect`` says (without ``--process-only``). Prints the table and writes
``benchmarks/results/small_populations.csv``.
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
from populations import RESULTS, process_effects, true_effect

from cfmvc_scvi import CFMVC, data

SIZES = (1, 2, 3, 6, 8, 9, 20, 50, 100)
EACH = (2, 2, 2, 2, 2, 2, 2, 2, 4)


def screen(seed: int) -> tuple[AnnData, AnnData, dict[str, int]]:
    """All simulated cells, those of the screen, and the size of every perturbation."""
    adata = data.simulate_perturbation(
        2600, 500, n_cell_types=1, n_batches=1, n_perturbations=sum(EACH), n_pairs=0, spatial=False, seed=seed
    )
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    sizes = dict(zip([f"P{i + 1}" for i in range(sum(EACH))], np.repeat(SIZES, EACH).tolist(), strict=True))
    kept = [np.flatnonzero(labels == name)[:n] for name, n in {"control": 400, **sizes}.items()]
    return adata, adata[np.sort(np.concatenate(kept))].copy(), sizes


def rows_of(seed: int, process_only: bool) -> pd.DataFrame:
    """Truth and estimates of every gene of every perturbation."""
    every, adata, sizes = screen(seed)
    scvi.settings.seed = seed
    CFMVC.setup_anndata(adata, spatial_key=None)
    model = CFMVC(adata)
    if not process_only:
        model.train(train_size=1.0, enable_progress_bar=False, accelerator="cpu")
    rng = np.random.default_rng(seed)
    truth = {name: true_effect(every, name, rng, draws=4) for name in sizes}
    size = sum(value**2 for value in truth.values()) / len(truth)
    y = {name: lognorm(every[(every.obs["perturbation"] == name).to_numpy()]) for name in ("control", *sizes)}
    y0 = lognorm(adata[(adata.obs["perturbation"] == "control").to_numpy()])
    tables = process_effects(model, [(name, every.obs["cell_type"].iloc[0]) for name in sizes])
    parts = []
    for (name, n), table in zip(sizes.items(), tables, strict=True):
        seen = lognorm(adata[(adata.obs["perturbation"] == name).to_numpy()])
        noise = y[name].var(axis=0) / n + y["control"].var(axis=0) / len(y0)
        part = table.add_prefix("process_").assign(size=n, truth=truth[name], moved=every.var["affected"].to_numpy())
        part["oracle"] = size / (size + noise) * (seen.mean(axis=0) - y0.mean(axis=0))
        if not process_only:
            part = part.join(model.get_perturbation_effect(name).add_prefix("model_"))
        parts.append(part)
    return pd.concat(parts)


def lognorm(adata: AnnData) -> np.ndarray:
    """Log1p of counts per 10,000, dense."""
    x = adata.X.toarray()
    return np.log1p(x / x.sum(axis=1, keepdims=True) * 1e4)


def summary(rows: pd.DataFrame) -> pd.Series:
    """Slopes on the truth over the genes that are moved, errors, coverage and wrong signs of all genes."""
    moved, out = rows[rows["moved"]], {}
    for name in ("oracle", "process", "model"):
        column = name if name == "oracle" else f"{name}_log_fold_change"
        if column not in rows:
            continue
        out[f"slope {name}"] = (moved[column] * moved["truth"]).sum() / (moved["truth"] ** 2).sum()
        out[f"RMSE {name}"] = np.sqrt(((rows[column] - rows["truth"]) ** 2).mean())
        if name != "oracle":
            inside = (rows["truth"] >= rows[f"{name}_lower"]) & (rows["truth"] <= rows[f"{name}_upper"])
            called = rows[f"{name}_significant"]
            out[f"95 % {name}"] = 100 * inside.mean()
            out[f"95 % moved {name}"] = 100 * inside[rows["moved"]].mean()
            out[f"called {name}"] = int(called.sum())
            wrong = called & (rows[column] * rows["truth"] <= 0)
            out[f"% false sign {name}"] = 100 * wrong.sum() / max(called.sum(), 1)
            null = called & ~rows["moved"]
            out[f"null called {name}"] = int(null.sum())
            out[f"% false sign, null {name}"] = 100 * (wrong & null).sum() / max(null.sum(), 1)
    return pd.Series(out)


def main() -> None:
    """Run the screens and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--process-only", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = pd.concat([rows_of(seed, options.process_only) for seed in options.seeds])
    table = pd.DataFrame({size: summary(group) for size, group in rows.groupby("size")}).T.rename_axis("cells")
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "small_populations.csv", float_format="%.4g")
    print(table.round(3).T.to_string())


if __name__ == "__main__":
    main()
