"""Metrics of perturbation prediction, baselines, ceiling and one table of them: functions on arrays.

Everything is stated on log1p of counts per 10,000 (:func:`log1p_cp10k`), cells x genes. Changes (deltas) are
measured from the **real** control cells of the same context, in the prediction as in the truth. Genes of DataFrames are
matched by the names of their columns (of Series by their index), arrays are taken to be in one order.
"""

from cfmvc_scvi.metrics._baselines import additive, mean_perturbed, mean_shift, no_change, ridge_embedding
from cfmvc_scvi.metrics._ceiling import split_half
from cfmvc_scvi.metrics._centroid import (
    cosine_delta,
    log1p_cp10k,
    mse_delta,
    mse_mean,
    pearson_delta,
    pearson_delta_centroid,
    r2_mean,
)
from cfmvc_scvi.metrics._de import (
    DECounts,
    WelchResult,
    auprc_de,
    benjamini_hochberg,
    de_counts,
    de_overlap,
    direction_accuracy,
    mse_weighted,
    top_de_genes,
    welch_t,
)
from cfmvc_scvi.metrics._evaluate import evaluate
from cfmvc_scvi.metrics._population import (
    Agreement,
    energy_distance,
    mmd_rbf,
    relative_mmd,
    variance_agreement,
    variance_ratio,
    zero_fraction_agreement,
)
from cfmvc_scvi.metrics._projection import PrincipalComponents, fit_pcs
from cfmvc_scvi.metrics._screen import harm_rate, perturbation_discrimination
from cfmvc_scvi.metrics._table import METRICS, Metric, overview_metrics
from cfmvc_scvi.metrics._task import ScoringTask

__all__ = [
    "METRICS",
    "Agreement",
    "DECounts",
    "Metric",
    "PrincipalComponents",
    "ScoringTask",
    "WelchResult",
    "additive",
    "auprc_de",
    "benjamini_hochberg",
    "cosine_delta",
    "de_counts",
    "de_overlap",
    "direction_accuracy",
    "energy_distance",
    "evaluate",
    "fit_pcs",
    "harm_rate",
    "log1p_cp10k",
    "mean_perturbed",
    "mean_shift",
    "mmd_rbf",
    "mse_delta",
    "mse_mean",
    "mse_weighted",
    "no_change",
    "overview_metrics",
    "pearson_delta",
    "pearson_delta_centroid",
    "perturbation_discrimination",
    "r2_mean",
    "relative_mmd",
    "ridge_embedding",
    "split_half",
    "top_de_genes",
    "variance_agreement",
    "variance_ratio",
    "welch_t",
    "zero_fraction_agreement",
]
