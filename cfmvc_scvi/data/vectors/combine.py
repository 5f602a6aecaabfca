"""Several sources of vectors as one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from scvi import settings

from cfmvc_scvi._messages import shortened, unknown_choice
from cfmvc_scvi.data.vectors.evidence import names_of_all
from cfmvc_scvi.data.vectors.leave_out import STRENGTHS, compressed, gram, left_out_errors, mixtures

#: Perturbations that weights are learned from; of more, a random sample.
_SAMPLE = 500


def combine_vectors(
    sources: Mapping[str, pd.DataFrame],
    *,
    weights: Mapping[str, float] | None = None,
    effects: pd.DataFrame | None = None,
    missing: Literal["drop", "mean", "error"] = "drop",
    constant: float = 1.0,
) -> pd.DataFrame:
    r"""Vectors of several sources as one table, each with the weight it is given or that left-out effects ask for.

    The model takes from vectors only their inner products, :math:`p \cdot p'`. Side by side, these add up, and a
    source counts for as much as its squared lengths: one of 5,120 numbers near 1 would drown one of 32. So the rows
    of every source are centred and divided by their root mean squared length, and multiplied by the root of the
    weight: likeness between perturbations is then the weighted mean of the likeness in every source. Centring takes
    away what all vectors have in common, which tells perturbations not apart; a constant column puts one back, of a
    size that is chosen: without it a model that is linear in the vectors cannot say what perturbations do on
    average. A single source can be given too.

    Parameters
    ----------
    sources
        Vectors (perturbation x feature) by the name of their source, such as results of :func:`read_vectors`.
    weights
        Weight of every source, not negative; they are divided by their sum. ``None`` without ``effects``: all alike.
    effects
        Mean effects (perturbation x gene) of measured perturbations, as :func:`mean_effects` gives them. The weights
        are then those, in quarters (of more than four sources: halves, and all alike), with which left-out
        perturbations are predicted best (:func:`vector_evidence`, which also says whether that is any good). Of
        more than 500 perturbations a random sample serves.
    missing
        Perturbations that a source does not have: ``"drop"`` leaves them out, with a warning; ``"mean"`` gives them the
        mean of that source, that is nothing that would set them apart; ``"error"`` refuses them.
    constant
        Value of the constant column, beside vectors of mean squared length 1; 0 leaves it out.

    Returns
    -------
    DataFrame (perturbation x feature), float32; columns are ``source:feature``. ``attrs`` has the ``weights``, and in
    ``missing`` the names that every source lacks.

    Raises
    ------
    ValueError
        For no source, repeated names, values that are not finite, a source whose vectors are all alike, weights that
        do not fit, or perturbations that are missing.

    Examples
    --------
    >>> go = pd.DataFrame([[0.0, 1.0], [1.0, 0.0]], index=["A", "B"])
    >>> esm = pd.DataFrame([[100.0], [300.0]], index=["A", "B"])
    >>> table = combine_vectors({"GO": go, "ESM2": esm}, weights={"GO": 3, "ESM2": 1})
    >>> table.round(2).to_numpy()
    array([[-0.61,  0.61, -0.5 ,  1.  ],
           [ 0.61, -0.61,  0.5 ,  1.  ]], dtype=float32)
    """
    if missing not in ("drop", "mean", "error"):
        raise ValueError(unknown_choice("missing", missing, ("drop", "mean", "error")))
    if weights is not None and effects is not None:
        raise ValueError("Give `weights`, or `effects` that they are learned from, not both.")
    if not np.isfinite(constant):
        raise ValueError(f"`constant` is {constant}; give a finite number.")
    _check(sources)
    every = list(dict.fromkeys(name for table in sources.values() for name in table.index))
    lacking = {source: [name for name in every if name not in table.index] for source, table in sources.items()}
    names = _kept(every, lacking, missing)
    shares = _given(weights, list(sources)) if effects is None else _learned(sources, effects)
    blocks = {}
    for source, table in sources.items():
        known = [name for name in names if name in table.index]
        x = table.loc[known].to_numpy(dtype=float)
        x = x - x.mean(axis=0)
        size = np.sqrt((x**2).sum(axis=1).mean())
        if not size > 0:
            raise ValueError(
                f"All vectors of {source!r} are alike: they tell no perturbation from another. Leave it out."
            )
        block = pd.DataFrame(x * np.sqrt(shares[source]) / size, index=known, columns=table.columns.astype(str))
        blocks[source] = block.reindex(names, fill_value=0.0).add_prefix(f"{source}:")
    whole = pd.concat(list(blocks.values()), axis=1)
    if constant:
        whole["constant"] = constant
    whole = whole.astype(np.float32)
    whole.attrs = {"weights": shares, "missing": lacking}
    return whole


def _check(sources: Mapping[str, pd.DataFrame]) -> None:
    if not sources:
        raise ValueError("`sources` is empty: give at least one table of vectors by name.")
    for source, table in sources.items():
        if not isinstance(table, pd.DataFrame) or not len(table):
            raise ValueError(f"`sources[{source!r}]` is no DataFrame with a row per perturbation.")
        if not table.index.is_unique:
            raise ValueError(f"{source!r} has repeated names: {shortened(table.index[table.index.duplicated()])}.")
        bad = np.flatnonzero(~np.isfinite(table.to_numpy(dtype=float)).all(axis=1))
        if len(bad):
            raise ValueError(f"{source!r} has values that are not finite, in {shortened(table.index[bad])}.")


def _kept(every: list[str], lacking: Mapping[str, list[str]], missing: str) -> list[str]:
    """Perturbations that the table will have."""
    incomplete = {name for names in lacking.values() for name in names}
    if not incomplete or missing == "mean":
        return every
    which = "; ".join(f"{source} has no {shortened(names, 5)}" for source, names in lacking.items() if names)
    kept = [name for name in every if name not in incomplete]
    if missing == "error" or len(kept) < 2:
        raise ValueError(
            f"{len(incomplete)} of {len(every)} perturbations are not in every source: {which}. Leave them out by "
            "`missing='drop'`, or give them the mean of the source by `missing='mean'`."
        )
    warnings.warn(
        f"{len(incomplete)} of {len(every)} perturbations are not in every source and are left out: {which}. "
        "`missing='mean'` keeps them, with the mean of the sources that lack them.",
        UserWarning,
        stacklevel=settings.warnings_stacklevel,
    )
    return kept


def _given(weights: Mapping[str, float] | None, sources: list[str]) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(sources, 1.0 / len(sources))
    values = {source: float(weights.get(source, np.nan)) for source in sources}
    total = sum(values.values())
    if set(weights) != set(sources) or not total > 0 or min(values.values()) < 0 or not np.isfinite(total):
        raise ValueError(
            f"`weights` {dict(weights)} must be a number from 0 on for each of {shortened(sources)}, not all zero."
        )
    return {source: value / total for source, value in values.items()}


def _learned(sources: Mapping[str, pd.DataFrame], effects: pd.DataFrame) -> dict[str, float]:
    """Weights with which left-out perturbations are predicted best."""
    names = names_of_all(sources, effects)
    if len(names) > _SAMPLE:
        chosen = np.sort(np.random.default_rng(0).permutation(len(names))[:_SAMPLE])
        names = [names[i] for i in chosen]
    kernels = [gram(table.loc[names].to_numpy(dtype=float)) for table in sources.values()]
    candidates = mixtures(len(sources))
    errors = left_out_errors(kernels, candidates, [compressed(effects.loc[names].to_numpy(dtype=float))])
    best = int(np.argmin(errors[:, 0].sum(axis=1, dtype=float))) // len(STRENGTHS)
    return dict(zip(sources, candidates[best].tolist(), strict=True))
