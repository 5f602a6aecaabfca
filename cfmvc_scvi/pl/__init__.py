"""Plots in matplotlib, by scanpy's conventions.

Every function returns what it drew on, an :class:`~matplotlib.axes.Axes` or a :class:`~matplotlib.figure.Figure`, and
takes ``save=`` (a path), ``show=`` and, where it draws on one axes, ``ax=``. ``show=None`` opens a window only for a
figure of its own that is not saved, under a backend that has windows. Colours can be told apart with every common
colour vision: control is grey, predicted blue, real orange.

Cells are given as AnnData of counts, such as predictions, or as arrays of log1p of counts per 10,000, cells x genes;
tables as the DataFrames that the model returns.
"""

from cfmvc_scvi.pl._cells import embedding, spatial_gene, velocity
from cfmvc_scvi.pl._criticism import posterior_predictive_check
from cfmvc_scvi.pl._effects import coefficients, effects, perturbation_map
from cfmvc_scvi.pl._expression import delta, gene_distributions, mean_expression
from cfmvc_scvi.pl._tables import benchmark, support
from cfmvc_scvi.pl._training import training_curves

__all__ = [
    "benchmark",
    "coefficients",
    "delta",
    "effects",
    "embedding",
    "gene_distributions",
    "mean_expression",
    "perturbation_map",
    "posterior_predictive_check",
    "spatial_gene",
    "support",
    "training_curves",
    "velocity",
]
