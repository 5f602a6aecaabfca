"""Losses of both stages in bf16 against float32, for libraries of up to a million counts, and learning rates too high.

python benchmarks/robustness/precision.py
"""

from __future__ import annotations

import logging
import sys

import numpy as np
import scvi

from cfmvc_scvi import CFMVC, data

EPOCHS = {"vae_max_epochs": 30, "flow_max_epochs": 60}


def train(library: float, **arguments) -> CFMVC:
    scvi.settings.seed = 0
    adata = data.simulate_perturbation(n_cells=1000, n_genes=100, n_perturbations=3)
    counts = adata.X.toarray()
    adata.X = np.round(counts * (library / counts.sum(axis=1).max())).astype(np.float32)
    CFMVC.setup_anndata(adata, combination_delimiter="+")
    model = CFMVC(adata)
    model.train(accelerator="cpu", enable_progress_bar=False, **(EPOCHS | arguments))
    return model


def last(model: CFMVC, key: str) -> float:
    return float(model.history[key].to_numpy(dtype=float)[-1, 0])


def compare_precisions() -> None:
    print(f"{'largest library':>15} {'metric':24} {'float32':>10} {'bf16-mixed':>11} {'difference':>11}")
    for library in (1e3, 1e4, 1e5, 1e6):
        models = [train(library, precision=precision) for precision in ("32-true", "bf16-mixed")]
        for key in ("elbo_train", "elbo_validation", "flow_loss_train", "flow_loss_validation"):
            a, b = (last(model, key) for model in models)
            print(f"{library:15g} {key:24} {a:10.4f} {b:11.4f} {(b - a) / a:+11.3%}")
        for model in models:
            for kind in ("mean", "counts"):
                x = model.predict_perturbation(perturbation="P1", return_type=kind).X
                if not np.isfinite(x.data if kind == "counts" else x).all():
                    raise AssertionError(f"{kind} predictions are not finite")


def try_learning_rates() -> None:
    print(f"\n{'stage':6} {'lr':>6} {'times default':>13}  what happened")
    for stage, key in (("vae", "elbo_train"), ("flow", "flow_loss_train")):
        for lr in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e30):
            try:
                model = train(1e4, **{f"{stage}_plan_kwargs": {"lr": lr}})
                happened = f"{key} {last(model, key):.4f}"
            except FloatingPointError as error:
                happened = f"FloatingPointError: {error}"
            print(f"{stage:6} {lr:6g} {lr / 1e-3:13g}  {happened}", flush=True)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    compare_precisions()
    try_learning_rates()
    sys.exit(0)
