"""How would these cells look under that perturbation? The answer beside the truth, on simulated cells.

One perturbation is held out of training in one cell type. The model predicts it from that type's control cells and from
what the perturbation does to other types. The cells are simulated, so their true counterfactuals are known.

    python tutorials/demo.py

writes ``demo_output/demo.png`` and ``demo_output/demo.csv`` into the working directory. ``CFMVC_TUTORIAL_EPOCHS=2``
makes a short run that only shows that everything works.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scvi
from matplotlib.figure import Figure

from cfmvc_scvi import CFMVC, metrics, pl
from cfmvc_scvi.data import counterfactual_mean, simulate_perturbation

PERTURBATION, CELL_TYPE = "P1", "type5"
OUTPUT = Path("demo_output")
EPOCHS = int(os.environ["CFMVC_TUTORIAL_EPOCHS"]) if "CFMVC_TUTORIAL_EPOCHS" in os.environ else None
TOP = 50  # genes that count as differentially expressed
COLUMNS = {
    "pearson_delta": "Pearson-Δ",
    "pearson_delta_top": f"Pearson-Δ top {TOP}",
    "mse_mean_top": f"MSE top {TOP}",
    "energy_distance_top": f"E-dist. top {TOP}",
    "energy_distance_pcs": "E-dist. 50 PCs",
}


def main() -> None:
    """Simulate, train, predict, compare, draw."""
    quieten()
    start = time.perf_counter()
    adata = simulate_perturbation(
        n_cells=4000,
        n_cell_types=5,
        n_perturbations=3,
        n_pairs=0,
        effect_size=1.0,
        shared_fraction=0.6,
        state_fraction=0.4,  # what a perturbation does depends on the state of the cell
        state_effect=0.8,
        spatial_gradient=0.9,
        mean_library_size=3000,
    )
    of_type = (adata.obs["cell_type"] == CELL_TYPE).to_numpy()
    held_out = of_type & (adata.obs["perturbation"] == PERTURBATION).to_numpy()
    control = adata[of_type & (adata.obs["perturbation"] == "control").to_numpy()].copy()
    real, training = adata[held_out].copy(), adata[~held_out].copy()
    print(f"{adata.n_obs} cells x {adata.n_vars} genes; 5 cell types, 2 batches, 3 perturbations and control.")
    print(f"Held out of training: all {real.n_obs} cells of {CELL_TYPE} under {PERTURBATION}.\n")

    CFMVC.setup_anndata(training)  # batch, cell_type, perturbation and spatial are found by their names
    model = CFMVC(training)
    model.train(vae_max_epochs=EPOCHS, flow_max_epochs=EPOCHS, enable_progress_bar=sys.stderr.isatty())
    predicted = model.predict_perturbation(control, PERTURBATION)
    print(f"Trained and predicted in {time.perf_counter() - start:.0f} s.\n")

    cells = {"control": lognorm(control), "predicted": lognorm(predicted, control), "real": lognorm(real)}
    table = compare(cells, control, contexts(training))
    OUTPUT.mkdir(exist_ok=True)
    table.to_csv(OUTPUT / "demo.csv")
    draw(cells, adata.var_names).savefig(OUTPUT / "demo.png", dpi=150)
    report(table, cells)


def quieten() -> None:
    """Keep Lightning's advice out of the way of the results, and fix the seed."""
    scvi.settings.verbosity = logging.WARNING
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    scvi.settings.seed = 0


def lognorm(adata: ad.AnnData, library_of: ad.AnnData | None = None) -> np.ndarray:
    """log1p of counts per 10,000; a prediction keeps the library sizes of the cells it was made from."""
    library = np.asarray((adata if library_of is None else library_of).X.sum(axis=1)).ravel()
    values = metrics.log1p_cp10k(adata.X, library)
    return values if isinstance(values, np.ndarray) else values.toarray()


def contexts(training: ad.AnnData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Control and perturbed cells of every other cell type, from which the baselines are made."""
    y, obs = lognorm(training), training.obs
    rows = obs.groupby(["cell_type", "perturbation"], observed=True).indices
    others = [name for name in obs["cell_type"].cat.categories if name != CELL_TYPE]
    return {name: (y[rows[name, "control"]], y[rows[name, PERTURBATION]]) for name in others}


def compare(
    cells: dict[str, np.ndarray], control: ad.AnnData, training: dict[str, tuple[np.ndarray, np.ndarray]]
) -> pd.DataFrame:
    """Prediction and baselines, beside the real held-out cells and the true counterfactual of every control cell."""
    rows = {
        "CFMVC": cells["predicted"],
        "no change": metrics.no_change(cells["control"]),
        "control + mean shift": metrics.mean_shift(cells["control"], training),
    }
    scores = metrics.evaluate(
        {"CFMVC": rows["CFMVC"]},
        cells["real"],
        cells["control"],
        training=training,
        metrics=list(COLUMNS),
        top_n=TOP,
    )["raw"]
    scores = scores.drop(index="mean perturbed").rename(columns=COLUMNS, index={"mean shift": "control + mean shift"})
    truth = metrics.log1p_cp10k(counterfactual_mean(control, PERTURBATION))
    truth -= metrics.log1p_cp10k(counterfactual_mean(control, "control"))
    for name, values in rows.items():
        change = values - cells["control"]
        scores.loc[name, "true mean change"] = correlation(change.mean(axis=0), truth.mean(axis=0))
        scores.loc[name, "true change of each cell"] = correlation(
            change - change.mean(axis=0), truth - truth.mean(axis=0)
        )
    return scores.rename_axis(index=None, columns=None)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; 0 where one side does not vary."""
    return 0.0 if min(a.std(), b.std()) < 1e-9 else float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def report(table: pd.DataFrame, cells: dict[str, np.ndarray]) -> None:
    """Print the table and how to read it."""
    print(f"{CELL_TYPE} under {PERTURBATION}, {len(cells['predicted'])} control cells predicted:\n")
    print(table.T.to_string(float_format="{:.3f}".format, na_rep="-"))
    print(
        "\nPearson-Δ: correlation over genes of predicted and real mean change of log1p CP10k. MSE: of the means.\n"
        "E-dist.: energy distance between predicted and real cells; lower is better, for MSE too. Ceiling: one half\n"
        "of the real cells against the other. The last two rows compare with the true counterfactuals of the same\n"
        "cells: the mean change over genes, and how the change of each cell departs from the mean. Effects add up on\n"
        "the log scale here, so the shift is hard to beat on means; but it moves every cell alike.\n"
    )
    print(f"Written: {OUTPUT / 'demo.png'}, {OUTPUT / 'demo.csv'}")


def draw(cells: dict[str, np.ndarray], genes: pd.Index) -> Figure:
    """Mean changes, cells on principal components, distributions of the genes that change most."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 5), width_ratios=[1, 1, 1.25], layout="constrained")
    predicted, control, real = cells["predicted"], cells["control"], cells["real"]
    title = "Mean change of every gene"
    pl.delta(predicted, real, control, n_de=TOP, n_names=9, gene_names=genes, title=title, ax=axes[0])
    axes[0].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, handletextpad=0.1)
    pl.embedding(predicted, control, real, title="Cells (cross: mean)", ax=axes[1])
    change = real.mean(axis=0) - control.mean(axis=0)
    extreme = genes[np.argsort(change)]
    chosen = [*extreme[::-1][:3], *extreme[:3]]
    title = "Genes that rise and fall most (dot: mean)"
    pl.gene_distributions(predicted, control, real, chosen, gene_names=genes, title=title, ax=axes[2])
    figure.suptitle(f"{CELL_TYPE} under {PERTURBATION}: never seen in training", fontsize=14, fontweight="bold")
    return figure


if __name__ == "__main__":
    main()
