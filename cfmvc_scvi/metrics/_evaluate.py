"""One table: predictions beside the baselines and the ceiling, raw and scaled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd

from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._messages import close_matches, missing_genes, shortened
from cfmvc_scvi.metrics._arrays import Matrix, cells, check_array, check_genes, check_same_genes
from cfmvc_scvi.metrics._baselines import Training, check_training, mean_perturbed, mean_shift, no_change
from cfmvc_scvi.metrics._ceiling import split_half
from cfmvc_scvi.metrics._de import significant_genes, top_de_genes
from cfmvc_scvi.metrics._names import by_gene_name, gene_names_of
from cfmvc_scvi.metrics._table import METRICS
from cfmvc_scvi.metrics._task import ScoringTask, find_projection

NO_CHANGE, MEAN_PERTURBED, MEAN_SHIFT, CEILING = (
    "no change",
    "mean perturbed",
    "mean shift",
    "split-half ceiling",
)
_LARGEST_LOG1P_CP10K = np.log1p(CP10K)


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

    All matrices are log1p of counts per 10,000 (:func:`log1p_cp10k`), of the same genes: DataFrames are aligned by the
    names of their columns, arrays are taken to be in one order. ``truth`` is only
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
        Which columns to compute, by their names in :data:`METRICS`; ``None``: all that the inputs allow.
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
    cells), and two groups of columns: ``table["raw"]`` and ``table["scaled"]``. Each group has one column for each
    metric, named as in :data:`METRICS`, which says what it measures, which direction is better and what it needs.
    Metrics whose name ends with ``_top`` are taken on the top DE genes, with ``_pcs`` on components.

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
    tables = [*pred.values()] if isinstance(pred, Mapping) else [pred]
    named = gene_names_of(*tables, truth, control)
    if named is not None and gene_names is not None and set(named) != set(gene_names):
        raise ValueError("`gene_names` are others than the columns of the DataFrames: leave `gene_names` out.")
    gene_names = gene_names if named is None else named.tolist()
    return _evaluate(
        pred,
        truth,
        control,
        training=training,
        gene_names=gene_names,
        pcs=pcs,
        top_n=top_n,
        de_genes=de_genes,
        metrics=metrics,
        min_cells=min_cells,
        max_cells=max_cells,
        n_splits=n_splits,
        seed=seed,
    )


@by_gene_name("pred", "truth", "control", "training")
def _evaluate(
    pred: Matrix | Mapping[str, Matrix],
    truth: Matrix,
    control: Matrix,
    *,
    training: Training | None,
    gene_names: Sequence[str] | None,
    pcs: int | Any | None,
    top_n: int,
    de_genes: np.ndarray | Sequence[int] | Sequence[str] | None,
    metrics: Sequence[str] | None,
    min_cells: int,
    max_cells: int | None,
    n_splits: int,
    seed: int,
) -> pd.DataFrame:
    """:func:`evaluate` with the genes of all tables in one order."""
    truth, control = cells(truth, "truth"), cells(control, "control")
    check_same_genes(truth=truth, control=control)
    for name, array in (("truth", truth), ("control", control)):
        _warn_scale(array, name)
    rows = _predictions(dict(pred) if isinstance(pred, Mapping) else {"prediction": pred}, truth)
    rows[NO_CHANGE] = no_change(control)
    centroid = None
    if training is not None:
        training = check_training(training)
        first = next(iter(training.values()))[0]
        check_same_genes(truth=truth, training=first)
        rows[MEAN_PERTURBED] = mean_perturbed(training, control=control, min_cells=min_cells)
        rows[MEAN_SHIFT] = mean_shift(control, training, min_cells=min_cells)
        centroid = mean_perturbed(training, min_cells=min_cells)
    names = _gene_names(gene_names, truth.shape[1])
    task = ScoringTask(
        control=control,
        top=_de_genes(de_genes, names, truth, control, top_n),
        top_n=top_n,
        significant=significant_genes(truth, control, 0.05),
        centroid=centroid,
        projection=find_projection(pcs, control, training) if _need_components(metrics) else None,
        max_cells=max_cells,
        seed=seed,
    )
    if task.projection is not None and training is not None:
        task = replace(task, populations=task.project_training(training))
    chosen = _metric_names(metrics, task.provides())
    raw = pd.DataFrame({name: _score(x, truth, task, chosen) for name, x in rows.items()}).T
    if truth.shape[0] >= 4:
        raw.loc[CEILING] = _ceiling(truth, task, chosen, n_splits, seed)
    else:
        warnings.warn(f"No ceiling: a split needs 4 true cells, given {truth.shape[0]}.", UserWarning, stacklevel=4)
    baseline = MEAN_SHIFT if training is not None else NO_CHANGE
    table = pd.concat({"raw": raw, "scaled": _scaled(raw, baseline)}, axis=1, names=["kind", "metric"])
    table.index.name = "prediction"
    top = task.top.tolist() if names is None else names[task.top].tolist()
    table.attrs.update(baseline=baseline, de_genes=top, units="log1p CP10k", seed=seed, n_splits=n_splits)
    return table


def _score(pred: np.ndarray, truth: np.ndarray, task: ScoringTask, chosen: Sequence[str]) -> dict[str, float]:
    """Scores of one prediction; NaN where a metric needs cells and the prediction is a mean."""
    is_mean = pred.ndim == 1
    return {
        name: float("nan") if is_mean and "cells" in METRICS[name].needs else METRICS[name].function(pred, truth, task)
        for name in chosen
    }


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
            stacklevel=5,
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
            wanted = f"the {len(selection)} genes of `de_genes`"
            raise ValueError(missing_genes(unknown, names, wanted=wanted, where="`gene_names`"))
        selection = names.get_indexer(pd.Index(selection))
    return np.asarray(check_genes(selection, truth.shape[1]))


def _need_components(metrics: Sequence[str] | None) -> bool:
    """Whether any of the metrics that are asked for is taken on components."""
    return metrics is None or any("pcs" in METRICS[name].needs for name in metrics if name in METRICS)


def _metric_names(metrics: Sequence[str] | None, provided: set[str]) -> list[str]:
    """Columns of the table: the metrics asked for, or all for which there is what they need."""
    lacking = {name: sorted(metric.needs - provided - {"cells"}) for name, metric in METRICS.items()}
    if metrics is None:
        return [name for name, needs in lacking.items() if not needs]
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(
            f"`metrics` names {shortened(unknown)}; allowed: {', '.join(METRICS)}.{close_matches(unknown, METRICS)}"
        )
    impossible = {name: needs for name, needs in lacking.items() if name in metrics and needs}
    if impossible:
        given = [f"{name!r} needs {' and '.join(f'`{n}`' for n in needs)}" for name, needs in impossible.items()]
        raise ValueError(
            f"{'; '.join(given)}. Pass what is missing, or leave the metric out. Where `pcs` is a number, components "
            "are fitted on `training`, which must then be given too."
        )
    return list(metrics)


def _ceiling(truth: np.ndarray, task: ScoringTask, chosen: Sequence[str], n_splits: int, seed: int) -> pd.Series:
    """Mean score of one half of the true cells as the prediction of the other half, over random splits."""
    if n_splits < 1:
        raise ValueError(f"`n_splits` is {n_splits}; the ceiling needs at least 1 split.")
    splits = (split_half(truth, seed + i) for i in range(n_splits))
    return pd.DataFrame([_score(first, second, task, chosen) for first, second in splits]).mean()


def _scaled(raw: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """``(value - baseline) / (ceiling - baseline)``; NaN where the ceiling is not better than the baseline."""
    values = raw.apply(lambda column: METRICS[str(column.name)].comparable(column))
    if CEILING not in values.index:
        return values * np.nan
    room = cast(pd.Series, values.loc[CEILING] - values.loc[baseline])
    sign = pd.Series({name: METRICS[str(name)].sign for name in values})
    return (values - values.loc[baseline]) / room.where(cast(pd.Series, sign * room > 0))
