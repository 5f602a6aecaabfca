"""The generative half: dispersion, batch and shallow cells, beside SCVI.

    python benchmarks/quality/generative.py dispersion
    python benchmarks/quality/generative.py batch --data simulated cellbench kang zhao --seeds 0 1 2
    python benchmarks/quality/generative.py shallow
    python benchmarks/quality/generative.py patients --seeds 0 1 2

``dispersion``: genes of known dispersion in cells of two conditions, trained by default and briefly; learned over
true dispersion, and the variance of generated over real cells. ``batch``: how far batch and cell type can be read from
the latents (balanced accuracy of logistic regression / 15 nearest neighbours, five folds), slope of the predicted on
the real difference between batches, and the variance of posterior predictive over observed counts. ``shallow``: mean
predicted over real counts at 20 to 2,000 counts per cell. ``patients``: glioblastoma, one patient left out at a time.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch
from batch import accuracies
from protocol import data_path
from scipy import sparse

from cfmvc_scvi import CFMVC, data, metrics
from cfmvc_scvi.likelihood.negative_binomial import expected_lognorm

QUIET = {"enable_progress_bar": False}
Options = argparse.Namespace


def dense(x: Any) -> np.ndarray:
    """A dense float64 array."""
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)


def median_ratio(generated: np.ndarray, real: np.ndarray) -> float:
    """Median over genes of the ratio of variances, of genes with a mean of .05 counts or more."""
    keep = real.mean(axis=0) >= 0.05
    return float(np.median(generated.var(axis=0)[keep] / real.var(axis=0)[keep]))


def simulate_counts(
    n: int,
    n_genes: int,
    depth: float,
    theta: float,
    *,
    n_batches: int = 1,
    n_types: int = 1,
    lfc: float = 1.0,
    seed: int = 0,
) -> ad.AnnData:
    """Negative binomial counts of control and of ``A``, which multiplies ten genes by exp(lfc)."""
    rng = np.random.default_rng(seed)
    condition, batch = rng.choice(["control", "A"], n), rng.integers(n_batches, size=n)
    kind = rng.integers(n_types, size=n)
    log_mean = rng.normal(0, 1, n_genes) + rng.normal(0, 0.5, (n_types, n_genes))[kind]
    log_mean = log_mean + rng.normal(0, 0.2, (n_batches, n_genes))[batch]
    log_mean[:, :10] += lfc * (condition == "A")[:, None]
    mean = np.exp(log_mean)
    mean *= depth * rng.lognormal(0, 0.2, (n, 1)) / mean.sum(axis=1, keepdims=True)
    x = rng.poisson(rng.gamma(theta, mean / theta) if np.isfinite(theta) else mean)
    names = {"perturbation": condition, "batch": batch.astype(str), "cell_type": kind.astype(str)}
    obs = pd.DataFrame(names, index=[f"c{i}" for i in range(n)])
    return ad.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs)


def fit(adata: ad.AnnData, seed: int, options: Options, **setup: Any) -> CFMVC:
    """CFMVC with both stages trained."""
    scvi.settings.seed = seed
    CFMVC.setup_anndata(adata, **setup)
    model = CFMVC(adata, **options.model)
    model.train(**QUIET, **options.train)
    return model


def fit_scvi(adata: ad.AnnData, seed: int, batch_key: str, like: CFMVC) -> scvi.model.SCVI:
    """SCVI with the latent size and epochs of a model."""
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
    model = scvi.model.SCVI(adata, n_latent=like.module.n_latent, gene_likelihood="nb")
    model.train(len(like.vae_history["train_loss"]) if hasattr(like, "vae_history") else 150, train_size=0.9, **QUIET)
    return model


# ---- dispersion ---------------------------------------------------------------------------------------------------


def dispersion(options: Options) -> pd.DataFrame:
    """Learned over true dispersion."""
    rows = []
    for seed in options.seeds:
        for theta in (0.2, 3.0, 10.0, np.inf):
            adata = simulate_counts(900, 120, 2000, theta, seed=seed)
            for name, epochs in (("default", None), ("100 steps", 14)):
                opts = Options(
                    model=options.model, train=options.train | {"vae_max_epochs": epochs, "flow_max_epochs": 10}
                )
                model = fit(adata, seed, opts)
                real = dense(adata.X)[(adata.obs.perturbation == "control").to_numpy()]
                made = dense(model.generate_cells("control", 2000, seed=seed).X)
                learned = model.module.likelihood.log_theta.detach().numpy()
                error = np.median(np.abs(learned - np.log(theta))) if np.isfinite(theta) else np.nan
                rows.append(
                    {
                        "theta": theta,
                        "run": name,
                        "learned": np.exp(np.median(learned)),
                        "|log ratio|": error,
                        "variance ratio": median_ratio(made, real),
                    }
                )
    return pd.DataFrame(rows).groupby(["theta", "run"], sort=False).mean()


# ---- batch --------------------------------------------------------------------------------------------------------


def load(name: str) -> tuple[ad.AnnData, dict[str, Any], str, str | None]:
    """Cells, arguments of the setup, and the columns of batch and of biology."""
    if name == "simulated":
        return data.simulate_perturbation(), {}, "batch", "cell_type"
    if name == "cellbench":
        adata = data.tian2019_cellbench(data_path().parent)
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=2000, subset=True)
        adata.obs["perturbation"] = "control"
        return adata, {"labels_key": None}, "batch", "cell_type"
    if name == "kang":
        adata = ad.read_h5ad(data_path())
        sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=2000, subset=True)
        setup = {"batch_key": "donor", "labels_key": None, "perturbation_key": "condition", "control_group": "ctrl"}
        return adata, setup, "donor", "cell_type"
    adata = read_patients()
    setup = {"batch_key": "donor", "labels_key": None, "perturbation_key": "condition", "control_group": "control"}
    return adata, setup, "donor", "condition"


def true_level(adata: ad.AnnData, batch: str) -> np.ndarray:
    """Expected log1p CP10k of simulated control cells as if measured in a batch, mean over the cells."""
    mean = data.counterfactual_mean(adata, "control", batch=batch)
    library = np.asarray(adata.X.sum(axis=1)).ravel()
    return expected_lognorm(mean, adata.var["dispersion"].to_numpy(), library).mean(axis=0)


def log_mean(x: Any) -> np.ndarray:
    """Mean log1p CP10k of counts."""
    return dense(metrics.log1p_cp10k(x)).mean(axis=0)


def slopes(model: CFMVC, reference: scvi.model.SCVI | None, adata: ad.AnnData, batch: str) -> dict[str, float]:
    """Slope of predicted on batch differences of control cells, averaged over cell types: on observed and true ones."""
    names, keys = list(adata.obs[batch].astype(str).unique())[:3], model.setup_keys
    control = adata.obs[keys.perturbation_key].astype(str).isin(model.vocabulary.control_group).to_numpy()
    types = adata.obs["cell_type"].astype(str) if "cell_type" in adata.obs else pd.Series("all", index=adata.obs_names)
    out: dict[str, list] = {"observed": [], "true": [], "batch=": [], "normalized": [], "generated": [], "SCVI": []}
    for there in names:
        for here in names:
            for kind in sorted(types.unique()):
                rows = control & (types == kind).to_numpy()
                a, b = (rows & (adata.obs[batch].astype(str) == name).to_numpy() for name in (there, here))
                if here == there or min(a.sum(), b.sum()) < 20:
                    continue
                source, start = adata[b].copy(), log_mean(adata[b].X)
                out["observed"].append(log_mean(adata[a].X) - start)
                out["true"].append(true_level(source, there) - true_level(source, here))
                moved = model.predict_perturbation(source, model.vocabulary.control_label, batch=there)
                out["batch="].append(log_mean(moved.X) - start)
                for name, m in (("normalized", model), ("SCVI", reference)):
                    if m is None:
                        continue
                    share = [
                        np.log1p(
                            m.get_normalized_expression(
                                adata, indices=np.flatnonzero(b), transform_batch=t, library_size=1e4, return_numpy=True
                            )
                        )
                        for t in (there, here)
                    ]
                    out[name].append((share[0] - share[1]).mean(axis=0))
                if keys.labels_key is not None:
                    made = [
                        log_mean(
                            model.generate_cells(model.vocabulary.control_label, 400, labels=kind, batch=t, seed=0).X
                        )
                        for t in (there, here)
                    ]
                    out["generated"].append(made[0] - made[1])
    n_types = types.nunique() if keys.labels_key is not None else 1
    means = {k: np.reshape(v, (-1, n_types, adata.n_vars)).mean(axis=1).ravel() for k, v in out.items() if v}
    real = {name: means.pop(name) for name in ("observed", "true")}  # sampling noise of the first makes slopes smaller
    return {f"{k} on {name}": np.polyfit(x, v, 1)[0] for k, v in means.items() for name, x in real.items()}


def batch(options: Options) -> pd.DataFrame:
    """Batch and biology in the latents, and what choosing a batch does."""
    rows = []
    for name in options.data:
        adata, setup, batch_key, biology = load(name)
        if options.labels and "cell_type" in adata.obs:
            setup |= {"labels_key": "cell_type"}
        for seed in options.seeds:
            start = time.perf_counter()
            opts = Options(model=options.model, train={"flow_max_epochs": 2} | options.train)
            if name == "cellbench":  # all cells are controls
                scvi.settings.seed = seed
                CFMVC.setup_anndata(adata, **setup)
                model = CFMVC(adata, **options.model)
                model.train_vae(**QUIET)
            else:
                model = fit(adata, seed, opts, **setup)
            took = time.perf_counter() - start
            latents = {
                "z_int": model.get_latent_representation(),
                "z_tech": model.get_latent_representation(latent="technical"),
            }
            drawn = model.posterior_predictive_check(seed=seed).genes.query("mean >= 0.05")
            variance = {"z_int": float((drawn["variance_drawn"] / drawn["variance"]).median())}
            reference = None
            if options.scvi:
                scvi.settings.seed = seed
                scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
                reference = scvi.model.SCVI(adata, n_latent=model.module.n_latent, gene_likelihood="nb")
                epochs = int(np.clip(round(900 / max(1, int(0.9 * adata.n_obs) // 128)), 10, 400))
                reference.train(epochs, train_size=0.9, **QUIET)
                latents["SCVI"] = reference.get_latent_representation()
                variance["SCVI"] = median_ratio(replicate(reference, adata, seed), dense(adata.X))
            moved = slopes(model, reference, adata, batch_key) if name == "simulated" else {}
            for latent, z in latents.items():
                row = {"data": name, "latent": latent, "seconds": took if latent == "z_int" else np.nan}
                for target, column in (("batch", batch_key), ("biology", biology)):
                    row[f"{target} LR"], row[f"{target} 15NN"] = accuracies(z, adata.obs[column].astype(str).to_numpy())
                row["variance"] = variance.get(latent, np.nan)
                if latent == "z_int":
                    row |= {k: v for k, v in moved.items() if not k.startswith("SCVI")}
                if latent == "SCVI":
                    row |= {k.replace("SCVI", "normalized"): v for k, v in moved.items() if k.startswith("SCVI")}
                rows.append(row)
    return pd.DataFrame(rows).groupby(["data", "latent"], sort=False).mean()


def replicate(model: Any, adata: ad.AnnData, seed: int) -> np.ndarray:
    """Counts drawn from the posterior predictive distribution."""
    scvi.settings.seed = seed
    drawn = model.posterior_predictive_sample(n_samples=1)
    return dense(drawn.to_scipy_sparse() if hasattr(drawn, "to_scipy_sparse") else drawn)


# ---- shallow cells ------------------------------------------------------------------------------------------------


def shallow(options: Options) -> pd.DataFrame:
    """Mean of predicted over real counts."""
    rows = []
    for depth in (20, 60, 200, 2000, 20000):
        for seed in options.seeds:
            adata = simulate_counts(900, 120, depth, 10.0, n_batches=2, n_types=2, seed=seed)
            model = fit(adata, seed, Options(model=options.model, train={"flow_max_epochs": 60} | options.train))
            real = dense(adata.X)[(adata.obs.perturbation == "A").to_numpy()]
            for kind in ("mean", "counts"):
                made = dense(model.predict_perturbation(perturbation="A", return_type=kind).X)
                ratio = {
                    "targets": made[:, :10].mean() / real[:, :10].mean(),
                    "others": made[:, 10:].mean() / real[:, 10:].mean(),
                    "total": made.sum(axis=1).mean() / real.sum(axis=1).mean(),
                }
                rows.append({"depth": depth, "return_type": kind} | ratio)
    return pd.DataFrame(rows).groupby(["depth", "return_type"], sort=False).mean()


# ---- leave one patient out ----------------------------------------------------------------------------------------


def read_patients() -> ad.AnnData:
    """The glioblastoma slices."""
    return ad.read_h5ad(data_path().parent / "zhao2021_gbm_panobinostat_300genes.h5ad")


def patients(options: Options) -> pd.DataFrame:
    """Scores of the treated cells of a patient of whom only control cells were seen."""
    adata, rows = read_patients(), []
    treated = (adata.obs["condition"] != "control").to_numpy()
    [drug] = adata.obs["condition"][treated].astype(str).unique()
    for seed in options.seeds:
        for donor in sorted(adata.obs["donor"].astype(str).unique()):
            here = (adata.obs["donor"].astype(str) == donor).to_numpy()
            training = adata[~(here & treated)].copy()
            control, truth = adata[here & ~treated].copy(), adata[here & treated]
            model = fit(
                training,
                seed,
                options,
                batch_key=None,
                labels_key="donor",
                perturbation_key="condition",
                control_group="control",
            )
            y0, y1 = (dense(metrics.log1p_cp10k(a.X)) for a in (control, truth))
            top = metrics.top_de_genes(y1, y0, 100)
            for kind in ("mean", "counts"):
                y = dense(metrics.log1p_cp10k(model.predict_perturbation(control, drug, return_type=kind).X))
                delta, real = y.mean(0) - y0.mean(0), y1.mean(0) - y0.mean(0)
                rows.append(
                    {
                        "return_type": kind,
                        "Pearson all": np.corrcoef(delta, real)[0, 1],
                        "Pearson D100": np.corrcoef(delta[top], real[top])[0, 1],
                        "MSE all": np.mean((delta - real) ** 2),
                        "MSE D100": np.mean((delta - real)[top] ** 2),
                        "E D100": metrics.energy_distance(y[:, top], y1[:, top]),
                    }
                )
    return pd.DataFrame(rows).groupby("return_type", sort=False).mean()


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["dispersion", "batch", "shallow", "patients"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", nargs="+", default=["simulated", "cellbench", "kang", "zhao"])
    parser.add_argument("--model", type=json.loads, default={}, help="arguments of CFMVC, as JSON")
    parser.add_argument("--train", type=json.loads, default={}, help="arguments of train, as JSON")
    parser.add_argument("--labels", action="store_true", help="cell types given to the model; else not")
    parser.add_argument("--scvi", action="store_true", help="SCVI in the same table")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    start = time.perf_counter()
    table = globals()[options.part](options)
    print(f"{options.part} {options.model} {options.train} seeds {options.seeds}: {time.perf_counter() - start:.0f} s")
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
