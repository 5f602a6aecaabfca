"""Data: simulated screens with known counterfactuals, and loaders of public data sets."""

from cfmvc_scvi.data.datasets import (
    cao2018,
    gasperini2019,
    kang2018,
    moffitt2018_merfish,
    papalexi2021,
    tian2019_cellbench,
    wang2018_starmap,
)
from cfmvc_scvi.data.simulate import counterfactual_mean, simulate_perturbation

__all__ = [
    "cao2018",
    "counterfactual_mean",
    "gasperini2019",
    "kang2018",
    "moffitt2018_merfish",
    "papalexi2021",
    "simulate_perturbation",
    "tian2019_cellbench",
    "wang2018_starmap",
]
