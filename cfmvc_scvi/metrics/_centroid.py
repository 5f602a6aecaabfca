"""Metrics of mean expression, and the normalisation that all metrics are stated on."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import scipy.sparse as sp

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi.metrics._arrays import (
    ROUNDING,
    GeneSelection,
    Matrix,
    check_array,
    check_genes,
    check_same_genes,
    mean_profile,
    undefined,
)
from cfmvc_scvi.metrics._names import by_gene_name


def log1p_cp10k(counts: Matrix, library: np.ndarray | None = None) -> Matrix:
    """Log-normalise counts: ``log1p(counts / library * 10_000)``.

    Every metric of this module is stated on this scale.

    Parameters
    ----------
    counts
        Counts (or expected counts), cells x genes, dense or sparse.
    library
        Library size of each cell, ``(cells,)``. ``None``: the row sums. Where ``counts`` holds a selection of the
        genes, pass the total over all genes; otherwise the values of a cell depend on the selection.

    Returns
    -------
    float64 of the same shape, CSR for sparse input. A cell without any count is 0 throughout.

    Raises
    ------
    ValueError
        For negative or non-finite counts, or where a cell with counts has no positive library size.

    Examples
    --------
    >>> import numpy as np
    >>> log1p_cp10k(np.array([[1, 3], [0, 0]])).round(3)
    array([[7.824, 8.923],
           [0.   , 0.   ]])
    """
    counts = check_array(counts, "counts", min_cells=0)
    values = cast(Any, counts).data if sp.issparse(counts) else counts
    if values.size and values.min() < 0:
        raise ValueError(f"`counts` holds negative values (down to {values.min():g}); expected counts, not logs.")
    row_sums = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    size = row_sums if library is None else np.asarray(library, dtype=np.float64).ravel()
    if size.shape != row_sums.shape:
        raise ValueError(f"`library` has {size.size} value(s) for {row_sums.size} cell(s); give one for each cell.")
    unusable = ~(np.isfinite(size) & (size > 0)) & (row_sums > 0)
    if unusable.any():
        raise ValueError(
            f"`library` is not a positive number in {int(unusable.sum())} cell(s) with counts, first in "
            f"row {int(np.flatnonzero(unusable)[0])}. Pass each cell's total, or `None` for the row sums."
        )
    factor = np.where(row_sums > 0, CP10K / np.where(row_sums > 0, size, 1.0), 0.0)
    if sp.issparse(counts):
        scaled: Any = sp.csr_matrix(sp.diags_array(factor) @ counts)  # scipy adds `log1p` at run time
        return scaled.log1p()
    return np.log1p(counts * factor[:, None])


@by_gene_name("pred", "truth", "control")
def pearson_delta(pred: Matrix, truth: Matrix, control: Matrix, *, genes: GeneSelection = None) -> float:
    """Correlate predicted and true change of mean expression from control, over genes.

    ``corr(mean(pred) - mean(control), mean(truth) - mean(control))``: the real control cells on both sides.
    Higher is better. It says nothing on the size of the change, and where all perturbations act alike a
    constant shift does well: read it beside :func:`pearson_delta_centroid` and the baselines.

    Parameters
    ----------
    pred, truth, control
        log1p CP10k, cells x genes (dense or sparse) or one mean per gene.
    genes
        Positions or mask of the genes to use. ``None``: all.

    Returns
    -------
    Correlation. **0.0 where the predicted change is zero in every gene** (below 1e-5 of the largest mean,
    which is rounding): no change carries no information. NaN with a warning where a correlation is undefined:
    for fewer than two genes, or where the true change, or a predicted change other than zero, is the same for
    all genes.

    Examples
    --------
    >>> import numpy as np
    >>> control, truth = np.zeros((3, 4)), np.tile([0.0, 1.0, 2.0, 3.0], (3, 1))
    >>> round(pearson_delta(2 * truth, truth, control), 6), pearson_delta(control, truth, control)
    (1.0, 0.0)
    """
    return _correlation_from(pred, truth, control, genes, "control", "pearson_delta")


@by_gene_name("pred", "truth", "centroid")
def pearson_delta_centroid(pred: Matrix, truth: Matrix, centroid: Matrix, *, genes: GeneSelection = None) -> float:
    """Correlate predicted and true change from the centroid of perturbed cells (Systema's reference).

    A change that all perturbations share (or one perturbation in all training contexts) is in ``centroid`` and so
    counts for nothing: only a change that is specific to this condition scores. Higher is better; the mean of the
    training perturbations itself scores 0.

    Parameters
    ----------
    pred, truth
        log1p CP10k, cells x genes or one mean per gene.
    centroid
        Mean per gene of the perturbed training cells (cells x genes is averaged over cells); see
        :func:`mean_perturbed`.
    genes
        Positions or mask of the genes to use.

    Returns
    -------
    Correlation, with the conventions of :func:`pearson_delta`.

    References
    ----------
    Systema, Nature Biotechnology 2025.
    """
    return _correlation_from(pred, truth, centroid, genes, "centroid", "pearson_delta_centroid")


@by_gene_name("pred", "truth")
def mse_mean(pred: Matrix, truth: Matrix, *, genes: GeneSelection = None) -> float:
    """Mean over genes of the squared difference of mean expression. Lower is better.

    Parameters
    ----------
    pred, truth
        log1p CP10k, cells x genes or one mean per gene.
    genes
        Positions or mask of the genes to use.

    Examples
    --------
    >>> import numpy as np
    >>> mse_mean(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    2.0
    """
    pred_mean, truth_mean = _means(genes, pred=pred, truth=truth)
    return float(np.mean((pred_mean - truth_mean) ** 2))


@by_gene_name("pred", "truth", "control")
def mse_delta(
    pred: Matrix, truth: Matrix, control: Matrix, *, genes: GeneSelection = None, normalize: bool = False
) -> float:
    """Mean over genes of the squared difference of the change from control. Lower is better.

    Since the real control is subtracted on both sides, this equals :func:`mse_mean`; with ``normalize=True``
    it is divided by the mean square of the true change: 0 is perfect, 1 is no change, above 1 is worse than
    doing nothing.

    Parameters
    ----------
    pred, truth, control
        log1p CP10k, cells x genes or one mean per gene.
    genes
        Positions or mask of the genes to use.
    normalize
        Divide by the mean square of the true change. NaN with a warning where that is zero.
    """
    pred_mean, truth_mean, control_mean = _means(genes, pred=pred, truth=truth, control=control)
    error = float(np.mean((pred_mean - truth_mean) ** 2))
    if not normalize:
        return error
    true_delta = truth_mean - control_mean
    if _is_zero(true_delta, truth_mean, control_mean):
        return undefined("mse_delta(normalize=True)", "truth and control have the same means, so there is no change")
    return error / float(np.mean(true_delta**2))


@by_gene_name("pred", "truth", "control")
def cosine_delta(pred: Matrix, truth: Matrix, control: Matrix, *, genes: GeneSelection = None) -> float:
    """Cosine of predicted and true change of mean expression from control: the cosine of log fold changes.

    As :func:`pearson_delta`, but the changes are not centred over genes, so that a change of all genes alike counts.
    Higher is better.

    Parameters
    ----------
    pred, truth, control
        log1p CP10k, cells x genes or one mean per gene.
    genes
        Positions or mask of the genes to use.

    Returns
    -------
    Between -1 and 1; **0.0 where no change is predicted**, NaN with a warning where there is none in truth.

    Examples
    --------
    >>> import numpy as np
    >>> control, truth = np.zeros(2), np.array([1.0, 1.0])
    >>> round(cosine_delta(np.array([0.0, 2.0]), truth, control), 3)
    0.707
    """
    pred_mean, truth_mean, control_mean = _means(genes, pred=pred, truth=truth, control=control)
    predicted, true = pred_mean - control_mean, truth_mean - control_mean
    if _is_zero(true, truth_mean, control_mean):
        return undefined("cosine_delta", "truth and control have the same means, so there is no change")
    if _is_zero(predicted, pred_mean, control_mean):
        return 0.0
    return float(predicted @ true / (np.linalg.norm(predicted) * np.linalg.norm(true)))


@by_gene_name("pred", "truth")
def r2_mean(pred: Matrix, truth: Matrix, *, genes: GeneSelection = None) -> float:
    """Coefficient of determination of mean expression over genes (``sklearn.metrics.r2_score``).

    Saturates: the control cells themselves commonly reach .96. Never report it without the row of no change.

    Parameters
    ----------
    pred, truth
        log1p CP10k, cells x genes or one mean per gene.
    genes
        Positions or mask of the genes to use.

    Returns
    -------
    At most 1; NaN with a warning where the true mean is the same for all genes.
    """
    pred_mean, truth_mean = _means(genes, pred=pred, truth=truth)
    if np.ptp(truth_mean) == 0:
        return undefined("r2_mean", "the true mean is the same for all genes")
    residual = np.sum((truth_mean - pred_mean) ** 2)
    return float(1 - residual / np.sum((truth_mean - truth_mean.mean()) ** 2))


def _means(genes: GeneSelection, **arrays: Matrix) -> list[np.ndarray]:
    means = {name: mean_profile(array, name) for name, array in arrays.items()}
    selection = check_genes(genes, check_same_genes(**means))
    return [mean[selection] for mean in means.values()]


def _is_zero(delta: np.ndarray, *parts: np.ndarray) -> bool:
    return bool(np.max(np.abs(delta)) <= ROUNDING * max(np.max(np.abs(part)) for part in parts))


def _correlation_from(
    pred: Matrix, truth: Matrix, reference: Matrix, genes: GeneSelection, reference_name: str, metric: str
) -> float:
    pred_mean, truth_mean, reference_mean = _means(genes, pred=pred, truth=truth, **{reference_name: reference})
    pred_delta, true_delta = pred_mean - reference_mean, truth_mean - reference_mean
    if pred_delta.size < 2:
        return undefined(metric, "a correlation needs at least two genes")
    if _is_zero(true_delta - true_delta.mean(), truth_mean, reference_mean):
        return undefined(metric, f"the true change from {reference_name} is the same for all genes")
    if _is_zero(pred_delta, pred_mean, reference_mean):
        return 0.0
    if _is_zero(pred_delta - pred_delta.mean(), pred_mean, reference_mean):
        return undefined(metric, f"the predicted change from {reference_name} is the same, not zero, for all genes")
    pred_delta, true_delta = pred_delta - pred_delta.mean(), true_delta - true_delta.mean()
    cosine = pred_delta @ true_delta / (np.linalg.norm(pred_delta) * np.linalg.norm(true_delta))
    return float(np.clip(cosine, -1.0, 1.0))
