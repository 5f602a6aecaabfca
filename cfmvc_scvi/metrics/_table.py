"""Every metric of the table of scores, with all that is known of it: one entry for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from cfmvc_scvi.metrics._centroid import cosine_delta, mse_mean, pearson_delta, pearson_delta_centroid, r2_mean
from cfmvc_scvi.metrics._de import auprc_de, de_counts, de_overlap, mse_weighted, sign_agreement
from cfmvc_scvi.metrics._population import energy_distance, relative_mmd, variance_ratio
from cfmvc_scvi.metrics._task import ScoringTask

#: ``function(prediction, truth, task)``, with the prediction as cells x genes or one mean per gene.
ScoreFunction: TypeAlias = Callable[[np.ndarray, np.ndarray, ScoringTask], float]
_ARROWS = {"higher": "↑", "lower": "↓", "one": "→ 1"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A column of the table of :func:`evaluate`.

    Attributes
    ----------
    function
        ``function(prediction, truth, task)`` returns the score. The prediction is cells x genes, or one mean per
        gene where ``needs`` does not name ``"cells"``; the truth is cells x genes; ``task`` holds control cells,
        top differentially expressed genes, and the rest that a metric may ask for.
    better
        ``"higher"``, ``"lower"``, or ``"one"`` for a ratio whose right value is 1.
    title
        What is measured, in a few words.
    needs
        ``"cells"``: a prediction of cells, not of a mean alone (else the score is NaN). ``"training"``: cells of
        other contexts. ``"pcs"``: components.
    overview
        Whether it belongs among the few metrics that stand for all where there is little room.
    """

    function: ScoreFunction
    better: Literal["higher", "lower", "one"]
    title: str
    needs: frozenset[Literal["cells", "training", "pcs"]] = frozenset()
    overview: bool = False

    @property
    def arrow(self) -> str:
        """The direction that is better, as a sign."""
        return _ARROWS[self.better]

    @property
    def sign(self) -> float:
        """1.0 where a larger :meth:`comparable` value is better, -1.0 where a smaller one is."""
        return 1.0 if self.better == "higher" else -1.0

    def comparable(self, values: np.ndarray) -> np.ndarray:
        """Scores on the scale on which rows are compared: ``|log|`` of a ratio, otherwise the scores themselves."""
        if self.better != "one":
            return values
        with np.errstate(divide="ignore"):
            return np.abs(np.log(values))


def _direction(pred: np.ndarray, truth: np.ndarray, task: ScoringTask) -> float:
    """:func:`direction_accuracy` on the genes that are significant in the whole truth."""
    if not task.significant.any():
        return float("nan")
    pred_mean = pred if pred.ndim == 1 else pred.mean(axis=0)
    return sign_agreement(pred_mean, truth.mean(axis=0), task.control.mean(axis=0), task.significant)


def _count_ratio(pred: np.ndarray, truth: np.ndarray, task: ScoringTask) -> float:
    """Predicted over real number of :func:`de_counts`; one is added to both, so that there always is a ratio."""
    counts = de_counts(pred, truth, task.control, seed=task.seed)
    return (counts.predicted + 1) / (counts.real + 1)


#: Name of the column -> metric, in the order of the columns. ``_top`` is on the top differentially expressed genes,
#: ``_pcs`` on principal components. Add a metric of your own with ``METRICS["name"] = Metric(...)``.
METRICS: dict[str, Metric] = {
    "pearson_delta": Metric(
        function=lambda pred, truth, task: pearson_delta(pred, truth, task.control),
        better="higher",
        title="correlation of predicted and real mean change",
        overview=True,
    ),
    "pearson_delta_top": Metric(
        function=lambda pred, truth, task: pearson_delta(pred, truth, task.control, genes=task.top),
        better="higher",
        title="the same on the top DE genes",
        overview=True,
    ),
    "pearson_delta_centroid": Metric(
        function=lambda pred, truth, task: pearson_delta_centroid(pred, truth, task.centroid),
        better="higher",
        title="correlation of the changes from the mean perturbed training cell",
        needs=frozenset({"training"}),
    ),
    "cosine_delta": Metric(
        function=lambda pred, truth, task: cosine_delta(pred, truth, task.control),
        better="higher",
        title="cosine of the log fold changes",
    ),
    "mse_mean": Metric(
        function=lambda pred, truth, task: mse_mean(pred, truth),
        better="lower",
        title="squared error of the means",
        overview=True,
    ),
    "mse_mean_top": Metric(
        function=lambda pred, truth, task: mse_mean(pred, truth, genes=task.top),
        better="lower",
        title="squared error of the means of the top DE genes",
    ),
    "mse_weighted": Metric(
        function=lambda pred, truth, task: mse_weighted(pred, truth, task.control),
        better="lower",
        title="squared error of the means, genes weighted by their real |t|",
    ),
    "r2_mean": Metric(
        function=lambda pred, truth, task: r2_mean(pred, truth),
        better="higher",
        title="coefficient of determination of the means",
        overview=True,
    ),
    "energy_distance": Metric(
        function=lambda pred, truth, task: energy_distance(task.few(pred), task.few(truth)),
        better="lower",
        title="energy distance of the populations",
        needs=frozenset({"cells"}),
    ),
    "energy_distance_top": Metric(
        function=lambda pred, truth, task: energy_distance(task.few(pred), task.few(truth), genes=task.top),
        better="lower",
        title="energy distance on the top DE genes",
        needs=frozenset({"cells"}),
        overview=True,
    ),
    "energy_distance_pcs": Metric(
        function=lambda pred, truth, task: energy_distance(task.project(pred), task.project(truth)),
        better="lower",
        title="energy distance on components",
        needs=frozenset({"cells", "pcs"}),
    ),
    "relative_mmd": Metric(
        function=lambda pred, truth, task: relative_mmd(task.project(pred), task.project(truth), task.populations),
        better="lower",
        title="maximum mean discrepancy relative to that of the nearest training population",
        needs=frozenset({"cells", "training", "pcs"}),
    ),
    "de_overlap": Metric(
        function=lambda pred, truth, task: de_overlap(pred, truth, task.control, n=task.top_n),
        better="higher",
        title="share of the real top DE genes that are among the predicted ones",
        needs=frozenset({"cells"}),
    ),
    "auprc_de": Metric(
        function=lambda pred, truth, task: auprc_de(pred, truth, task.control),
        better="higher",
        title="area under the precision-recall curve of the significant genes",
        needs=frozenset({"cells"}),
    ),
    "de_count_ratio": Metric(
        function=_count_ratio,
        better="one",
        title="number of genes called DE on predicted over that on real cells",
        needs=frozenset({"cells"}),
    ),
    "direction_accuracy": Metric(
        function=_direction,
        better="higher",
        title="share of the significant genes whose predicted change has the right sign",
        overview=True,
    ),
    "variance_ratio_top": Metric(
        function=lambda pred, truth, task: variance_ratio(pred, truth, genes=task.top),
        better="one",
        title="predicted over real variance of the top DE genes",
        needs=frozenset({"cells"}),
    ),
}


def overview_metrics() -> tuple[str, ...]:
    """Return the names of the few metrics that stand for all, in the order of :data:`METRICS`."""
    return tuple(name for name, metric in METRICS.items() if metric.overview)
