"""Differential expression: which genes change, and in which direction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import average_precision_score

from cfmvc_scvi.metrics._arrays import (
    Matrix,
    check_array,
    check_same_genes,
    is_rounding,
    mean_profile,
    moments,
    undefined,
)
from cfmvc_scvi.metrics._names import by_gene_name


class WelchResult(NamedTuple):
    """Per gene: ``statistic`` t (positive where the first sample is higher) and two-sided ``pvalue``."""

    statistic: np.ndarray
    pvalue: np.ndarray


@by_gene_name("a", "b")
def welch_t(a: Matrix, b: Matrix) -> WelchResult:
    """Welch's t-test of each gene between two populations, unequal variances.

    Parameters
    ----------
    a, b
        log1p CP10k, cells x genes, dense or sparse.

    Returns
    -------
    t and p per gene, both ``(genes,)`` and never NaN. A gene with equal means has t = 0 and p = 1 whatever its
    variance; a gene that is constant in both populations, at different values, has t = +-inf and p = 0. For all
    other genes the result is that of ``scipy.stats.ttest_ind(equal_var=False)``.

    Examples
    --------
    >>> import numpy as np
    >>> welch_t(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [3.0]])).pvalue
    array([1.])
    """
    a, b = check_array(a, "a"), check_array(b, "b")
    check_same_genes(a=a, b=b)
    return _welch(a, b)


def benjamini_hochberg(pvalues: np.ndarray) -> np.ndarray:
    """Adjust p-values for the false discovery rate (Benjamini and Hochberg 1995).

    Parameters
    ----------
    pvalues
        One dimension, each in [0, 1].

    Returns
    -------
    Adjusted p-values in the order of the input.

    Examples
    --------
    >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(4)
    array([0.03, 0.04, 0.04])
    """
    p = np.asarray(pvalues, dtype=np.float64)
    if p.ndim != 1:
        raise ValueError(f"`pvalues` has shape {p.shape}; expected one dimension.")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("`pvalues` must lie in [0, 1] and not be NaN.")
    # From the largest p-value down, the adjusted one is the least p * n / rank met so far.
    order = np.argsort(p)[::-1]
    rank = np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.minimum.accumulate(p[order] * p.size / rank), 1.0)
    return adjusted


@by_gene_name("truth", "control")
def top_de_genes(truth: Matrix, control: Matrix, n: int = 100) -> np.ndarray:
    """Return the genes with the largest absolute Welch t of truth against real control, strongest first.

    Parameters
    ----------
    truth, control
        log1p CP10k, cells x genes, of the same context.
    n
        Number of genes; all genes where there are fewer.

    Returns
    -------
    Integer positions, ``(min(n, n_genes),)``. Ties keep the order of the genes.
    """
    if n < 1:
        raise ValueError(f"`n` is {n}; ask for at least 1 gene.")
    truth, control = check_array(truth, "truth"), check_array(control, "control")
    check_same_genes(truth=truth, control=control)
    return _strongest(_welch(truth, control).statistic, n)


@by_gene_name("pred", "truth", "control")
def de_overlap(pred: Matrix, truth: Matrix, control: Matrix, *, n: int = 100) -> float:
    """Share of the truth's top n differentially expressed genes that are among the prediction's top n.

    Genes are ranked by absolute Welch t against the same real control cells; a gene with t = 0 is in no list,
    so that predicting no change scores 0. Higher is better. Sensitive to the number and the spread of the
    predicted cells: read it beside :func:`direction_accuracy`.

    Parameters
    ----------
    pred, truth, control
        log1p CP10k, cells x genes.
    n
        Length of both lists.

    Returns
    -------
    Between 0 and 1; NaN with a warning where no gene differs in truth.
    """
    if n < 1:
        raise ValueError(f"`n` is {n}; ask for at least 1 gene.")
    arrays = _cells(pred, truth, control)
    predicted, true = (_changed(arrays[name], arrays["control"], n) for name in ("pred", "truth"))
    if true.size == 0:
        return undefined("de_overlap", "no gene differs between truth and control")
    return float(np.isin(true, predicted).mean())


@by_gene_name("pred", "truth", "control")
def direction_accuracy(pred: Matrix, truth: Matrix, control: Matrix, *, alpha: float = 0.05) -> float:
    """Share of truly changed genes whose predicted change has the true sign. Higher is better.

    Truly changed: Welch t of truth against control, Benjamini-Hochberg adjusted p < ``alpha`` over all genes
    given. A predicted change of zero (below 1e-5 of the gene's mean, which is rounding) counts one half, so
    that no change scores .500 and not 0.

    Parameters
    ----------
    pred
        log1p CP10k, cells x genes or one mean per gene.
    truth, control
        log1p CP10k, cells x genes, of the same context.
    alpha
        Level of the false discovery rate.

    Returns
    -------
    Between 0 and 1; NaN with a warning where no gene is significant in truth.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"`alpha` is {alpha}; allowed: above 0 and at most 1.")
    truth, control = check_array(truth, "truth"), check_array(control, "control")
    pred_mean = mean_profile(pred, "pred")
    check_same_genes(pred=pred_mean, truth=truth, control=control)
    significant = significant_genes(truth, control, alpha)
    if not significant.any():
        return undefined("direction_accuracy", f"no gene is significant in truth at {alpha:g}")
    return sign_agreement(pred_mean, mean_profile(truth, "truth"), mean_profile(control, "control"), significant)


@by_gene_name("pred", "truth", "control")
def mse_weighted(pred: Matrix, truth: Matrix, control: Matrix) -> float:
    """Squared difference of mean expression, genes weighted by how clearly they change. Lower is better.

    The weight of a gene is the absolute Welch t of truth against control, divided by the sum over genes; an infinite t
    counts as the largest finite one.

    Parameters
    ----------
    pred
        log1p CP10k, cells x genes or one mean per gene.
    truth, control
        log1p CP10k, cells x genes, of the same context.

    Returns
    -------
    NaN with a warning where no gene differs in truth.
    """
    truth, control = check_array(truth, "truth"), check_array(control, "control")
    pred_mean = mean_profile(pred, "pred")
    check_same_genes(pred=pred_mean, truth=truth, control=control)
    t = np.abs(_welch(truth, control).statistic)
    if not t.any():
        return undefined("mse_weighted", "no gene differs between truth and control")
    finite = t[np.isfinite(t)]
    weights = np.minimum(t, finite.max() if finite.any() else 1.0)
    return float(weights @ (pred_mean - mean_profile(truth, "truth")) ** 2 / weights.sum())


@by_gene_name("pred", "truth", "control")
def auprc_de(pred: Matrix, truth: Matrix, control: Matrix, *, alpha: float = 0.05) -> float:
    """Area under the precision-recall curve of finding the truly changed genes. Higher is better.

    Truly changed are the genes that differ in truth at a false discovery rate of ``alpha`` (Welch,
    Benjamini-Hochberg). Genes are ranked by the absolute Welch t of predicted cells against the same control cells, and
    precision is summed over the steps of recall (average precision); genes of equal t are one step.

    Parameters
    ----------
    pred, truth, control
        log1p CP10k, cells x genes.
    alpha
        Level of the false discovery rate.

    Returns
    -------
    Between 0 and 1; no change has the share of the changed genes. NaN with a warning where no gene is significant.
    """
    arrays = _cells(pred, truth, control)
    changed = significant_genes(arrays["truth"], arrays["control"], alpha)
    if not changed.any():
        return undefined("auprc_de", f"no gene is significant in truth at {alpha:g}")
    t = np.abs(_welch(arrays["pred"], arrays["control"]).statistic)
    return float(average_precision_score(changed, stats.rankdata(t, method="dense")))  # which takes no infinite t


class DECounts(NamedTuple):
    """Genes that are called differentially expressed: ``predicted`` and ``real`` number."""

    predicted: int
    real: int


@by_gene_name("pred", "truth", "control")
def de_counts(pred: Matrix, truth: Matrix, control: Matrix, *, alpha: float = 0.05, seed: int = 0) -> DECounts:
    """Count the genes called differentially expressed on predicted and on real cells.

    Welch t against the same control cells, Benjamini-Hochberg adjusted p < ``alpha``. The number of calls depends on
    the number of cells, so the larger of the two populations is first reduced to the size of the smaller one.

    Parameters
    ----------
    pred, truth, control
        log1p CP10k, cells x genes.
    alpha
        Level of the false discovery rate.
    seed
        Seed of the reduction.
    """
    arrays = _cells(pred, truth, control)
    rng, n = np.random.default_rng(seed), min(arrays["pred"].shape[0], arrays["truth"].shape[0])
    counts = []
    for name in ("pred", "truth"):
        x = arrays[name]
        few = x if x.shape[0] == n else x[np.sort(rng.choice(x.shape[0], n, replace=False))]
        counts.append(int(significant_genes(few, arrays["control"], alpha).sum()))
    return DECounts(*counts)


def _cells(pred: Matrix, truth: Matrix, control: Matrix) -> dict[str, np.ndarray]:
    """The three populations by their names, checked, with the same genes."""
    arrays = {"pred": pred, "truth": truth, "control": control}
    arrays = {name: check_array(array, name) for name, array in arrays.items()}
    check_same_genes(**arrays)
    return arrays


def significant_genes(truth: Matrix, control: Matrix, alpha: float) -> np.ndarray:
    """Return the mask of genes that differ in truth from control at a false discovery rate of ``alpha``."""
    return benjamini_hochberg(_welch(truth, control).pvalue) < alpha


def sign_agreement(pred_mean: np.ndarray, truth_mean: np.ndarray, control_mean: np.ndarray, genes: np.ndarray) -> float:
    """Return the share of ``genes`` changed in the true direction; a predicted zero counts one half."""
    pred_mean, truth_mean, control_mean = pred_mean[genes], truth_mean[genes], control_mean[genes]
    predicted, true = pred_mean - control_mean, truth_mean - control_mean
    hit = (np.sign(predicted) == np.sign(true)).astype(np.float64)
    return float(np.where(is_rounding(predicted, pred_mean, control_mean), 0.5, hit).mean())


def _welch(a: Matrix, b: Matrix) -> WelchResult:
    (mean_a, var_a), (mean_b, var_b) = moments(a), moments(b)
    difference = mean_a - mean_b
    # A difference in the last digits is rounding of the two means, not a difference.
    difference[np.abs(difference) <= 1e-12 * np.maximum(np.abs(mean_a), np.abs(mean_b))] = 0.0
    part_a, part_b = var_a / a.shape[0], var_b / b.shape[0]
    error = part_a + part_b
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(difference == 0, 0.0, difference / np.sqrt(error))
        # Degrees of freedom after Welch and Satterthwaite.
        freedom = error**2 / (part_a**2 / (a.shape[0] - 1) + part_b**2 / (b.shape[0] - 1))
    p = np.where(difference == 0, 1.0, 0.0)
    testable = (error > 0) & (difference != 0)
    p[testable] = 2 * stats.t.sf(np.abs(t[testable]), freedom[testable])
    return WelchResult(t, p)


def _strongest(t: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(-np.abs(t), kind="stable")[:n]


def _changed(x: Matrix, control: Matrix, n: int) -> np.ndarray:
    """Positions of at most ``n`` genes with the largest |t| against control, none of them with t = 0."""
    t = _welch(x, control).statistic
    top = _strongest(t, n)
    return top[t[top] != 0]
