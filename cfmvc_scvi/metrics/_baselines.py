"""Baselines that need no training: a model that loses to one of these has not learned the perturbation.

Training data are a mapping from context (cell type, donor, ...) to ``(control, perturbed)``, two matrices of
cells x genes on the log1p CP10k scale. The context that is predicted is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from cfmvc_scvi.metrics._arrays import Matrix, cells, check_array, check_same_genes, mean_profile
from cfmvc_scvi.metrics._names import by_gene_name, same_features, same_rows

Training: TypeAlias = Mapping[str, tuple[Matrix, Matrix]]
Weighting: TypeAlias = Literal["contexts", "cells"]


def no_change(control: Matrix) -> np.ndarray:
    """Predict the control cells as they are.

    Parameters
    ----------
    control
        log1p CP10k, cells x genes, of the context that is predicted.

    Returns
    -------
    A dense copy.
    """
    return cells(control, "control", min_cells=1).copy()


@by_gene_name("training", "control")
def mean_perturbed(
    training: Training,
    *,
    control: Matrix | None = None,
    weighting: Weighting = "contexts",
    min_cells: int = 1,
) -> np.ndarray:
    """Predict the mean of the perturbed training cells, whichever context is predicted.

    Parameters
    ----------
    training
        Mapping of context to ``(control, perturbed)``.
    control
        Control cells of the predicted context. Where given, the result is these cells, all moved by one vector
        so that their mean is the prediction: a population with the spread of the control cells. ``None``: the
        result is the mean itself.
    weighting
        ``"contexts"``: every context counts the same. ``"cells"``: in proportion to its perturbed cells.
    min_cells
        Contexts with fewer cells in either condition are left out.

    Returns
    -------
    ``(genes,)``, or ``(cells, genes)`` where ``control`` is given.
    """
    means, weights = _context_means(training, weighting, min_cells)
    prediction = weights @ means[:, 1]
    if control is None:
        return prediction
    control = cells(control, "control", min_cells=1)
    check_same_genes(training=prediction, control=control)
    return control + (prediction - control.mean(axis=0))


@by_gene_name("control", "training")
def mean_shift(
    control: Matrix, training: Training, *, weighting: Weighting = "contexts", min_cells: int = 1
) -> np.ndarray:
    """Predict control plus the average shift of the training contexts: **the baseline to beat**.

    The shift of a context is the mean of its perturbed minus the mean of its control cells; it is added to
    every control cell. Values below zero are kept, since clipping would change the mean.

    Parameters
    ----------
    control
        log1p CP10k, cells x genes, of the context that is predicted.
    training
        Mapping of context to ``(control, perturbed)``.
    weighting
        ``"contexts"``: the plain average of the contexts' shifts (the stronger baseline where a few contexts
        hold most cells). ``"cells"``: weighted by the number of perturbed cells.
    min_cells
        Contexts with fewer cells in either condition are left out: the shift of a handful of cells is noise.

    Returns
    -------
    ``(cells, genes)``, dense.

    Examples
    --------
    >>> import numpy as np
    >>> training = {"B": (np.zeros((2, 1)), np.ones((2, 1))), "NK": (np.zeros((2, 1)), np.full((6, 1), 3.0))}
    >>> mean_shift(np.array([[0.5]]), training), mean_shift(np.array([[0.5]]), training, weighting="cells")
    (array([[2.5]]), array([[3.]]))
    """
    control = cells(control, "control", min_cells=1)
    means, weights = _context_means(training, weighting, min_cells)
    check_same_genes(training=means[:, 0], control=control)
    return control + weights @ (means[:, 1] - means[:, 0])


@by_gene_name("control", "singles", "single_control")
def additive(control: Matrix, singles: Sequence[Matrix], *, single_control: Matrix | None = None) -> np.ndarray:
    """Predict a combination as control plus the sum of the changes of its single perturbations.

    Parameters
    ----------
    control
        log1p CP10k, cells x genes, of the context that is predicted.
    singles
        For each member of the combination, the cells (or the mean) under that perturbation alone.
    single_control
        Control cells (or mean) that the singles are compared with; ``None``: ``control``.

    Returns
    -------
    ``(cells, genes)``, dense.

    Examples
    --------
    >>> import numpy as np
    >>> control = np.zeros((2, 2))
    >>> additive(control, [np.array([1.0, 0.0]), np.array([1.0, 2.0])])[0]
    array([2., 2.])
    """
    if len(singles) == 0:
        raise ValueError("`singles` is empty; pass the cells of each single perturbation of the combination.")
    control = cells(control, "control", min_cells=1)
    means = {f"singles[{i}]": mean_profile(single, f"singles[{i}]") for i, single in enumerate(singles)}
    reference = control.mean(axis=0) if single_control is None else mean_profile(single_control, "single_control")
    check_same_genes(control=control, single_control=reference, **means)
    return control + sum(mean - reference for mean in means.values())


def ridge_embedding(
    embedding: np.ndarray,
    deltas: np.ndarray,
    new_embedding: np.ndarray,
    *,
    alpha: float = 1.0,
    fit_intercept: bool = True,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Predict mean changes of perturbations from their vectors by ridge regression.

    Minimises ``sum_p w_p |deltas_p - b - embedding_p W|^2 + alpha |W|^2``; the intercept is not penalised.

    Parameters
    ----------
    embedding
        Vectors of the training perturbations, perturbations x features.
    deltas
        Their mean changes from control (log1p CP10k), perturbations x genes.
    new_embedding
        Vectors of the perturbations to predict, perturbations x features.
    alpha
        Strength of the penalty, not negative.
    fit_intercept
        ``False`` makes the zero vector (control) predict no change.
    weights
        Weight of each training perturbation, for instance its number of cells; ``None``: equal.

    Returns
    -------
    Predicted mean changes, new perturbations x genes; add them to control.
    """
    if not alpha >= 0:
        raise ValueError(f"`alpha` is {alpha}; expected a number not below 0.")
    deltas = same_rows(embedding, deltas, ("embedding", "deltas"))
    new_embedding = same_features(embedding, new_embedding)
    x, y = check_array(embedding, "embedding", min_cells=1), check_array(deltas, "deltas", min_cells=1)
    new = check_array(new_embedding, "new_embedding", min_cells=1)
    if x.shape[0] != y.shape[0]:
        raise ValueError(f"`embedding` has {x.shape[0]} and `deltas` {y.shape[0]} perturbations; give one row each.")
    if x.shape[1] != new.shape[1]:
        raise ValueError(f"`embedding` has {x.shape[1]} and `new_embedding` {new.shape[1]} features.")
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (len(x),) or not (np.isfinite(w).all() and (w >= 0).all() and w.sum() > 0):
        raise ValueError(f"`weights` must be {len(x)} numbers not below 0 and not all 0; given {weights!r}.")
    x_mean = np.average(x, axis=0, weights=w) if fit_intercept else np.zeros(x.shape[1])
    y_mean = np.average(y, axis=0, weights=w) if fit_intercept else np.zeros(y.shape[1])
    # With the weighted, centred vectors X = U diag(s) V', the ridge solution is W = V diag(s / (s^2 + alpha)) U' Y.
    # Directions whose singular value is rounding are left out, so that alpha = 0 is allowed.
    root = np.sqrt(w)[:, None]
    u, s, vt = np.linalg.svd(root * (x - x_mean), full_matrices=False)
    kept = s > s.max(initial=0.0) * max(x.shape) * np.finfo(float).eps
    u, s, vt = u[:, kept], s[kept], vt[kept]
    shrink = s / (s**2 + alpha)
    return y_mean + ((new - x_mean) @ vt.T * shrink) @ (u.T @ (root * (y - y_mean)))


def check_training(training: Training) -> dict[str, tuple[Matrix, Matrix]]:
    """Return the training contexts as validated matrices of the same genes; a condition may be empty."""
    if not isinstance(training, Mapping):
        raise TypeError(f"`training` is {type(training).__name__}; expected a mapping context -> (control, perturbed).")
    if not training:
        raise ValueError("`training` is empty; it needs at least one context with control and perturbed cells.")
    checked = {}
    for context, pair in training.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"`training[{context!r}]` must be a pair (control cells, perturbed cells).")
        checked[context] = tuple(
            check_array(x, f"training[{context!r}] {condition}", min_cells=0)
            for x, condition in zip(pair, ("control", "perturbed"), strict=True)
        )
    check_same_genes(
        **{f"training[{c!r}] {k}": x for c, pair in checked.items() for k, x in zip("cp", pair, strict=True)}
    )
    return checked


def _context_means(training: Training, weighting: Weighting, min_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (contexts, 2, genes) means of control and perturbed cells, and weights that sum to 1."""
    if weighting not in ("contexts", "cells"):
        raise ValueError(f"`weighting` is {weighting!r}; allowed: 'contexts', 'cells'.")
    training = check_training(training)
    sizes = {context: (pair[0].shape[0], pair[1].shape[0]) for context, pair in training.items()}
    kept = [context for context, size in sizes.items() if min(size) >= max(min_cells, 1)]
    if not kept:
        raise ValueError(
            f"No training context has at least {max(min_cells, 1)} control and as many perturbed cells; "
            f"given (control, perturbed): {sizes}. Add contexts or lower `min_cells`."
        )
    means = np.stack([[np.asarray(x.mean(axis=0)).ravel() for x in training[context]] for context in kept])
    weights = np.array([1.0 if weighting == "contexts" else sizes[context][1] for context in kept])
    return means, weights / weights.sum()
