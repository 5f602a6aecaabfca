"""Simulated populations for plots, and no figure left open."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def cells(trained):
    """Control, predicted and real cells of P1 in type1, as AnnData of counts."""
    of_type = trained.adata[(trained.adata.obs["cell_type"] == "type1").to_numpy()]
    control = of_type[(of_type.obs["perturbation"] == "control").to_numpy()].copy()
    real = of_type[(of_type.obs["perturbation"] == "P1").to_numpy()].copy()
    return SimpleNamespace(control=control, real=real, predicted=trained.predict_perturbation(control, "P1"))


@pytest.fixture
def arrays() -> SimpleNamespace:
    """The same as arrays on the log1p CP10k scale: 40 genes, the first five move."""
    rng = np.random.default_rng(0)
    control = rng.gamma(2.0, 0.6, (60, 40))
    shift = np.r_[[2.0, 1.5, 1.0, 0.8, 0.6], np.zeros(35)]
    real = rng.gamma(2.0, 0.6, (50, 40)) + shift
    return SimpleNamespace(control=control, real=real, predicted=control + 0.8 * shift, shift=shift)
