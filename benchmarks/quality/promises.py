"""What the package promises, checked on Kang 2018 with the stimulated CD4 T cells held out of both stages.

    python benchmarks/quality/promises.py

Prints, for both flow sources: known interferon genes predicted against real, Pearson-delta beside the baselines,
the largest difference of control -> control for every solver, the largest coefficient of control, and whether
stage 2 left the VAE alone.
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
import torch
from ablation import fresh
from protocol import CONTROL, PERTURBED, Fold, load_kang, lognorm, make_fold, score

HELD_OUT = "CD4 T cells"
GENES = ["ISG15", "IFI6", "IFIT1", "IFIT3", "MX1", "CD3D"]
SOLVERS = ("euler", "midpoint", "rk4", "adaptive")


def gene_table(fold: Fold, expected) -> pd.DataFrame:
    """Mean log1p CP10k of the named genes: control, predicted, real."""
    means = {
        "control": lognorm(fold.control).mean(axis=0),
        "predicted": lognorm(expected).mean(axis=0),
        "real": lognorm(fold.truth).mean(axis=0),
    }
    return pd.DataFrame(means, index=fold.genes).reindex(GENES)


def main() -> None:
    """Train with each flow source and print."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fold = make_fold(load_kang(), HELD_OUT, include=GENES)
    observed = fold.control.X.toarray()
    for source in ("control", "noise"):
        model = fresh(fold, 0, flow_source=source)
        model.train_vae(enable_progress_bar=False)
        before = [part.state_dict() for part in model.module.vae_parts]
        before = [{name: value.clone() for name, value in state.items()} for state in before]
        model.train_flow(enable_progress_bar=False)
        after = [part.state_dict() for part in model.module.vae_parts]
        same = all(torch.equal(b[k], a[k]) for b, a in zip(before, after, strict=True) for k in b)
        expected = model.predict_perturbation(fold.control, PERTURBED)
        print(f"\n=== flow source: {source}\n{gene_table(fold, expected).round(2).to_string()}")
        columns = ["Pearson-Δ all", "Pearson-Δ D100", "MSE all", "MSE D100"]
        print(score(fold, {"CFMVC": expected})[columns].round(3).to_string())
        for solver in SOLVERS:
            own = model.predict_perturbation(fold.control, CONTROL, solver=solver)
            print(f"control -> control, {solver}: largest difference {np.abs(own.X - observed).max()}")
        print(f"largest |alpha(control, c)|: {model.get_effect_coefficients().loc[CONTROL].abs().to_numpy().max()}")
        print(f"encoder, decoder and priors bit-identical after stage 2: {same}")


if __name__ == "__main__":
    main()
