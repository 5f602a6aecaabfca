"""Metrics over the conditions of a screen: is each condition told from the others, and how often is a method worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from cfmvc_scvi.metrics._arrays import GeneSelection, Matrix, check_genes, check_same_genes, mean_profile
from cfmvc_scvi.metrics._names import by_gene_name


@by_gene_name("pred", "truth")
def perturbation_discrimination(
    pred: Mapping[str, Matrix],
    truth: Mapping[str, Matrix],
    *,
    distance: Literal["l1", "cosine"] = "l1",
    genes: GeneSelection = None,
) -> pd.Series:
    """Perturbation discrimination score: how near a predicted change is to the true one, among those of a screen.

    All true changes are ordered by their distance from the predicted one. The score is ``1 - k / (n - 1)``, with ``n``
    true changes of which ``k`` are nearer than the right one (equal distances count one half): 1 where the right one is
    nearest. Higher is better. One change predicted for all conditions has .5 on average.

    Parameters
    ----------
    pred
        Mapping of condition to its predicted mean change from control, ``(genes,)``, log1p CP10k.
    truth
        The same for real cells, of at least two conditions: all of the screen, not the predicted ones alone.
    distance
        ``"l1"``: sum of absolute differences, which counts the size of the change. ``"cosine"``: one minus the cosine,
        which does not; a change of zero has distance 1 from all.
    genes
        Positions or mask of the genes to use. The perturbed genes themselves are better left out: what happens to them
        says which perturbation it was.

    Returns
    -------
    Series, one score for each condition of ``pred``.

    Examples
    --------
    >>> import numpy as np
    >>> truth = {"A": np.array([1.0, 0.0]), "B": np.array([0.0, 1.0]), "C": np.array([-1.0, 0.0])}
    >>> perturbation_discrimination({"A": np.array([0.4, 0.1]), "B": np.array([0.5, 0.1])}, truth).to_dict()
    {'A': 1.0, 'B': 0.5}
    """
    if distance not in ("l1", "cosine"):
        raise ValueError(f"`distance` is {distance!r}; allowed: 'l1', 'cosine'.")
    unknown = [name for name in pred if name not in truth]
    if unknown or len(truth) < 2:
        raise ValueError(
            f"`truth` holds {len(truth)} condition(s), and none of {unknown}; it needs two or more, with all of `pred`."
        )
    true = {name: mean_profile(x, f"truth[{name!r}]") for name, x in truth.items()}
    predicted = {name: mean_profile(x, f"pred[{name!r}]") for name, x in pred.items()}
    selection = check_genes(genes, check_same_genes(**true, **{f"pred[{n!r}]": x for n, x in predicted.items()}))
    table = np.stack([x[selection] for x in true.values()])
    place = {name: i for i, name in enumerate(true)}
    scores = {}
    for name, change in predicted.items():
        far = _distances(change[selection], table, distance)
        own = far[place[name]]
        nearer = np.sum(far < own) + 0.5 * (np.sum(far == own) - 1)
        scores[name] = 1 - nearer / (len(far) - 1)
    return pd.Series(scores, dtype=np.float64, name=f"discrimination {distance}")


def harm_rate(
    scores: pd.Series | np.ndarray, baseline: pd.Series | np.ndarray, *, better: Literal["lower", "higher"] = "lower"
) -> float:
    """Share of conditions in which a prediction is worse than a baseline. Lower is better.

    Parameters
    ----------
    scores, baseline
        One score of each condition, such as its mean squared error; Series are matched by their index.
    better
        Whether lower or higher scores are better.

    Returns
    -------
    Between 0 and 1; equal scores are no harm. Conditions without one of the scores (NaN) are left out; NaN where none
    is left.

    Examples
    --------
    >>> harm_rate([0.1, 0.3, 0.2], [0.2, 0.2, 0.2])
    0.3333333333333333
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"`better` is {better!r}; allowed: 'lower', 'higher'.")
    if isinstance(scores, pd.Series) and isinstance(baseline, pd.Series):
        if not scores.index.is_unique or set(scores.index) != set(baseline.index):
            raise ValueError("`scores` and `baseline` have different conditions: give one score of each in both.")
        baseline = baseline.loc[scores.index]
    own, other = (np.asarray(x, dtype=np.float64) for x in (scores, baseline))
    if own.ndim != 1 or own.shape != other.shape:
        raise ValueError(f"`scores` and `baseline` have shapes {own.shape} and {other.shape}; expected one of each.")
    both = ~(np.isnan(own) | np.isnan(other))
    worse = own > other if better == "lower" else own < other
    return float(worse[both].mean()) if both.any() else float("nan")


def _distances(change: np.ndarray, table: np.ndarray, distance: str) -> np.ndarray:
    """Distance of one change from every row of a table."""
    if distance == "l1":
        return np.abs(table - change).sum(axis=1)
    size = np.linalg.norm(change) * np.linalg.norm(table, axis=1)
    return 1 - np.divide(table @ change, size, out=np.zeros(len(table)), where=size > 0)
