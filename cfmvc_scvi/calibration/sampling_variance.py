"""Variances from few cells or samples: shrunken towards what many say, with the degrees of freedom that gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import digamma, polygamma

#: Degrees of freedom that a variance over cells has, the prior's among them. With 2-4, variances of 0 are believed that
#: come from a few cells that all lack a gene.
PRIOR_FREEDOM = 20.0
#: Genes behind every point of the trend of variances over means.
_GENES_PER_BIN, _MOST_BINS = 10, 20


def shrink_variance(squares: np.ndarray, freedom: float, prior: np.ndarray) -> np.ndarray:
    r"""Variance over cells, shrunken towards a prior variance, (n_genes,).

    .. math:: \tilde s^2 = \frac{d_0 s_0^2 + \sum_i (y_i - \bar y)^2}{d_0 + d}, \qquad d_0 = \max(20 - d, 0)

    (Smyth, 2004, eq. 3.5, with a prior that fills up what cells are too few to say). So one cell has the prior
    variance, and more than 20 have their own.

    Parameters
    ----------
    squares
        Sum of squared deviations from the mean, shape (n_genes,); zeros for one cell.
    freedom
        :math:`d`, cells less the means they were taken from.
    prior
        Prior variance :math:`s_0^2`, shape (n_genes,).

    References
    ----------
    Smyth GK (2004). Linear models and empirical Bayes methods for assessing differential expression in microarray
    experiments. Statistical Applications in Genetics and Molecular Biology 3(1), article 3.
    """
    prior_freedom = max(PRIOR_FREEDOM - freedom, 0.0)
    return (prior_freedom * prior + squares) / (prior_freedom + freedom)


def moved_variance(
    mean: np.ndarray, n_cells: int, mean0: np.ndarray, variance0: np.ndarray, trend: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Prior variance of a perturbed population: that of its controls, and more where the gene is switched on.

    The variance of a gene that is silent in control cells is about zero, and says nothing about that of the same gene
    when it is on. So what the trend of variances over means adds between the control's level and the
    population's comes on top; the level of few cells is drawn towards the control's as their variance is.

    Parameters
    ----------
    mean, mean0
        Mean of the population and of its controls, shape (n_genes,).
    n_cells
        Cells of the population.
    variance0
        Variance over the controls, shape (n_genes,).
    trend
        Variance at a mean, from :func:`variance_trend`.
    """
    level = (n_cells * mean + PRIOR_FREEDOM * mean0) / (n_cells + PRIOR_FREEDOM)
    return variance0 + np.maximum(trend(level) - trend(mean0), 0.0)


def variance_trend(mean: np.ndarray, variance: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Variance over cells as a function of the mean: means over bins of genes, joined by straight lines.

    Parameters
    ----------
    mean, variance
        Of every gene over control cells, shape (n_genes,).
    """
    order = np.argsort(mean, kind="stable")
    bins = np.array_split(order, int(np.clip(len(order) // _GENES_PER_BIN, 1, _MOST_BINS)))
    x, y = (np.array([values[genes].mean() for genes in bins]) for values in (mean, variance))
    return lambda level: np.interp(level, x, y)


def squeeze(variance: np.ndarray, freedom: float) -> tuple[np.ndarray, float]:
    r"""Variances of many genes, each from few degrees of freedom, shrunken towards their common prior.

    With :math:`s_g^2 \mid \sigma_g^2 \sim \sigma_g^2 \chi_d^2 / d` and :math:`1 / \sigma_g^2 \sim \chi_{d_0}^2 / (d_0
    s_0^2)`, the :math:`s_g^2` follow :math:`s_0^2 F_{d, d_0}`, and the posterior is :math:`\tilde s_g^2 = (d_0 s_0^2
    + d s_g^2) / (d_0 + d)` with :math:`d_0 + d` degrees of freedom. :math:`d_0` and :math:`s_0^2` are found from mean
    and variance of :math:`e_g = \log s_g^2 - \psi(d / 2) + \log(d / 2)`:

    .. math:: \psi'(d_0 / 2) = \operatorname{var}(e) - \psi'(d / 2), \qquad
              \log s_0^2 = \bar e + \psi(d_0 / 2) - \log(d_0 / 2)

    (Smyth, 2004, sections 3 and 6.2: ``squeezeVar`` of limma.) Where the variance of e is no larger than chance makes
    it, :math:`d_0` is infinite.

    Parameters
    ----------
    variance
        :math:`s_g^2`, shape (n_genes,), not negative.
    freedom
        :math:`d`, above 0.

    Returns
    -------
    The shrunken variances, and :math:`d_0 + d`.
    """
    positive = variance[variance > 0]
    if not len(positive):
        return variance, np.inf
    logs = np.log(np.maximum(positive, 1e-5 * np.median(positive)))
    e = logs - digamma(freedom / 2) + np.log(freedom / 2)
    excess = e.var(ddof=1) - polygamma(1, freedom / 2) if len(e) > 1 else 0.0
    if excess <= 0:
        return np.full_like(variance, np.exp(e.mean())), np.inf
    prior_freedom = 2.0 * inverse_trigamma(excess)
    prior = np.exp(e.mean() + digamma(prior_freedom / 2) - np.log(prior_freedom / 2))
    total = prior_freedom + freedom
    return (prior_freedom * prior + freedom * variance) / total, float(total)


def inverse_trigamma(value: float) -> float:
    r"""Solution x of :math:`\psi'(x) = v`, by Newton steps on :math:`1 / \psi'` (Smyth, 2004, appendix)."""
    if value > 1e7:
        return float(1.0 / np.sqrt(value))
    if value < 1e-6:
        return float(1.0 / value)
    x = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = polygamma(1, x)
        step = trigamma * (1.0 - trigamma / value) / polygamma(2, x)
        x += step
        if -step / x < 1e-8:
            break
    return float(x)
