"""The mathematics of flow matching in plain torch and numpy: paths, couplings, solvers, distances."""

from cfmvc_scvi.flow.coupling import Coupling, IndependentCoupling, OTCoupling, get_coupling
from cfmvc_scvi.flow.distance import energy_distance
from cfmvc_scvi.flow.path import LinearPath, PathSample
from cfmvc_scvi.flow.solver import RK4, Adaptive, Euler, Midpoint, Solver, get_solver

__all__ = [
    "RK4",
    "Adaptive",
    "Coupling",
    "Euler",
    "IndependentCoupling",
    "LinearPath",
    "Midpoint",
    "OTCoupling",
    "PathSample",
    "Solver",
    "energy_distance",
    "get_coupling",
    "get_solver",
]
