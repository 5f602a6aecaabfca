"""Plots in matplotlib, by scanpy's conventions.

Every function takes ``save=`` (a path), ``show=``, ``return_fig=`` and, where it draws on one axes, ``ax=``. It returns
what it drew on, an :class:`~matplotlib.axes.Axes` or a :class:`~matplotlib.figure.Figure`, or ``None`` where it was
shown; with ``return_fig=True`` the figure. ``show=None`` shows a figure of its own: in a notebook, and in a window
where the backend has windows and it is not saved; so ``show=False`` is for what will be changed after. Colours can be
told apart with every common colour vision, on a light and on a dark style: control is grey, predicted blue, real
orange.

Cells are given as AnnData of counts, such as predictions, or as arrays of log1p of counts per 10,000, cells x genes;
tables as the DataFrames that the model returns.
"""

from cfmvc_scvi.pl._cells import embedding, spatial_gene, velocity
from cfmvc_scvi.pl._comparison import interaction, similarity
from cfmvc_scvi.pl._criticism import posterior_predictive_check
from cfmvc_scvi.pl._effects import coefficients, effects, perturbation_map
from cfmvc_scvi.pl._expression import delta, gene_distributions, mean_expression
from cfmvc_scvi.pl._intervals import forest, volcano
from cfmvc_scvi.pl._tables import benchmark, support
from cfmvc_scvi.pl._training import training_curves

__all__ = [
    "benchmark",
    "coefficients",
    "delta",
    "effects",
    "embedding",
    "forest",
    "gene_distributions",
    "interaction",
    "mean_expression",
    "perturbation_map",
    "posterior_predictive_check",
    "similarity",
    "spatial_gene",
    "support",
    "training_curves",
    "velocity",
    "volcano",
]
