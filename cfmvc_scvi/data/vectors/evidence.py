"""How much of measured effects vectors explain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi.data.vectors.leave_out import (
    STRENGTHS,
    compressed,
    cross_fitted,
    gram,
    left_out_errors,
    matched,
    mixtures,
)


def vector_evidence(
    vectors: pd.DataFrame | Mapping[str, pd.DataFrame],
    effects: pd.DataFrame,
    *,
    kernel: str = "linear",
    n_shuffles: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    r"""How much of the measured effects the vectors explain, for perturbations that are left out.

    Every perturbation's effect on all genes is predicted from the others by kernel ridge regression on the vectors,
    and compared with the mean of the others, which knows no vectors. The share explained is

    .. math:: 1 - \frac{\sum_i \lVert y_i - \hat y_i \rVert^2}{\sum_i \lVert y_i - \bar y_{-i} \rVert^2} .

    The ridge strength, among them an infinite one that is the mean itself, is chosen for each perturbation by the
    errors of all others. Vectors that say nothing thus come to 0 or a little below, and so the same is done with
    vectors that were shuffled among the perturbations: the p-value is the fraction of those, counting the vectors as
    they are for one, that explain as much. Left-out residuals have a closed form (Dubrule, 1983).

    Parameters
    ----------
    vectors
        Vectors (perturbation x feature), or several sources by name, whose weights are then chosen in the same way.
    effects
        Mean effects (perturbation x gene), as :func:`mean_effects` measures them.
    kernel
        ``"linear"``, as the model's process, or ``"rbf"`` with the median distance as its length.
    n_shuffles
        Shuffles of the vectors; the p-value is at least 1 / (n_shuffles + 1).
    seed
        Of the shuffles.

    Returns
    -------
    DataFrame, one row per perturbation that has a vector and an effect: ``squared_effect`` (squared length of the
    effect: the error of no change), ``error_of_mean`` and ``error`` (squared error of the mean of the others, and with
    the vectors), ``explained`` (of this perturbation). ``attrs`` has ``explained`` (the share above), ``p_value``,
    ``shuffled`` (the shares of shuffled vectors), ``harm_rate`` (fraction of perturbations for which no change is
    nearer than the vectors), ``without_vector`` and, of several sources, ``weights`` that do best for all together.

    Raises
    ------
    ValueError
        For fewer than five perturbations with both, repeated names, values that are not finite.

    References
    ----------
    Dubrule O (1983). Cross validation of kriging in a unique neighborhood. Mathematical Geology 15(6), 687-699.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> names = [f"P{i}" for i in range(40)]
    >>> vectors = pd.DataFrame(rng.normal(size=(40, 3)), index=names)
    >>> effects = vectors @ rng.normal(size=(3, 50)) + rng.normal(size=(40, 50))
    >>> evidence = vector_evidence(vectors, effects)
    >>> evidence.attrs["explained"] > 0.5, evidence.attrs["p_value"] < 0.01
    (True, True)
    """
    whole_number("n_shuffles", n_shuffles, least=0)
    sources = {"vectors": vectors} if isinstance(vectors, pd.DataFrame) else dict(vectors)
    names = names_of_all(sources, effects)
    kernels = [gram(table.loc[names].to_numpy(dtype=float), kernel) for table in sources.values()]
    weights = mixtures(len(sources))
    y = effects.loc[names].to_numpy(dtype=float)
    small, rng = compressed(y), np.random.default_rng(seed)
    orders = [np.arange(len(names)), *(rng.permutation(len(names)) for _ in range(n_shuffles))]
    errors = left_out_errors(kernels, weights, [small[order] for order in orders])
    fitted = [cross_fitted(errors[:, k]) for k in range(len(orders))]
    of_mean = errors[len(STRENGTHS) - 1, 0].astype(float)  # the infinite strength of any mixture
    squared = (y**2).sum(axis=1)
    shares = [1.0 - one.sum() / max(of_mean.sum(), 1e-300) for one in fitted]
    table = pd.DataFrame(
        {"squared_effect": squared, "error_of_mean": of_mean, "error": fitted[0]},
        index=pd.Index(names, name="perturbation"),
    )
    table["explained"] = 1.0 - table["error"] / np.maximum(table["error_of_mean"], 1e-300)
    table.attrs = {
        "explained": float(shares[0]),
        "p_value": float((1 + sum(share >= shares[0] for share in shares[1:])) / (1 + n_shuffles)),
        "shuffled": [float(share) for share in shares[1:]],
        "harm_rate": float((fitted[0] > squared).mean()),
        "without_vector": [str(name) for name in effects.index if name not in set(names)],
    }
    if len(sources) > 1:
        best = weights[int(np.argmin(errors[:, 0].sum(axis=1, dtype=float))) // len(STRENGTHS)]
        table.attrs["weights"] = dict(zip(sources, best.tolist(), strict=True))
    return table


def names_of_all(sources: Mapping[str, pd.DataFrame], effects: pd.DataFrame) -> list[str]:
    """Names with an effect and a vector of every source."""
    if not sources:
        raise ValueError("No vectors were given: pass a DataFrame, or a dict of them by the names of their sources.")
    names = None
    for table in sources.values():
        here = matched(table, effects if names is None else effects.loc[names])
        names = here
    assert names is not None  # there is a source
    return names
