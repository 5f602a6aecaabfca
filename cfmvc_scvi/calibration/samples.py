"""Effects over independent samples (donors, animals, plates): paired within samples, or between groups of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfmvc_scvi.calibration.sampling_variance import squeeze

#: Values of some samples and their variances from cells, both (n_samples, n_genes).
Values = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Between:
    r"""Variance between samples of every gene.

    Attributes
    ----------
    variance
        :math:`\tau^2`, shape (n_genes,).
    ratio, precision
        :math:`R` and :math:`B` of :func:`between_samples`, shape (n_genes,).
    freedom
        Degrees of freedom of ``ratio``.
    """

    variance: np.ndarray
    ratio: np.ndarray
    precision: np.ndarray
    freedom: float

    @classmethod
    def none(cls, n_genes: int) -> Between:
        """Samples that do not differ."""
        return cls(np.zeros(n_genes), np.ones(n_genes), np.ones(n_genes), np.inf)

    @classmethod
    def mean(cls, parts: Sequence[Between]) -> Between:
        """Mean over cell types, for one with too few samples; as sure as the least sure of them."""
        variance, ratio, precision = (
            np.mean([getattr(part, name) for part in parts], axis=0) for name in ("variance", "ratio", "precision")
        )
        return cls(variance, ratio, precision, min(part.freedom for part in parts))


@dataclass(frozen=True)
class SampledPopulation:
    """Samples of one perturbed population.

    Attributes
    ----------
    paired
        Differences of perturbed and control means in the samples that have both, and their variances from cells.
    single
        Means in the samples without controls, and their variances from cells.
    """

    paired: Values
    single: Values


@dataclass(frozen=True)
class SampledEffect:
    """Effect over samples, its variance, and the degrees of freedom of that; all (n_genes,)."""

    effect: np.ndarray
    variance: np.ndarray
    freedom: np.ndarray


def between_samples(groups: Sequence[Values]) -> Between | None:
    r"""Variance between samples by moments, moderated over genes; ``None`` where no group has two samples.

    In a group of :math:`S` samples with variances :math:`w_s` from cells, the squares about the mean are expected to be
    :math:`\sum_s (y_s - \bar y)^2 = (S - 1)(\tau^2 + \bar w)`. Summed over groups in units of :math:`\bar w`,

    .. math:: R = \frac{1}{d} \sum_k \frac{\sum_s (y_{ks} - \bar y_k)^2}{\bar w_k}, \qquad E[R] = 1 + \tau^2 B, \qquad
              B = \frac{1}{d} \sum_k \frac{S_k - 1}{\bar w_k}, \qquad d = \sum_k (S_k - 1)

    R is moderated over genes as a variance with d degrees of freedom
    (:func:`~cfmvc_scvi.calibration.sampling_variance.squeeze`; Smyth, 2004), with d reduced to :math:`(\sum_k n_k)^2 /
    \sum_k n_k^2 / (S_k - 1)`, :math:`n_k = (S_k - 1) / \bar w_k`, where few groups carry the sum. Then
    :math:`\tau^2 = \max(\tilde R - 1, 0) / B`.

    Parameters
    ----------
    groups
        Values that differ by chance alone within each group.
    """
    groups = [group for group in groups if len(group[0]) > 1]
    if not groups:
        return None
    freedom = np.array([len(values) - 1 for values, _ in groups], dtype=float)
    typical = np.stack([within.mean(axis=0) for _, within in groups])
    squares = np.stack([((values - values.mean(axis=0)) ** 2).sum(axis=0) for values, _ in groups])
    carried = freedom[:, None] / typical
    effective = float(np.mean(carried.sum(axis=0) ** 2 / (carried**2 / freedom[:, None]).sum(axis=0)))
    ratio, total = squeeze((squares / typical).sum(axis=0) / freedom.sum(), effective)
    precision = carried.sum(axis=0) / freedom.sum()
    return Between(np.maximum(ratio - 1.0, 0.0) / precision, ratio, precision, total)


def sampled_effect(population: SampledPopulation, controls: Values, paired: Between, single: Between) -> SampledEffect:
    r"""Mean effect of a population over its samples, each weighted by the inverse of its variance.

    With variances :math:`\tau^2 + w_s`, the mean has the variance :math:`V = 1 / \sum_s (\tau^2 + w_s)^{-1}`
    (DerSimonian and Laird, 1986). Perturbed samples without controls are compared with the mean of all control
    samples, whose variance adds. Where a population has samples of both kinds, the two effects are weighted in the
    same way. Degrees of freedom are Satterthwaite's, :math:`2 V^2 / \operatorname{var} V` with
    :math:`\operatorname{var} V = (dV / d\tau^2)^2 \, 2 \tilde R^2 / (B^2 d)`.

    Parameters
    ----------
    population
        The samples.
    controls
        Means in the control samples of the cell type and their variances from cells.
    paired, single
        Variance between samples of the differences and of the means.

    References
    ----------
    DerSimonian R, Laird N (1986). Meta-analysis in clinical trials. Controlled Clinical Trials 7(3), 177-188.
    Satterthwaite FE (1946). An approximate distribution of estimates of variance components. Biometrics Bulletin 2(6).
    """
    found = []
    if len(population.paired[0]):
        mean, variance, slope = _weighted(*population.paired, paired.variance)
        found.append((mean, variance, _freedom(variance, slope, paired)))
    if len(population.single[0]):
        mean1, variance1, slope1 = _weighted(*population.single, single.variance)
        mean0, variance0, slope0 = _weighted(*controls, single.variance)
        variance = variance1 + variance0
        found.append((mean1 - mean0, variance, _freedom(variance, slope1 + slope0, single)))
    if len(found) == 1:
        return SampledEffect(*found[0])
    effects, variances, freedom = (np.stack(column) for column in zip(*found, strict=True))
    total = 1.0 / (1.0 / variances).sum(axis=0)
    shares = total / variances
    with np.errstate(divide="ignore"):
        freedom = 1.0 / (shares**2 / freedom).sum(axis=0)
    return SampledEffect((shares * effects).sum(axis=0), total, freedom)


def _weighted(values: np.ndarray, within: np.ndarray, between: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weighted mean, its variance, and the derivative of that by the variance between samples."""
    weights = 1.0 / (between + within)
    variance = 1.0 / weights.sum(axis=0)
    shares = weights * variance
    return (shares * values).sum(axis=0), variance, (shares**2).sum(axis=0)


def _freedom(variance: np.ndarray, slope: np.ndarray, between: Between) -> np.ndarray:
    if np.isinf(between.freedom):
        return np.full_like(variance, np.inf)
    return between.freedom * (variance * between.precision / (slope * np.maximum(between.ratio, 1.0))) ** 2
