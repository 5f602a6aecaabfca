"""Metrics of whole populations of cells: distances of distributions, and variance and zeros per gene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

from cfmvc_scvi.metrics._arrays import (
    GeneSelection,
    Matrix,
    cells,
    check_array,
    check_genes,
    check_same_genes,
    column_blocks,
    moments,
    undefined,
)
from cfmvc_scvi.metrics._names import by_gene_name

_BLOCK_VALUES = 4_000_000  # distances held at once: 32 MB
_WIDE = 256  # above this many genes distances go through a matrix product
_MEDIAN_CELLS = 2_000


@dataclass(frozen=True)
class Agreement:
    """How a per-gene quantity of predicted cells follows that of true cells, over genes.

    Attributes
    ----------
    correlation
        Pearson correlation.
    slope
        Least-squares slope of predicted on true; 1 where the scale is right.
    n_genes
        Genes that entered.
    """

    correlation: float
    slope: float
    n_genes: int


@by_gene_name("pred", "truth")
def energy_distance(pred: Matrix, truth: Matrix, *, genes: GeneSelection = None, biased: bool = False) -> float:
    """Energy distance of two populations, with Euclidean distance that is **not** squared.

    ``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, zero exactly where the distributions are equal. With squared
    distances the same expression is only twice the squared distance of the means (what some packages call
    energy distance); the two are not comparable. Lower is better.

    Parameters
    ----------
    pred, truth
        Cells x genes (log1p CP10k) or cells x components, dense or sparse; their numbers of cells may differ.
    genes
        Positions or mask of the columns to use.
    biased
        ``False``: U-statistic, which leaves out pairs of a cell with itself; it is unbiased and may fall slightly
        below zero. ``True``: V-statistic, which takes these pairs in; it is never negative, and too large for
        small samples.

    Returns
    -------
    The distance, in units of the input. Memory is bounded: distances are formed in blocks of 32 MB.

    Raises
    ------
    ValueError
        For fewer than 2 cells, non-finite values, or different genes.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> energy_distance(x, x, biased=True)
    0.0
    >>> round(energy_distance(x, x + 10), 4)
    17.3333
    """
    x, y = _pair(pred, truth, genes)
    return (
        2 * _mean_between(x, y, _euclidean) - _mean_within(x, _euclidean, biased) - _mean_within(y, _euclidean, biased)
    )


@by_gene_name("pred", "truth")
def mmd_rbf(
    pred: Matrix,
    truth: Matrix,
    *,
    gamma: float | Literal["median", "dim"] = "median",
    genes: GeneSelection = None,
    biased: bool = False,
) -> float:
    """Squared maximum mean discrepancy with the kernel ``k(x, y) = exp(-gamma |x - y|^2)``. Lower is better.

    Parameters
    ----------
    pred, truth
        Cells x genes (log1p CP10k) or cells x components.
    gamma
        A positive number; ``"median"``: ``1 / (2 m^2)`` with m the median Euclidean distance between distinct
        cells of both populations together (of 2,000 of them, drawn with a fixed seed, where there are more);
        ``"dim"``: one over the number of columns. With ``"median"`` the kernel depends on the prediction: fix
        a number to compare several.
    genes
        Positions or mask of the columns to use.
    biased
        ``False``: U-statistic without self pairs, mean zero where the distributions are equal, may be
        negative. ``True``: V-statistic, never negative.

    Returns
    -------
    The squared MMD, between about 0 and 2.

    References
    ----------
    Gretton et al., A Kernel Two-Sample Test, JMLR 2012.
    """
    x, y = _pair(pred, truth, genes)
    return _mmd_squared(x, y, _gamma(gamma, x, y), biased)


@by_gene_name("pred", "truth", "populations")
def relative_mmd(
    pred: Matrix,
    truth: Matrix,
    populations: Mapping[str, Matrix] | Sequence[Matrix],
    *,
    gamma: float | Literal["median", "dim"] = "dim",
    min_cells: int = 10,
) -> float:
    """Squared MMD to the truth, relative to that of the best population already measured (rMMD).

    ``MMD^2(pred, truth) / min_k MMD^2(populations[k], truth)``, biased, so that no denominator is negative.
    Below 1: closer to the truth than every population of the training data. Lower is better.

    Parameters
    ----------
    pred, truth
        Cells x components: meant for principal components fitted on training cells only.
    populations
        Training populations (context x condition, the controls of the held-out context among them).
    gamma
        As in :func:`mmd_rbf`; the default is one over the number of components. ``"median"`` is taken from
        truth and populations, not from the prediction.
    min_cells
        Populations with fewer cells are left out.

    Returns
    -------
    The ratio; NaN with a warning where a training population equals the truth.
    """
    x, y = _pair(pred, truth, None)
    named = populations.items() if isinstance(populations, Mapping) else enumerate(populations)
    kept = {}
    for name, population in named:
        population = check_array(population, f"populations[{name!r}]", min_cells=0)
        check_same_genes(truth=y, **{f"populations[{name!r}]": population})
        if population.shape[0] >= max(min_cells, 2):
            kept[name] = cells(population, f"populations[{name!r}]")
    if not kept:
        raise ValueError(
            f"None of the {len(populations)} training population(s) has {max(min_cells, 2)} cells or more; "
            "pass larger populations or lower `min_cells`."
        )
    width = _gamma(gamma, y, np.concatenate(list(kept.values())))
    nearest = min(_mmd_squared(population, y, width, biased=True) for population in kept.values())
    if nearest <= 1e-12:
        return undefined("relative_mmd", "a training population is the truth itself")
    return _mmd_squared(x, y, width, biased=True) / nearest


@by_gene_name("pred", "truth")
def variance_ratio(pred: Matrix, truth: Matrix, *, genes: GeneSelection = None) -> float:
    """Median over genes of predicted over true variance across cells. 1 is right; below, cells are too alike.

    Parameters
    ----------
    pred, truth
        log1p CP10k, cells x genes.
    genes
        Positions or mask of the genes to use.

    Returns
    -------
    The median over the genes whose true variance is not zero; NaN with a warning where there is none.
    """
    predicted, true = _variances(pred, truth, genes)
    varying = true > 0
    if not varying.any():
        return undefined("variance_ratio", "no gene varies over the true cells")
    return float(np.median(predicted[varying] / true[varying]))


@by_gene_name("pred", "truth")
def zero_fraction_agreement(pred: Matrix, truth: Matrix, *, genes: GeneSelection = None) -> Agreement:
    """Compare the share of cells in which each gene is exactly zero.

    Meant for sampled counts (or their log1p): expected values are never zero.

    Parameters
    ----------
    pred, truth
        Counts or log1p CP10k, cells x genes.
    genes
        Positions or mask of the genes to use.

    Returns
    -------
    Correlation and slope (predicted on true) over genes; NaN with a warning where the share is the same for
    all genes.
    """
    x, y, selection = _matrices(pred, truth, genes)
    return _agreement(_zero_fraction(x)[selection], _zero_fraction(y)[selection], "zero_fraction_agreement")


@by_gene_name("pred", "truth")
def variance_agreement(pred: Matrix, truth: Matrix, *, genes: GeneSelection = None) -> Agreement:
    """Compare the variance of each gene over cells, on the log scale.

    Parameters
    ----------
    pred, truth
        log1p CP10k (or counts), cells x genes.
    genes
        Positions or mask of the genes to use.

    Returns
    -------
    Correlation and slope of log predicted on log true variance, over the genes with positive variance in both
    (``n_genes`` of them).
    """
    predicted, true = _variances(pred, truth, genes)
    both = (predicted > 0) & (true > 0)
    return _agreement(np.log(predicted[both]), np.log(true[both]), "variance_agreement")


def _matrices(pred: Matrix, truth: Matrix, genes: GeneSelection) -> tuple[Matrix, Matrix, np.ndarray | slice]:
    x, y = check_array(pred, "pred"), check_array(truth, "truth")
    return x, y, check_genes(genes, check_same_genes(pred=x, truth=y))


def _pair(pred: Matrix, truth: Matrix, genes: GeneSelection) -> tuple[np.ndarray, np.ndarray]:
    x, y, selection = _matrices(pred, truth, genes)
    return cells(x[:, selection], "pred"), cells(y[:, selection], "truth")


def _variances(pred: Matrix, truth: Matrix, genes: GeneSelection) -> tuple[np.ndarray, np.ndarray]:
    x, y, selection = _matrices(pred, truth, genes)
    return moments(x[:, selection])[1], moments(y[:, selection])[1]


def _zero_fraction(x: Matrix) -> np.ndarray:
    return np.concatenate([(values == 0).mean(axis=0) for _, values in column_blocks(x)])


def _agreement(predicted: np.ndarray, true: np.ndarray, metric: str) -> Agreement:
    if true.size < 2 or np.ptp(true) == 0 or np.ptp(predicted) == 0:
        missing = undefined(
            metric, f"it needs two genes that differ, in truth and prediction (genes left: {true.size})"
        )
        return Agreement(missing, missing, true.size)
    x, y = true - true.mean(), predicted - predicted.mean()
    correlation = x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
    return Agreement(float(correlation), float(x @ y / (x @ x)), true.size)


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, (rows of x, rows of y)."""
    if x.shape[1] <= _WIDE:
        return cdist(x, y, "sqeuclidean")
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x y, around the mean of y: far from the origin the three terms are large numbers
    # whose difference would lose digits.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    squares = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)[None, :]
    return np.maximum(squares - 2 * x @ y.T, 0.0)


def _euclidean(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(_squared(x, y))


def _row_blocks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Rows of a table of distances, in blocks of at most ``_BLOCK_VALUES`` values."""
    step = max(1, _BLOCK_VALUES // max(n_columns, 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


Pairwise = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _mean_between(x: np.ndarray, y: np.ndarray, pairwise: Pairwise) -> float:
    """Mean over pairs of a cell of ``x`` and a cell of ``y``."""
    return sum(float(pairwise(x[rows], y).sum()) for rows in _row_blocks(len(x), len(y))) / (len(x) * len(y))


def _mean_within(x: np.ndarray, pairwise: Pairwise, self_pairs: bool) -> float:
    """Mean over pairs of cells of one population, with or without the pairs of a cell with itself."""
    total, diagonal = 0.0, 0.0
    for rows in _row_blocks(len(x), len(x)):
        block = pairwise(x[rows], x)
        own = block[np.arange(block.shape[0]), np.arange(rows.start, rows.stop)]
        total += float(block.sum())
        diagonal += float(own.sum())
    n = len(x)
    return total / n**2 if self_pairs else (total - diagonal) / (n * (n - 1))


def _mmd_squared(x: np.ndarray, y: np.ndarray, gamma: float, biased: bool) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-gamma * _squared(a, b))

    return _mean_within(x, kernel, biased) + _mean_within(y, kernel, biased) - 2 * _mean_between(x, y, kernel)


def _gamma(gamma: float | str, x: np.ndarray, y: np.ndarray) -> float:
    if gamma == "dim":
        return 1.0 / x.shape[1]
    if gamma == "median":
        return _median_gamma(np.concatenate([x, y]))
    if isinstance(gamma, str) or not np.isfinite(gamma) or gamma <= 0:
        raise ValueError(f"`gamma` is {gamma!r}; allowed: a positive number, 'median' or 'dim'.")
    return float(gamma)


def _median_gamma(pooled: np.ndarray) -> float:
    if len(pooled) > _MEDIAN_CELLS:
        pooled = pooled[np.random.default_rng(0).choice(len(pooled), _MEDIAN_CELLS, replace=False)]
    upper = np.triu_indices(len(pooled), k=1)
    squared = _squared(pooled, pooled)[upper]
    median = float(np.median(np.sqrt(squared)))
    if median == 0:
        raise ValueError("More than half of all pairs of cells coincide: their median distance is 0. Give a number.")
    return 1.0 / (2 * median**2)
