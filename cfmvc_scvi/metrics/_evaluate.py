"""One table: predictions beside the baselines and the ceiling, raw and scaled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd

from cfmvc_scvi.metrics._arrays import Matrix, cells, check_array, check_genes, check_same_genes
from cfmvc_scvi.metrics._baselines import Training, check_training, mean_perturbed, mean_shift, no_change
from cfmvc_scvi.metrics._ceiling import split_half
from cfmvc_scvi.metrics._centroid import mse_mean, pearson_delta, pearson_delta_centroid, r2_mean
from cfmvc_scvi.metrics._de import de_overlap, sign_agreement, significant_genes, top_de_genes
from cfmvc_scvi.metrics._population import energy_distance, relative_mmd, variance_ratio
from cfmvc_scvi.metrics._projection import fit_pcs

NO_CHANGE, MEAN_PERTURBED, MEAN_SHIFT, CEILING = (
    "no change",
    "mean perturbed",
    "mean shift",
    "split-half ceiling",
)
METRICS = (
    "pearson_delta", "pearson_delta_top", "pearson_delta_centroid",
    "mse_mean", "mse_mean_top", "r2_mean",
    "energy_distance", "energy_distance_top", "energy_distance_pcs", "relative_mmd",
    "de_overlap", "direction_accuracy", "variance_ratio_top",
)  # fmt: skip
_NEED_CELLS = {
    "energy_distance",
    "energy_distance_top",
    "energy_distance_pcs",
    "relative_mmd",
    "de_overlap",
    "variance_ratio_top",
}
_NEED_TRAINING = {"pearson_delta_centroid", "relative_mmd"}
_NEED_PCS = {"energy_distance_pcs", "relative_mmd"}
_LARGEST_LOG1P_CP10K = np.log1p(1e4)


def evaluate(
    pred: Matrix | Mapping[str, Matrix],
    truth: Matrix,
    control: Matrix,
    *,
    training: Training | None = None,
    gene_names: Sequence[str] | None = None,
    pcs: int | Any | None = 50,
    top_n: int = 100,
    de_genes: np.ndarray | Sequence[int] | Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    min_cells: int = 10,
    max_cells: int | None = 2000,
    n_splits: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Score predictions of one condition beside the baselines and the split-half ceiling.

    All matrices are log1p of counts per 10,000 (:func:`log1p_cp10k`), of the same genes. ``truth`` is only
    scored against; baselines and components are made without it.

    Parameters
    ----------
    pred
        Predicted cells x genes, or one mean per gene (then metrics of populations are NaN); or a dict of
        several, by name.
    truth
        Real perturbed cells of the context, cells x genes.
    control
        Real control cells of the same context, cells x genes.
    training
        Mapping of every other context to ``(control, perturbed)`` cells of the same perturbation. With it
        come the rows ``"mean perturbed"`` and ``"mean shift"`` and the columns that compare with training
        data.
    gene_names
        Names of the genes; then ``de_genes`` may be names, and ``attrs["de_genes"]`` lists names.
    pcs
        A number: principal components fitted here on ``control`` and ``training``; an object with
        ``transform`` (such as a fitted :class:`sklearn.decomposition.PCA`): used as it is, fit it on training
        cells only; ``None``: no columns on components. Without ``training`` a number is not used.
    top_n
        Size of the set of top differentially expressed genes, by ``|t|`` of truth against control.
    de_genes
        Use these (positions or names) instead.
    metrics
        Which columns to compute, of those below; ``None``: all that the inputs allow.
    min_cells
        Training contexts with fewer cells in either condition do not enter the baselines.
    max_cells
        Populations are reduced to this many cells, drawn with ``seed``, where pairs of cells are compared
        (energy distance and MMD); ``None``: never.
    n_splits
        The ceiling is the mean over this many random splits of the truth.
    seed
        Seed of the splits and of the reduction.

    Returns
    -------
    DataFrame with one row for each prediction, baseline and the ceiling (where the truth has at least 4
    cells), and two groups of columns: ``table["raw"]`` and ``table["scaled"]``. Metrics (``_top``: on the top
    DE genes, ``_pcs``: on components): ``pearson_delta``, ``pearson_delta_top``, ``pearson_delta_centroid``
    (reference: mean perturbed of ``training``), ``direction_accuracy``, ``de_overlap``, ``r2_mean`` (higher
    is better); ``mse_mean``, ``mse_mean_top``, ``energy_distance``, ``energy_distance_top``,
    ``energy_distance_pcs``, ``relative_mmd`` (lower is better); ``variance_ratio_top`` (1 is right).

    ``scaled = (value - baseline) / (ceiling - baseline)``: 0 is as good as the baseline (mean shift; no
    change where ``training`` is not given), 1 as good as the ceiling; never clipped. The variance ratio
    enters as ``|log ratio|``. NaN where the ceiling is not better than the baseline, so that no room is left
    to measure. ``attrs`` names the baseline, the genes and the settings.

    Raises
    ------
    ValueError
        For different genes, non-finite values, fewer than 2 cells, unknown metrics, or names taken by a
        baseline.

    Warns
    -----
    UserWarning
        Where truth or control cannot be log1p CP10k (negative, above log1p(10,000), or whole numbers), or a
        prediction is far above.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> def draw(n, shift):
    ...     return np.log1p(rng.poisson(2.0 + shift * np.arange(20), (n, 20)))
    >>> training = {"B": (draw(40, 0), draw(40, 0.2)), "NK": (draw(40, 0), draw(40, 0.3))}
    >>> table = evaluate(draw(50, 0.24), draw(50, 0.25), draw(50, 0), training=training, top_n=5)
    >>> list(table.index)
    ['prediction', 'no change', 'mean perturbed', 'mean shift', 'split-half ceiling']
    >>> float(abs(table["scaled"].loc["mean shift", "mse_mean"]))
    0.0
    >>> float(table["raw"].loc["no change", "pearson_delta"])
    0.0
    """
    truth, control = cells(truth, "truth"), cells(control, "control")
    check_same_genes(truth=truth, control=control)
    for name, array in (("truth", truth), ("control", control)):
        _warn_scale(array, name)
    named = dict(pred) if isinstance(pred, Mapping) else {"prediction": pred}
    predictions = _predictions(named, truth)
    task = _Task(truth, control, max_cells=max_cells, seed=seed, top_n=top_n)
    rows = dict(predictions)
    rows[NO_CHANGE] = no_change(control)
    if training is not None:
        training = check_training(training)
        first = next(iter(training.values()))[0]
        check_same_genes(truth=truth, training=first)
        rows[MEAN_PERTURBED] = mean_perturbed(training, control=control, min_cells=min_cells)
        rows[MEAN_SHIFT] = mean_shift(control, training, min_cells=min_cells)
        task.centroid = mean_perturbed(training, min_cells=min_cells)
    names = _gene_names(gene_names, truth.shape[1])
    task.top = _de_genes(de_genes, names, truth, control, top_n)
    task.significant = significant_genes(truth, control, 0.05)
    _set_projection(task, training, pcs, metrics)
    chosen = _metric_names(metrics, task)
    raw = pd.DataFrame({name: task.score(x, truth, chosen) for name, x in rows.items()}).T
    if truth.shape[0] >= 4:
        raw.loc[CEILING] = _ceiling(task, chosen, n_splits, seed)
    else:
        warnings.warn(f"No ceiling: a split needs 4 true cells, given {truth.shape[0]}.", UserWarning, stacklevel=2)
    baseline = MEAN_SHIFT if training is not None else NO_CHANGE
    table = pd.concat({"raw": raw, "scaled": _scaled(raw, baseline)}, axis=1, names=["kind", "metric"])
    table.index.name = "prediction"
    top = task.top.tolist() if names is None else names[task.top].tolist()
    table.attrs.update(baseline=baseline, de_genes=top, units="log1p CP10k", seed=seed, n_splits=n_splits)
    return table


@dataclass
class _Task:
    """What every row is scored against; ``score`` is given the truth, so that half of it can stand in."""

    truth: np.ndarray
    control: np.ndarray
    max_cells: int | None
    seed: int
    top_n: int
    centroid: np.ndarray | None = None
    projection: Any = None
    populations: dict[str, np.ndarray] = field(default_factory=dict)
    top: np.ndarray = field(default_factory=lambda: np.array([], dtype=int))
    significant: np.ndarray = field(default_factory=lambda: np.array([], dtype=bool))

    def score(self, pred: np.ndarray, truth: np.ndarray, chosen: Sequence[str]) -> dict[str, float]:
        functions = {
            "pearson_delta": lambda: pearson_delta(pred, truth, self.control),
            "pearson_delta_top": lambda: pearson_delta(pred, truth, self.control, genes=self.top),
            "pearson_delta_centroid": lambda: pearson_delta_centroid(pred, truth, cast(np.ndarray, self.centroid)),
            "mse_mean": lambda: mse_mean(pred, truth),
            "mse_mean_top": lambda: mse_mean(pred, truth, genes=self.top),
            "r2_mean": lambda: r2_mean(pred, truth),
            "energy_distance": lambda: energy_distance(self._few(pred), self._few(truth)),
            "energy_distance_top": lambda: energy_distance(self._few(pred), self._few(truth), genes=self.top),
            "energy_distance_pcs": lambda: energy_distance(self._project(pred), self._project(truth)),
            "relative_mmd": lambda: relative_mmd(self._project(pred), self._project(truth), self.populations),
            "de_overlap": lambda: de_overlap(pred, truth, self.control, n=self.top_n),
            "direction_accuracy": lambda: self._direction(pred, truth),
            "variance_ratio_top": lambda: variance_ratio(pred, truth, genes=self.top),
        }
        population = pred.ndim == 2
        return {m: functions[m]() if population or m not in _NEED_CELLS else float("nan") for m in chosen}

    def set_populations(self, training: Training) -> None:
        populations = {"control": self.control}
        for context, pair in training.items():
            populations |= {f"{context} {i}": x for i, x in enumerate(pair)}
        self.populations = {name: self._project(x) for name, x in populations.items() if x.shape[0]}

    def _few(self, x: Matrix) -> Matrix:
        if self.max_cells is None or x.shape[0] <= self.max_cells:
            return x
        return x[np.random.default_rng(self.seed).choice(x.shape[0], self.max_cells, replace=False)]

    def _project(self, x: Matrix) -> np.ndarray:
        return np.asarray(self.projection.transform(self._few(x)), dtype=np.float64)

    def _direction(self, pred: np.ndarray, truth: np.ndarray) -> float:
        if not self.significant.any():
            return float("nan")
        pred_mean = pred if pred.ndim == 1 else pred.mean(axis=0)
        return sign_agreement(pred_mean, truth.mean(axis=0), self.control.mean(axis=0), self.significant)


def _predictions(named: Mapping[str, Matrix], truth: np.ndarray) -> dict[str, np.ndarray]:
    reserved = {NO_CHANGE, MEAN_PERTURBED, MEAN_SHIFT, CEILING} & set(named)
    if reserved:
        raise ValueError(f"`pred` uses names of baselines: {sorted(reserved)}. Rename these predictions.")
    checked = {}
    for name, x in named.items():
        label = f"pred[{name!r}]"
        x = check_array(x, label, allow_mean=True)
        check_same_genes(**{label: x, "truth": truth})
        checked[name] = x if x.ndim == 1 else cells(x, label)
        _warn_scale(checked[name], label, predicted=True)
    return checked


def _warn_scale(x: np.ndarray, name: str, *, predicted: bool = False) -> None:
    low, high = float(x.min()), float(x.max())
    if predicted:  # a prediction may leave the range, as control plus a shift does
        strange = high > 1.5 * _LARGEST_LOG1P_CP10K
    else:
        strange = high > _LARGEST_LOG1P_CP10K + 1e-3 or low < 0 or (high > 1 and np.array_equal(x, np.rint(x)))
    if strange:
        warnings.warn(
            f"`{name}` does not look like log1p of counts per 10,000: it reaches from {low:g} to {high:g} "
            f"(possible: 0 to {_LARGEST_LOG1P_CP10K:.2f}, not whole numbers). Pass `log1p_cp10k(counts)`, or "
            "read the figures on your own scale.",
            UserWarning,
            stacklevel=3,
        )


def _gene_names(gene_names: Sequence[str] | None, n_genes: int) -> pd.Index | None:
    if gene_names is None:
        return None
    names = pd.Index(gene_names)
    if len(names) != n_genes or not names.is_unique:
        raise ValueError(f"`gene_names` holds {len(names)} names ({names.nunique()} different) for {n_genes} genes.")
    return names


def _de_genes(de_genes: Any, names: pd.Index | None, truth: np.ndarray, control: np.ndarray, top_n: int) -> np.ndarray:
    if de_genes is None:
        return top_de_genes(truth, control, top_n)
    selection = np.asarray(de_genes)
    if selection.dtype.kind in "OU":
        if names is None:
            raise ValueError("`de_genes` holds names; pass `gene_names` as well, or positions.")
        unknown = [gene for gene in selection if gene not in names]
        if unknown:
            raise ValueError(f"`de_genes` names {len(unknown)} gene(s) not in `gene_names`: {unknown[:5]}.")
        selection = names.get_indexer(pd.Index(selection))
    return np.asarray(check_genes(selection, truth.shape[1]))


def _set_projection(task: _Task, training: Training | None, pcs: Any, metrics: Sequence[str] | None) -> None:
    unused = metrics is not None and not _NEED_PCS & set(metrics)
    if pcs is None or unused or (training is None and isinstance(pcs, (int, np.integer))):
        return
    if isinstance(pcs, (int, np.integer)):
        assert training is not None  # else there was nothing to do
        task.projection = fit_pcs([task.control, *(x for pair in training.values() for x in pair)], int(pcs))
    elif hasattr(pcs, "transform"):
        task.projection = pcs
    else:
        raise TypeError(f"`pcs` is {type(pcs).__name__}; allowed: a number, a fitted object with `transform`, or None.")
    if training is not None:
        task.set_populations(training)


def _metric_names(metrics: Sequence[str] | None, task: _Task) -> list[str]:
    missing = (_NEED_TRAINING if task.centroid is None else set()) | (_NEED_PCS if task.projection is None else set())
    if metrics is None:
        return [metric for metric in METRICS if metric not in missing]
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise ValueError(f"`metrics` names {unknown}; allowed: {', '.join(METRICS)}.")
    impossible = [metric for metric in metrics if metric in missing]
    if impossible:
        raise ValueError(f"{impossible} need `training` (and, on components, `pcs`); pass them or leave these out.")
    return list(metrics)


def _ceiling(task: _Task, chosen: Sequence[str], n_splits: int, seed: int) -> pd.Series:
    if n_splits < 1:
        raise ValueError(f"`n_splits` is {n_splits}; the ceiling needs at least 1 split.")
    splits = (split_half(task.truth, seed + i) for i in range(n_splits))
    return pd.DataFrame([task.score(first, second, chosen) for first, second in splits]).mean()


def _scaled(raw: pd.DataFrame, baseline: str) -> pd.DataFrame:
    values = raw.copy()
    if "variance_ratio_top" in values:
        with np.errstate(divide="ignore"):
            values["variance_ratio_top"] = np.abs(np.log(values["variance_ratio_top"]))
    if CEILING not in values.index:
        return values * np.nan
    lower = ["mse_mean", "mse_mean_top", "energy_distance", "energy_distance_top", "energy_distance_pcs",
             "relative_mmd", "variance_ratio_top"]  # fmt: skip
    sign = pd.Series({metric: -1.0 if metric in lower else 1.0 for metric in values})
    room = cast(pd.Series, values.loc[CEILING] - values.loc[baseline])
    return (values - values.loc[baseline]) / room.where(sign * room > 0)
