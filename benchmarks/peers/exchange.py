"""What this project's environment and a peer's share: files of one fold, predicted cells, the budget.

Needs numpy, scipy and pandas alone, of any version, so that both sides import it. A folder of one fold holds

counts.npz, cells.csv, genes.csv    training cells: counts, and context, perturbation and library size of each
asked.json                          rows of the control cells to predict from, and what to predict
predicted.npz, run.json             written by the peer: cells on log1p CP10k, and what the run took
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

CONTROL = "control"
#: Between the name of a method and that of a condition in ``predicted.npz``.
BETWEEN = " :: "


@dataclass(frozen=True)
class Fold:
    """What a peer may see.

    Attributes
    ----------
    counts
        Training cells x genes, CSR.
    cells
        Columns ``context`` (cell type or donor; one name for all where there is none), ``perturbation`` (``"A+B"``
        for combinations, ``"control"``) and ``library``.
    genes
        Their names.
    rows
        Training cells to predict from: controls of the context that is asked for.
    asked
        Name of the condition -> perturbation.
    """

    counts: sp.csr_matrix
    cells: pd.DataFrame
    genes: list[str]
    rows: np.ndarray
    asked: dict[str, str]

    def lognorm(self, counts: Any = None, library: Any = None) -> np.ndarray:
        """log1p of counts per 10,000 of the library; of the training cells by default."""
        counts = self.counts if counts is None else counts
        library = self.cells["library"] if library is None else library
        counts = counts.toarray() if sp.issparse(counts) else np.asarray(counts)
        return np.log1p(counts / np.asarray(library, dtype=np.float64)[:, None] * 1e4).astype(np.float32)

    @property
    def context(self) -> str:
        """Context of the cells to predict from."""
        return str(self.cells["context"].iloc[self.rows[0]])


def write_fold(folder: Path, fold: Fold) -> None:
    """Write what the peer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    sp.save_npz(folder / "counts.npz", sp.csr_matrix(fold.counts))
    fold.cells.to_csv(folder / "cells.csv", index=False)
    pd.Series(fold.genes, name="gene").to_csv(folder / "genes.csv", index=False)
    (folder / "asked.json").write_text(json.dumps({"rows": fold.rows.tolist(), "asked": fold.asked}))


def read_fold(folder: Path) -> Fold:
    """Read what :func:`write_fold` wrote."""
    asked = json.loads((folder / "asked.json").read_text())
    return Fold(
        counts=sp.csr_matrix(sp.load_npz(folder / "counts.npz")),
        cells=pd.read_csv(folder / "cells.csv", dtype={"context": str, "perturbation": str}, keep_default_na=False),
        genes=pd.read_csv(folder / "genes.csv", dtype=str, keep_default_na=False)["gene"].tolist(),
        rows=np.array(asked["rows"]),
        asked=asked["asked"],
    )


def write_predictions(folder: Path, predicted: Mapping[str, Mapping[str, np.ndarray]], run: Mapping[str, Any]) -> None:
    """Write cells by method and condition, and facts of the run."""
    arrays = {f"{method}{BETWEEN}{name}": x for method, cells in predicted.items() for name, x in cells.items()}
    np.savez(folder / "predicted.npz", **{name: np.asarray(x, dtype=np.float32) for name, x in arrays.items()})
    (folder / "run.json").write_text(json.dumps(dict(run)))


def read_predictions(folder: Path) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Read what :func:`write_predictions` wrote."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(folder / "predicted.npz") as arrays:
        for name in arrays.files:
            method, _, condition = name.partition(BETWEEN)
            found.setdefault(method, {})[condition] = arrays[name].astype(np.float64)
    return found, json.loads((folder / "run.json").read_text())


class Clock:
    """Processor seconds of a training against its budget, and what to report of it."""

    def __init__(self, budget: float) -> None:
        self.budget, self.wall, self.cpu = budget, time.perf_counter(), time.process_time()
        self.epochs, self.stopped = 0, False

    def over(self) -> bool:
        """Whether the budget is spent."""
        self.stopped = self.stopped or time.process_time() - self.cpu > self.budget
        return self.stopped

    def callback(self, base: type) -> Any:
        """Lightning callback, of the class ``Callback`` given, that ends training with the epoch that spends it."""
        clock = self

        class Stop(base):
            def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
                clock.epochs += 1
                trainer.should_stop = trainer.should_stop or clock.over()

        return Stop()

    def report(self, packages: Sequence[str], settings: str) -> dict[str, Any]:
        """Facts for ``run.json``; call when training is over."""
        return {
            "train s": time.perf_counter() - self.wall,
            "train cpu s": time.process_time() - self.cpu,
            "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "epochs": self.epochs,
            "budget spent": self.stopped,
            "versions": {name: importlib.metadata.version(name) for name in packages},
            "settings": settings,
        }
