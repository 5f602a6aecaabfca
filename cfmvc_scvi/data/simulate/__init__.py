"""Simulated screens with known counterfactuals."""

from cfmvc_scvi.data.simulate.screen import counterfactual_mean, simulate_perturbation

__all__ = ["counterfactual_mean", "simulate_perturbation"]
