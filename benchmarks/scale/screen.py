"""A simulated screen of many perturbations, trained whole: how much of the training is outside the networks.

``screen.py N CELLS GENES [CONTEXTS] [--vae E] [--flow E]`` writes a screen of N perturbations with so many cells each
and contexts to an ``.h5ad``, in pieces, and trains both stages on it in a process of its own. Printed are seconds of
each part, the share outside the networks, peak resident memory above that with the data loaded, size of the saved
model, and one prediction with its effects. Epochs are the defaults unless given. With several contexts, 30 pairs of a
perturbation and a context are left out of the screen, and the model's effects on them stand beside no change, the mean
change of the perturbation in the other contexts (shift), and that plus the change of all perturbations in this context
over their mean in the others (additive).
"""

from __future__ import annotations

import argparse
import logging
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from scipy import sparse

from cfmvc_scvi import CFMVC
from cfmvc_scvi.model import training

#: Share of control cells.
CONTROLS = 0.05
#: Pairs of perturbation and context that are left out, and cells that their true means are taken of.
LEFT_OUT, TRUE_CELLS = 30, 500


def lognorm(counts: Any) -> np.ndarray:
    """log1p of counts per 10,000, dense."""
    x = np.asarray(counts.toarray() if sparse.issparse(counts) else counts, dtype=np.float32)
    return np.log1p(1e4 * x / np.maximum(x.sum(axis=1, keepdims=True), 1.0))


def write_screen(path: Path, n: int, n_cells: int, n_genes: int, n_contexts: int) -> None:
    """Counts of Poisson cells with log-normal library sizes; every perturbation moves a twentieth of the genes."""
    rng = np.random.default_rng(0)
    base = rng.gamma(0.3, 1.0, n_genes)
    contexts = base * np.exp(0.4 * rng.normal(size=(n_contexts, n_genes)))
    names = ["control", *(f"P{k}" for k in range(n))]
    effects = sparse.random(
        n, n_genes, 0.05, random_state=rng, data_rvs=lambda size: rng.normal(size=size), format="csr"
    )
    n_control = max(50, int(CONTROLS * n * n_cells))
    chosen = rng.choice(n * n_contexts, LEFT_OUT if n_contexts > 1 else 0, replace=False)
    left_out = {(int(pair) // n, int(pair) % n) for pair in chosen}
    parts, perturbation, cell_type, truth = [], [], [], {}
    for context, profile in enumerate(contexts):
        for k in range(-1, n):
            size = n_control if k < 0 else n_cells
            size = TRUE_CELLS if (context, k) in left_out else size
            rates = profile if k < 0 else profile * np.exp(effects[k].toarray().ravel())
            library = rng.lognormal(0.0, 0.3, size)[:, None] * 1500.0
            cells = rng.poisson(library * rates / rates.sum()).astype(np.float32)
            if (context, k) in left_out:
                truth[f"{context},{k}"] = lognorm(cells).mean(axis=0)
                continue
            parts.append(sparse.csr_matrix(cells))
            perturbation += [names[k + 1]] * size
            cell_type += [f"T{context}"] * size
    obs = pd.DataFrame({"perturbation": pd.Categorical(perturbation), "cell_type": pd.Categorical(cell_type)})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    ad.AnnData(sparse.vstack(parts, format="csr"), obs=obs).write_h5ad(path)
    np.savez(path.with_suffix(".npz"), **truth)


def peak() -> float:
    """Peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def score(model: CFMVC, adata: ad.AnnData, truth: dict[str, np.ndarray]) -> pd.DataFrame:
    """Correlation with the true changes of the pairs left out, and root mean squared error, means over the pairs."""
    key = pd.MultiIndex.from_frame(adata.obs[["cell_type", "perturbation"]].astype(str))
    codes, pairs = key.factorize()
    sums = np.zeros((len(pairs), adata.n_vars))
    for start in range(0, adata.n_obs, 4096):
        here = codes[start : start + 4096]
        some = sparse.csr_matrix((np.ones(len(here)), (here, np.arange(len(here)))), (len(pairs), len(here)))
        sums += some @ lognorm(adata.X[start : start + 4096])
    means = pd.DataFrame(sums / np.bincount(codes)[:, None], pairs)
    control = means.xs("control", level=1)
    change = means.sub(control.reindex(means.index.get_level_values(0)).to_numpy()).drop("control", level=1)
    of_context, found = change.groupby(level=0).mean(), []
    for name, mean in truth.items():
        context, k = (int(part) for part in name.split(","))
        context, perturbation = f"T{context}", f"P{k}"
        others = change.xs(perturbation, level=1).drop(context, errors="ignore")
        shift = others.mean()
        effect = (
            model.get_perturbation_effect(perturbation, context)["log_fold_change"].reindex(adata.var_names).to_numpy()
        )
        additive = shift + of_context.loc[context] - of_context.loc[others.index].mean()
        for method, values in {"model": effect, "no change": 0 * shift, "shift": shift, "additive": additive}.items():
            true = mean - control.loc[context].to_numpy()
            r = np.corrcoef(values, true)[0, 1] if np.std(values) else 0.0
            found.append((method, r, np.sqrt(np.mean((values - true) ** 2))))
    table = pd.DataFrame(found, columns=["method", "pearson_delta", "rmse"])
    return table.groupby("method", sort=False).mean().round(3)


def train(path: Path, vae: int | None, flow: int | None) -> None:
    """Train on the file and print what it took."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    scvi.settings.seed = 0
    adata = ad.read_h5ad(path)
    loaded, fitting, run = peak(), 0.0, training.run_stage

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal fitting
        start = time.perf_counter()
        found = run(*args, **kwargs)
        fitting += time.perf_counter() - start
        return found

    training.run_stage = timed
    seconds: dict[str, float] = {}

    def lap(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - start
        print(f"  {name} {seconds[name]:.1f} s, peak {peak():.0f} MB", flush=True)
        return found

    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    lap("setup", lambda: CFMVC.setup_anndata(adata, perturbation_key="perturbation", labels_key="cell_type"))
    model = lap("construct", lambda: CFMVC(adata))
    lap("train", lambda: model.train(vae_max_epochs=vae, flow_max_epochs=flow, **quiet))
    steps = {name: len(model.history[name]) for name in ("elbo_train", "flow_loss_train")}
    outside = seconds["train"] - fitting
    print(
        f"  stages {fitting:.1f} s with epochs {steps}, outside the networks {outside:.1f} s "
        f"({outside / seconds['train']:.0%}), peak {peak() - loaded:.0f} MB above {loaded:.0f} with the data"
    )
    cells = adata[(adata.obs["perturbation"] == "control").to_numpy()][:64].copy()
    lap("predict", lambda: model.predict_perturbation(cells, perturbation=["P1"]))
    lap("predict again", lambda: model.predict_perturbation(cells, perturbation=["P2"]))
    lap("effect, the first", lambda: model.get_perturbation_effect("P1"))
    lap("effect, the second", lambda: model.get_perturbation_effect("P2"))
    lap("coefficients", model.get_effect_coefficients)
    truth = dict(np.load(path.with_suffix(".npz")))
    if truth:
        print(score(model, adata, truth).to_string())
    with TemporaryDirectory() as folder:
        lap("save", lambda: model.save(f"{folder}/model"))
        size = sum(file.stat().st_size for file in Path(folder, "model").iterdir())
        lap("load", lambda: CFMVC.load(f"{folder}/model", adata=False, accelerator="cpu"))
    print(f"  saved model {size / 1e6:.1f} MB, peak {peak():.0f} MB in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", metavar="N CELLS GENES [CONTEXTS]")
    parser.add_argument("--vae", type=int)
    parser.add_argument("--flow", type=int)
    parser.add_argument("--file", type=Path, help="train on this file alone")
    given = parser.parse_args()
    if given.file is not None:
        train(given.file, given.vae, given.flow)
    else:
        with TemporaryDirectory() as folder:
            file = Path(folder, "screen.h5ad")
            sizes = (*given.sizes, 1)[:4]
            write_screen(file, *sizes)
            print(f"{sizes[0]} perturbations x {sizes[1]} cells x {sizes[2]} genes, {sizes[3]} contexts", flush=True)
            epochs = [part for name in ("vae", "flow") if (e := vars(given)[name]) for part in (f"--{name}", str(e))]
            subprocess.run([sys.executable, __file__, "--file", str(file), *epochs], check=True)
