"""Error of the fixed-step solvers on trained models, relative to the length of the move.

    python benchmarks/quality/solvers.py

For every solver: evaluations of the field per solution, and the mean distance of the moved latents from those of RK4
with 60 steps over the mean length of the move, by data set; mean over at most six perturbations. "One-step midpoint"
is the textbook method, which evaluates the field twice per step.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scvi
import torch
from torch import Tensor

from cfmvc_scvi import CFMVC
from cfmvc_scvi.data import kang2018, papalexi2021
from cfmvc_scvi.flow import RK4, Euler, Midpoint, Solver
from cfmvc_scvi.flow.solver import FixedStepSolver, Velocity


class OneStepMidpoint(FixedStepSolver):
    """The midpoint method without a memory of earlier steps."""

    order = 2

    def increment(
        self, velocity: Velocity, z: Tensor, t: float, width: float, earlier: Sequence[Tensor] = ()
    ) -> Tensor:
        """See :meth:`FixedStepSolver.increment`."""
        return velocity(z + 0.5 * width * velocity(z, t), t + 0.5 * width)


SOLVERS: dict[str, tuple[int, Solver]] = {
    "midpoint, 5 steps": (6, Midpoint(5)),
    "midpoint, 10 steps (default)": (11, Midpoint(10)),
    "midpoint, 20 steps": (21, Midpoint(20)),
    "one-step midpoint, 5 steps": (10, OneStepMidpoint(5)),
    "one-step midpoint, 10 steps": (20, OneStepMidpoint(10)),
    "Euler, 20 steps": (20, Euler(20)),
    "RK4, 3 steps": (12, RK4(3)),
    "RK4, 5 steps": (20, RK4(5)),
}


def errors(adata: ad.AnnData) -> pd.Series:
    """Error of every solver for the control cells of a data set."""
    CFMVC.setup_anndata(adata)
    model = CFMVC(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    rows = np.flatnonzero(adata.obs[model.setup_keys.perturbation_key].isin(model.vocabulary.control_group))
    cells = model._cells(None, rows)
    z, found = model._encode(cells).mean, []
    for name in model.vocabulary.names[:6]:
        p = torch.from_numpy(model.vocabulary.encode([model.vocabulary.parse(name)])).expand(len(z), -1)
        exact = model.module.transport(z, p, cells.context, RK4(60))
        length = (exact - z).norm(dim=1).mean()
        moved = {key: model.module.transport(z, p, cells.context, solver) for key, (_, solver) in SOLVERS.items()}
        found.append({key: float((end - exact).norm(dim=1).mean() / length) for key, end in moved.items()})
    return pd.DataFrame(found).mean()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None, help="folder of the data sets; default in $CFMVC_DATA")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed, scvi.settings.verbosity = options.seed, logging.ERROR
    table = pd.DataFrame({"evaluations": {key: n for key, (n, _) in SOLVERS.items()}})
    for name, load in (("Kang", kang2018), ("Papalexi", papalexi2021)):
        table[f"{name}, % of the move"] = 100 * errors(load(options.data))
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
