"""Gene sets that effects move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from cfmvc_scvi._messages import shortened, unknown_choice
from cfmvc_scvi.pathways.gene_sets import as_network

#: A result of get_perturbation_effect, several by name, or perturbation x gene.
Effects: TypeAlias = "pd.DataFrame | Mapping[str, pd.DataFrame]"
#: What of effects is scored.
_VALUES = ("log_fold_change", "z")


def score_gene_sets(
    effects: Effects,
    gene_sets: Any,
    *,
    values: Literal["log_fold_change", "z"] = "log_fold_change",
    min_genes: int = 5,
) -> pd.DataFrame:
    r"""Score gene sets by the effects on their genes, with decoupler's univariate linear model.

    For every perturbation and set a line is fitted to the effects of all genes on their membership in the set (1 or 0,
    or the weights of a network); the score is the t statistic of its slope: positive where the genes of the set rise
    more than others. Needs decoupler: ``pip install 'cfmvc_scvi[pathways]'``. The first call compiles, which takes
    some seconds.

    The p-values take genes for independent, as all such tests do; genes of one set are not. Compare them between sets
    and perturbations rather than with a threshold.

    Parameters
    ----------
    effects
        A result of ``get_perturbation_effect``, several by name, or a DataFrame (perturbation x gene) of effects.
    gene_sets
        A dictionary from the name of a set to its genes, the path of a GMT file, or a DataFrame with the columns
        ``source``, ``target`` and perhaps ``weight``, as decoupler's resources are.
    values
        Of results of ``get_perturbation_effect``: the estimate, or ``"z"``, the estimate by its standard deviation, in
        which genes of uncertain effect count for less.
    min_genes
        Sets with fewer genes among those of the effects are left out.

    Returns
    -------
    DataFrame, one row per perturbation and set, the largest scores first within a perturbation: ``perturbation``,
    ``gene_set``, ``score``, ``p_value`` (adjusted over sets by Benjamini and Hochberg), ``n_genes`` (of the set among
    the effects) and ``leading`` (up to five genes of the set that move most in the direction of the score).

    Raises
    ------
    ImportError
        When decoupler is not installed, with the command that installs it.
    ValueError
        Where no set has enough genes among those of the effects, or effects are missing or not finite.

    References
    ----------
    Badia-i-Mompel P et al. (2022). decoupleR: ensemble of computational methods to infer biological activities from
    omics data. Bioinformatics Advances 2(1), vbac016.
    """
    if values not in _VALUES:
        raise ValueError(unknown_choice("values", values, _VALUES))
    table, network = _as_table(effects, values), as_network(gene_sets)
    known = network[network["target"].isin(table.columns)]
    sizes = known.groupby("source", sort=False).size()
    kept = sizes[sizes >= min_genes]
    if kept.empty:
        raise ValueError(
            f"No set has {min_genes} genes among the {table.shape[1]} of the effects, {shortened(table.columns, 5)}; "
            f"the sets have genes such as {shortened(network['target'], 5)}. Genes are matched by name: check that "
            "both use the same identifiers, or lower `min_genes`."
        )
    known = known[known["source"].isin(kept.index)]
    decoupler = _decoupler()
    scores, adjusted = decoupler.mt.ulm(data=table, net=known, tmin=min_genes, verbose=False)
    members = {name: part["target"].to_numpy() for name, part in known.groupby("source", sort=False)}
    rows = []
    for name in table.index:
        for gene_set in scores.columns:
            score = float(scores.loc[name, gene_set])
            moved = (np.sign(score) * table.loc[name, members[gene_set]]).sort_values(ascending=False, kind="stable")
            leading = ", ".join(moved[moved > 0].index[:5])
            p_value = float(adjusted.loc[name, gene_set])
            rows.append((name, gene_set, score, p_value, int(kept[gene_set]), leading))
    columns = ["perturbation", "gene_set", "score", "p_value", "n_genes", "leading"]
    found = pd.DataFrame(rows, columns=columns)
    order = np.lexsort(
        (-found["score"].abs(), found["perturbation"].map({name: i for i, name in enumerate(table.index)}))
    )
    return found.iloc[order].reset_index(drop=True)


def _as_table(effects: Effects, values: str) -> pd.DataFrame:
    """Effects (perturbation x gene)."""
    if isinstance(effects, pd.DataFrame) and "log_fold_change" in effects.columns:
        effects = {str(effects.attrs.get("perturbation", "effect")): effects}
    if isinstance(effects, Mapping):
        if not effects:
            raise ValueError("`effects` is empty: give the effects of at least one perturbation.")
        effects = pd.DataFrame({name: _column(one, values) for name, one in effects.items()}).T
    elif values != "log_fold_change":
        raise ValueError("`values='z'` needs results of `get_perturbation_effect`; a table of effects has no errors.")
    table = effects.astype(float)
    if not np.isfinite(table.to_numpy()).all():
        raise ValueError(
            "`effects` has values that are missing or not finite: give the same genes for every perturbation."
        )
    return table.rename(index=str, columns=str)


def _column(table: pd.DataFrame, values: str) -> pd.Series:
    if not isinstance(table, pd.DataFrame) or not {"log_fold_change", "sd"} <= set(table.columns):
        raise ValueError("`effects` must hold results of `get_perturbation_effect`.")
    if values == "z":
        return table["log_fold_change"] / np.maximum(table["sd"], 1e-12)
    return table["log_fold_change"]


def _decoupler() -> Any:
    try:
        import decoupler  # pyright: ignore[reportMissingImports]  # of an extra
    except ImportError as error:
        raise ImportError("`score_gene_sets` needs decoupler: `pip install 'cfmvc_scvi[pathways]'`.") from error
    return decoupler
