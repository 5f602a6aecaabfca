"""Speed of both stages and of prediction beside SCVI and the bare matrix products, as ratios of one run.

    python benchmarks/speed/run.py                          every part but the million cells; some minutes
    python benchmarks/speed/run.py --parts stage1 stage2    some parts
    python benchmarks/speed/run.py --cells 3000 --epochs 2 --repeats 1   a short look
    OMP_NUM_THREADS=1 python benchmarks/speed/run.py --clock cpu         time on the processor, on a busy machine
    python benchmarks/speed/run.py --parts scaling memory --large 10000 100000 1000000

Parts: ``likelihood`` (last layer and likelihood of a batch, forward and backward), ``stage1`` (SCVI.train, train_vae
and the matrix products in turn), ``stage2`` (train_flow, with and without optimal transport), ``predict``, ``scaling``
(seconds per cell by number of cells), ``memory`` (peak above the data), ``profile`` (where the time of a step goes).
Every figure is a median over repeats; the models of a comparison take turns within one process. Compare ratios, and
only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

PARTS = ("likelihood", "stage1", "stage2", "predict", "scaling", "memory", "profile")


def machine() -> str:
    """Processor, cores, threads and versions."""
    import scvi
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; python {platform.python_version()}, "
        f"torch {torch.__version__}, scvi-tools {scvi.__version__}"
    )


def likelihood(options: argparse.Namespace) -> pd.DataFrame:
    """Milliseconds of last layer and likelihood, forward and backward: of scvi-tools, ours, and the products alone."""
    from models import last_layer_times

    rows = []
    for n_genes in options.genes:
        for batch_size in options.batch_sizes:
            times = last_layer_times(batch_size, n_genes, 10 * options.repeats)
            ratio = times["scvi-tools, ms"] / times["ours, ms"]
            rows.append({"genes": n_genes, "batch": batch_size, **times, "scvi-tools / ours": ratio})
    return pd.DataFrame(rows)


def stage1(options: argparse.Namespace) -> pd.DataFrame:
    """Cells per second of SCVI.train, of train_vae and of the products alone, by batch size and genes."""
    from cells import simulated_cells
    from models import EpochTimes, fit_options, new_cfmvc, new_scvi, products_alone, seconds

    rows = []
    for n_genes in options.genes:
        adata = simulated_cells(options.cells, n_genes)
        for batch_size in options.batch_sizes:
            found = []
            for _ in range(options.repeats):
                times = {}
                for name, make, train in (("scvi", new_scvi, "train"), ("ours", new_cfmvc, "train_vae")):
                    model, epochs = make(adata), EpochTimes()
                    fit = fit_options(options.epochs, batch_size, epochs)
                    times[f"{name} whole"] = seconds(lambda m=model, t=train, f=fit: getattr(m, t)(**f))
                    times[f"{name} epoch"] = epochs.later
                steps = options.cells // batch_size
                times["products"] = steps * products_alone(batch_size, n_genes, 20)
                found.append(times)
            median = pd.DataFrame(found)
            rows.append(
                {
                    "genes": n_genes,
                    "batch": batch_size,
                    "SCVI cells/s": options.cells / median["scvi epoch"].median(),
                    "ours cells/s": options.cells / median["ours epoch"].median(),
                    "ours / SCVI": (median["scvi epoch"] / median["ours epoch"]).median(),
                    "whole call": (median["scvi whole"] / median["ours whole"]).median(),
                    "products / ours": (median["products"] / median["ours epoch"]).median(),
                    "products / SCVI": (median["products"] / median["scvi epoch"]).median(),
                }
            )
    return pd.DataFrame(rows)


def stage2(options: argparse.Namespace) -> pd.DataFrame:
    """Cells per second of train_flow by batch size, beside those of train_vae at its batch sizes."""
    from cells import simulated_cells
    from models import QUIET, EpochTimes, fit_options, new_cfmvc

    adata = simulated_cells(options.cells, options.genes[0])
    found: list[dict] = []
    for _ in range(options.repeats):
        times = {}
        for coupling in ("independent", "ot"):
            model = new_cfmvc(adata, coupling=coupling)
            for batch_size in options.batch_sizes:
                epochs = EpochTimes()
                model.train_vae(**fit_options(options.epochs, batch_size, epochs))
                times.setdefault(f"stage 1 at {batch_size}", []).append(epochs.later)
            for batch_size in options.flow_batch_sizes:
                epochs = EpochTimes()
                model.train_flow(max(4, options.epochs), batch_size=batch_size, callbacks=[epochs], **QUIET)
                times[coupling, batch_size] = epochs.later
        found.append({key: np.median(value) for key, value in times.items()})
    rows = []
    for coupling in ("independent", "ot"):
        for batch_size in options.flow_batch_sizes:
            row = {"coupling": coupling, "flow batch": batch_size}
            row["cells/s"] = options.cells / np.median([times[coupling, batch_size] for times in found])
            for size in options.batch_sizes:
                ratios = [times[f"stage 1 at {size}"] / times[coupling, batch_size] for times in found]
                row[f"/ stage 1 at {size}"] = np.median(ratios)
            rows.append(row)
    return pd.DataFrame(rows)


def predict(options: argparse.Namespace) -> pd.DataFrame:
    """Seconds of predict_perturbation per condition over those of SCVI.get_normalized_expression, the same cells."""
    from cells import simulated_cells
    from models import QUIET, new_cfmvc, new_scvi, seconds

    rows = []
    for n_genes in options.genes:
        adata = simulated_cells(options.cells, n_genes)
        ours, scvi = new_cfmvc(adata, n_layers_decoder=1), new_scvi(adata)
        ours.train(vae_max_epochs=1, flow_max_epochs=1, **QUIET)
        scvi.train(1, **QUIET)
        cells = np.flatnonzero(adata.obs["perturbation"] == "control")
        names = ["P1", "P2", "P3", "P4", "P5"]
        calls = {
            "SCVI": lambda s=scvi, c=cells: s.get_normalized_expression(indices=c),
            "one condition, first call": lambda m=ours: m.predict_perturbation(perturbation="P1"),
            "one condition": lambda m=ours: m.predict_perturbation(perturbation="P1"),
            "latent alone": lambda m=ours: m.predict_perturbation(perturbation="P1", return_type="latent"),
            "each of five conditions": lambda m=ours, n=names: m.predict_perturbation(
                perturbation=n, show_progress=False
            ),
        }
        first = {name: seconds(call) for name, call in calls.items()}
        times = pd.DataFrame([{k: seconds(call) for k, call in calls.items()} for _ in range(options.repeats + 2)])
        times["each of five conditions"] /= len(names)
        times["one condition, first call"] = first["one condition, first call"]
        ratios = times.div(times["SCVI"], axis=0).median()
        for name in calls:
            speed = len(cells) / times[name].median()
            rows.append({"genes": n_genes, "call": name, "cells/s": speed, "time / SCVI": ratios[name]})
    return pd.DataFrame(rows)


def scaling(options: argparse.Namespace) -> pd.DataFrame:
    """Microseconds per cell of train_vae by number of cells; small and large data take turns, some seconds each.

    Of an epoch of the large data some batches are run, whose cells lie anywhere in it.
    """
    from cells import simulated_cells
    from models import EpochTimes, fit_options, new_cfmvc

    n_genes, batch_size, most = options.genes[0], 512, 120
    base = new_cfmvc(simulated_cells(options.large[0], n_genes))
    rows = []
    for n_cells in options.large:
        model = new_cfmvc(simulated_cells(n_cells, n_genes))
        found: list[list[float]] = []
        for _ in range(2 * options.repeats + 1):
            found.append([])
            for one, size in ((base, options.large[0]), (model, n_cells)):
                steps, epochs = min(most, size // batch_size), EpochTimes()
                fit = fit_options(1 + -(-most // steps), batch_size, epochs) | {"limit_train_batches": steps}
                one.train_vae(**fit)
                found[-1].append(epochs.later / (steps * batch_size) * 1e6)
        there, here = np.array(found).T
        row = {"cells": n_cells, "genes": n_genes, "us per cell": np.median(here)}
        rows.append(row | {f"/ {options.large[0]}": np.median(here / there)})
        del model
    return pd.DataFrame(rows)


def memory(options: argparse.Namespace) -> pd.DataFrame:
    """Peak memory of setup, training and prediction above the data, each size in a process of its own."""
    rows = []
    for n_cells in options.large:
        for n_genes in options.genes if n_cells < 10**6 else options.genes[:1]:
            script = Path(__file__).with_name("memory.py")
            command = [sys.executable, str(script), str(n_cells), str(n_genes)]
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout
            values = dict(line.split("=") for line in out.splitlines() if "=" in line)
            rows.append({"cells": n_cells, "genes": n_genes, **{k: float(v) for k, v in values.items()}})
    return pd.DataFrame(rows)


def profile(options: argparse.Namespace) -> pd.DataFrame:
    """Milliseconds of the parts of a step of stage 1."""
    from cells import simulated_cells
    from models import step_parts

    adata = simulated_cells(min(options.cells, 5000), options.genes[0])
    return pd.DataFrame({f"batch {size}": step_parts(adata, size) for size in options.batch_sizes}).reset_index(
        names="part, ms"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cells", type=int, default=10_000, help="cells of stage1, stage2 and predict")
    parser.add_argument("--genes", type=int, nargs="+", default=[2000, 5000])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--flow-batch-sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a fit; the first is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", type=int, nargs="+", default=[10_000, 100_000], help="sizes of scaling and memory")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: with one thread, if others run")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(machine())
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}; clock: {options.clock}", flush=True)
    import scvi
    from models import set_clock

    set_clock(options.clock)
    scvi.settings.seed = 0
    scvi.settings.verbosity = logging.ERROR
    for part in options.parts:
        table = globals()[part](options)
        print(f"\n{part}\n{table.round(2).to_string(index=False)}", flush=True)


if __name__ == "__main__":
    main()
