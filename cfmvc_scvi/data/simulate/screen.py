"""Simulated perturbation screens whose counterfactuals are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._types import obs_of
from cfmvc_scvi.data.simulate.design import draw_design, draw_layout, draw_library_size, numbered
from cfmvc_scvi.data.simulate.truth import DELIMITER, TRUTH_KEY, Truth

_CHUNK_ROWS = 2048
_LAYOUT_SIZE = 1000.0


def simulate_perturbation(
    n_cells: int = 2400,
    n_genes: int = 500,
    n_cell_types: int = 3,
    n_batches: int = 2,
    n_perturbations: int = 5,
    *,
    n_pairs: int = 2,
    interaction: float = 0.5,
    effect_size: float = 0.8,
    affected_fraction: float = 0.2,
    shared_fraction: float = 0.6,
    state_fraction: float = 0.15,
    n_embedding: int = 4,
    embedding_noise: float = 0.0,
    doses: Sequence[float] | None = None,
    cell_type_effect: float = 0.8,
    n_state: int = 2,
    state_effect: float = 0.4,
    batch_effect: float = 0.3,
    confounding: float = 0.0,
    control_fraction: float = 0.25,
    mean_library_size: float | None = None,
    library_size_sd: float = 0.3,
    dispersion: float = 3.0,
    spatial: bool = True,
    spatial_gradient: float = 0.7,
    n_panel_genes: int | None = None,
    store_true_mean: bool = True,
    control: str = "control",
    seed: int = 0,
) -> AnnData:
    r"""Simulate counts of a perturbation screen, keeping every cell's counterfactual means.

    Parameters
    ----------
    n_cells, n_genes, n_cell_types, n_batches, n_perturbations
        Size of the screen. Perturbations are called ``"P1"``, ``"P2"``, ...
    n_pairs
        Number of measured pairs, ``"P1+P2"``, drawn without replacement.
    interaction
        Size of the pair term relative to `effect_size`; 0 makes pairs exactly additive in :math:`\eta`.
    effect_size
        Root mean square of a perturbation's effect on :math:`\eta` over the affected genes (natural log).
    affected_fraction
        Fraction of the genes that perturbations move; the others have an effect of 0.
    shared_fraction, state_fraction
        Shares of the effect's variance that all cell types have in common, and that depend on the cell state.
        The rest is specific to the cell type.
    n_embedding, embedding_noise
        Length of the vectors that describe perturbations, and the standard deviation of the noise added to
        those in ``uns["perturbation_embedding"]`` (their own entries have a root mean square of 1).
    doses
        Doses > 0 at which every perturbation is measured; both members of a pair have the same one. ``None``:
        a perturbation is there or not, and there is no ``obs["dosage"]``.
    cell_type_effect, n_state, state_effect, batch_effect
        Standard deviations of :math:`T` (on a fifth of the genes), of :math:`W` (on a fifth of the genes, for
        each of the `n_state` dimensions) and of :math:`B` (on all).
    confounding
        0: perturbations are balanced within batch × cell type. 1: a perturbation is measured in one batch
        only. In between, a mixture of both. Control cells are in every batch.
    control_fraction
        Fraction of control cells in every batch × cell type.
    mean_library_size, library_size_sd
        Mean of :math:`L` (default: 2 per gene) and standard deviation of its logarithm.
    dispersion
        Median over genes of :math:`\theta`.
    spatial, spatial_gradient
        Whether cells have coordinates, and the correlation of the first state dimension with its spatial
        gradient.
    n_panel_genes
        Keep only so many random genes, as a targeted panel does. ``obs["library_size"]`` still refers to all
        of them, and is then the column to use as ``size_factor_key``.
    store_true_mean
        Whether to keep the dense ``layers["true_mean"]``.
    control
        Name of the control level.
    seed
        The same seed and arguments give the same data. The genes' parameters do not depend on `n_cells`.

    Returns
    -------
    AnnData
        ``X``: counts, CSR float32. ``obs``: `cell_type`, `batch`, `perturbation` (categorical), `dosage` (0
        in control cells; with `doses` only) and `library_size` (:math:`L_i`, the expected total). ``var``:
        `dispersion` and `affected`. ``obsm``: `true_state` (n_cells, n_state), `spatial` (n_cells, 2).
        ``layers["true_mean"]``: :math:`\mu`, expected counts in the cell's own condition, float32. ``uns``:
        `perturbation_embedding` (DataFrame, perturbation × dimension) and `simulation` (all parameters, as
        arrays that an ``.h5ad`` can hold; :func:`counterfactual_mean` reads them).

    Raises
    ------
    ValueError
        For an argument outside of its range, or too few cells to measure every condition.

    Notes
    -----
    Cell :math:`i` of type :math:`c`, batch :math:`b`, state :math:`u_i \in R^S`, with perturbations
    :math:`K_i` (none in control cells) at doses :math:`x_{ik}`, has for gene :math:`g`

    .. math::

        \eta_{ig} &= \beta_g + T_{cg} + B_{bg} + \sum_s u_{is} W_{sg}
            + \sum_{k \in K_i} r_k(x_{ik}) \sum_q v_{kq} \Big(A_{qg} + C_{cqg} + \sum_s u_{is} D_{sqg}\Big)
            + \sum_{k < l \in K_i} r_k(x_{ik}) r_l(x_{il}) \sum_q v_{kq} v_{lq} J_{qg} \\
        \mu_{ig} &= L_i \, \mathrm{softmax}_g(\eta_{i\cdot}), \qquad
        x_{ig} \sim \mathrm{NB}(\mu_{ig}, \theta_g), \qquad
        \mathrm{Var}(x_{ig}) = \mu_{ig} + \mu_{ig}^2 / \theta_g

    :math:`v_k` is the vector of perturbation :math:`k` (:math:`\sum_q v_{kq}^2 = Q`). The effects are linear
    in it, so those of a perturbation without cells can be learned from the vectors of the others. :math:`A`
    is the part shared by all cell types, :math:`C` the cell-type-specific, :math:`D` the state-dependent part
    and :math:`J` the interaction: all are zero outside of the affected genes. :math:`r_k(x) = x^h / (x^h +
    e_k^h)` with :math:`h = 1.5` and half-maximal dose :math:`e_k` within the range of `doses`; :math:`r = 1`
    without doses. :math:`\log L_i` is normal with a mean that depends on the batch. :math:`\beta_g` is
    normal with standard deviation 1.2, cut off above 1.5, and :math:`\theta_g` is log-normal.

    Additivity is that of :math:`\eta`: :math:`\log \mu` is additive up to a constant per cell, from the
    softmax.

    Every batch is a tissue section in the same frame of 1000 × 1000: cell types lie in wavy layers, and the
    first state dimension has a gradient across them. Neighbours are meaningful within a batch.

    Examples
    --------
    >>> adata = simulate_perturbation(seed=1)
    >>> control = adata[adata.obs["perturbation"] == "control"]
    >>> truth = counterfactual_mean(control, "P1+P2")
    """
    args = dict(locals())
    _check(args)
    gene_rng, vector_rng, design_rng, place_rng, cell_rng, count_rng = np.random.default_rng(seed).spawn(6)

    conditions = _draw_conditions(args, design_rng)
    truth = _draw_truth(args, gene_rng, vector_rng)
    obs = draw_design(args, conditions, truth, design_rng)
    layout = draw_layout(obs, place_rng)
    state = cell_rng.standard_normal((n_cells, n_state))
    if spatial:
        gradient = np.sqrt(2) * np.cos(np.pi * layout[:, 0])
        state[:, 0] = np.sqrt(1 - spatial_gradient**2) * state[:, 0] + spatial_gradient * gradient
    obs["library_size"] = draw_library_size(args, obs["batch"].cat.codes.to_numpy(), cell_rng)

    adata = AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(truth.genes)))
    adata.obsm["true_state"] = state.astype(np.float32)
    if spatial:
        adata.obsm["spatial"] = _LAYOUT_SIZE * layout
    adata.var["dispersion"] = truth.dispersion
    adata.var["affected"] = truth.affected
    adata.uns["simulation"] = truth.to_uns()
    vectors = truth.vectors + embedding_noise * vector_rng.standard_normal(truth.vectors.shape)
    adata.uns["perturbation_embedding"] = pd.DataFrame(
        vectors, index=pd.Index(truth.perturbations), columns=[f"v{q + 1}" for q in range(n_embedding)]
    )
    if n_panel_genes is not None:
        panel = np.sort(design_rng.choice(n_genes, n_panel_genes, replace=False))
        adata = adata[:, panel].copy()
    _draw_counts(adata, truth, count_rng, store_true_mean=store_true_mean)
    return adata


def counterfactual_mean(
    adata: AnnData,
    perturbation: str | Sequence[str],
    *,
    dosage: float | str | Sequence[float | str] | None = None,
    batch: str | None = None,
) -> np.ndarray:
    """True expected counts of simulated cells, had they received another perturbation.

    Parameters
    ----------
    adata
        Data from :func:`simulate_perturbation`, or any of its cells and genes in any order.
    perturbation
        A label for all cells, or one per cell: the control, a perturbation, or several joined by ``"+"`` (in
        any order, measured or not; control members count as nothing, repeated ones once).
    dosage
        A dose for all cells, or one per cell, if the data were simulated with doses. ``"0.1+10"`` gives each
        member of a combination its own. Dose 0 is control. Not needed for the control.
    batch
        As if measured in this batch; default each cell's own.

    Returns
    -------
    numpy.ndarray
        (n_cells, n_genes), float32, at each cell's own library size, cell type and state. For the cells' own
        conditions it equals ``layers["true_mean"]`` bit for bit.

    Raises
    ------
    KeyError
        If `adata` does not carry the simulation's parameters.
    ValueError
        For an unknown perturbation, batch, gene or cell type, or a missing or negative dose.
    """
    missing = [
        f"{slot}[{key!r}]"
        for slot, key in [
            ("uns", TRUTH_KEY),
            ("obsm", "true_state"),
            *(("obs", column) for column in ("cell_type", "batch", "library_size")),
        ]
        if key not in getattr(adata, slot)
    ]
    if missing:
        raise KeyError(
            f"adata lacks {', '.join(missing)}, which simulate_perturbation writes; the true counterfactual "
            "is known for its data only. Copy what was lost on the way (anndata.concat drops uns)."
        )
    truth = Truth.from_uns(adata.uns[TRUTH_KEY])
    effects, pairs = truth.condition_vectors(perturbation, dosage, n_cells=adata.n_obs)
    batches = adata.obs["batch"] if batch is None else np.repeat(batch, adata.n_obs)
    return truth.mean(
        state=cast(np.ndarray, adata.obsm["true_state"]),
        cell_types=truth.codes("cell_types", adata.obs["cell_type"]),
        batches=truth.codes("batches", batches),
        effects=effects,
        pairs=pairs,
        library_size=adata.obs["library_size"].to_numpy(),
        genes=truth.codes("genes", adata.var_names),
    )


_COUNTS = {"n_cells": 1, "n_genes": 2, "n_cell_types": 1, "n_batches": 1, "n_perturbations": 1}
_COUNTS |= {"n_pairs": 0, "n_embedding": 1, "n_state": 1, "seed": 0}
_FRACTIONS = ("affected_fraction", "shared_fraction", "state_fraction", "confounding", "spatial_gradient")
_SIZES = ("effect_size", "interaction", "embedding_noise", "cell_type_effect", "state_effect", "batch_effect")
_SIZES += ("library_size_sd",)


def _check(args: dict[str, Any]) -> None:
    """Refuse arguments out of range."""
    for name, minimum in _COUNTS.items():
        value = args[name]
        if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
            raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
    for name in _FRACTIONS:
        if not _is_number(args[name]) or not 0 <= args[name] <= 1:
            raise ValueError(f"{name} must be a number between 0 and 1, got {args[name]!r}.")
    for name in _SIZES:
        if not _is_number(args[name]) or not 0 <= args[name] < np.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {args[name]!r}.")
    optional = () if args["mean_library_size"] is None else ("mean_library_size",)
    for name in ("dispersion", *optional):
        if not _is_number(args[name]) or not 0 < args[name] < np.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {args[name]!r}.")
    if not _is_number(args["control_fraction"]) or not 0 < args["control_fraction"] < 1:
        raise ValueError(f"control_fraction must be above 0 and below 1, got {args['control_fraction']!r}.")
    if args["shared_fraction"] + args["state_fraction"] > 1 + 1e-9:
        raise ValueError(
            f"shared_fraction + state_fraction must not exceed 1, got {args['shared_fraction']!r} + "
            f"{args['state_fraction']!r}. The rest is the cell-type-specific share."
        )
    _check_conditions(args)


def _check_conditions(args: dict[str, Any]) -> None:
    """Refuse perturbations, doses and panels that cannot be."""
    n_perturbations, n_pairs, control = args["n_perturbations"], args["n_pairs"], args["control"]
    possible = n_perturbations * (n_perturbations - 1) // 2
    if n_pairs > possible:
        raise ValueError(
            f"n_pairs={n_pairs}, but {n_perturbations} perturbations make {possible} pairs. Lower n_pairs or "
            "raise n_perturbations."
        )
    is_name = isinstance(control, str) and control and DELIMITER not in control
    if not is_name or control in numbered("P", n_perturbations):
        raise ValueError(
            f"control must be a non-empty string without {DELIMITER!r} that is no perturbation's name "
            f"('P1', ...), got {control!r}."
        )
    if args["confounding"] > 0 and n_perturbations + n_pairs < args["n_batches"]:
        raise ValueError(
            f"confounding={args['confounding']} gives every batch perturbations of its own, but there are "
            f"{n_perturbations + n_pairs} for {args['n_batches']} batches. Raise n_perturbations."
        )
    panel, n_genes = args["n_panel_genes"], args["n_genes"]
    if panel is not None and not (isinstance(panel, Integral) and 1 <= int(panel) <= n_genes):
        raise ValueError(f"n_panel_genes must be None or an integer from 1 to n_genes={n_genes}, got {panel!r}.")
    if args["doses"] is not None:
        doses = list(args["doses"]) if isinstance(args["doses"], Iterable) else []
        if not doses or len(set(doses)) < len(doses) or not all(_is_number(d) and 0 < d < np.inf for d in doses):
            raise ValueError(
                f"doses must be distinct finite numbers above 0, got {args['doses']!r}. Dose 0 is the "
                "control, which is always there; None is for no doses."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not np.isnan(float(value))


def _draw_conditions(args: dict[str, Any], rng: np.random.Generator) -> list[str]:
    """Labels of the perturbations and pairs that are measured, without the control."""
    names = numbered("P", args["n_perturbations"])
    possible = list(combinations(names, 2))
    chosen = np.sort(rng.choice(len(possible), args["n_pairs"], replace=False)) if args["n_pairs"] else []
    return names + [DELIMITER.join(possible[i]) for i in chosen]


def _draw_truth(args: dict[str, Any], rng: np.random.Generator, vector_rng: np.random.Generator) -> Truth:
    """Parameters of the genes, cell types, batches and perturbations."""
    n_genes, n_types, n_state, n_dims = (args[k] for k in ("n_genes", "n_cell_types", "n_state", "n_embedding"))
    n_affected = round(args["affected_fraction"] * n_genes)
    in_programme = np.zeros((n_dims, n_genes), bool)
    affected = rng.choice(n_genes, n_affected, replace=False)
    in_programme[:, affected] = rng.random((n_dims, n_affected)) < 0.5
    in_programme[rng.integers(n_dims, size=n_affected), affected] = True
    scale = args["effect_size"] * in_programme / np.sqrt(np.maximum(in_programme.sum(axis=0), 1))

    def loadings(share: float, *leading: int) -> np.ndarray:
        size = rng.uniform(0.5, 1.5, (*leading, n_dims, n_genes)) / np.sqrt(13 / 12)
        return np.sqrt(share) * scale * size * rng.choice([-1.0, 1.0], size.shape)

    def sparse_normal(sd: float, n_rows: int) -> np.ndarray:
        return sd * rng.standard_normal((n_rows, n_genes)) * (rng.random((n_rows, n_genes)) < 0.2)

    specific = max(1 - args["shared_fraction"] - args["state_fraction"], 0.0)
    vectors = vector_rng.standard_normal((args["n_perturbations"], n_dims))
    vectors *= np.sqrt(n_dims) / np.linalg.norm(vectors, axis=1, keepdims=True)
    half_dose = np.empty(0)
    if args["doses"] is not None:
        low, high = np.log(min(args["doses"])), np.log(max(args["doses"]))
        half_dose = np.exp(low + (high - low) * vector_rng.uniform(0.2, 0.8, args["n_perturbations"]))
    return Truth(
        control=args["control"],
        genes=numbered("gene", n_genes),
        cell_types=numbered("type", n_types),
        batches=numbered("batch", args["n_batches"]),
        perturbations=numbered("P", args["n_perturbations"]),
        baseline=np.minimum(1.2 * rng.standard_normal(n_genes), 1.5),
        dispersion=args["dispersion"] * np.exp(0.5 * rng.standard_normal(n_genes)),
        cell_type_programme=sparse_normal(args["cell_type_effect"], n_types),
        state_loadings=sparse_normal(args["state_effect"], n_state),
        batch_effect=args["batch_effect"] * rng.standard_normal((args["n_batches"], n_genes)),
        effect_shared=loadings(args["shared_fraction"]),
        effect_cell_type=loadings(specific, n_types),
        effect_state=loadings(args["state_fraction"] / n_state, n_state),
        effect_pair=loadings(args["interaction"] ** 2),
        vectors=vectors,
        half_dose=half_dose,
    )


def _draw_counts(adata: AnnData, truth: Truth, rng: np.random.Generator, *, store_true_mean: bool) -> None:
    """Fill ``X`` and ``layers["true_mean"]``, some rows at a time."""
    theta = adata.var["dispersion"].to_numpy()
    labels = obs_of(adata)["perturbation"].to_numpy(dtype=object)
    dosage: Any = adata.obs["dosage"].to_numpy() if "dosage" in adata.obs else None
    true_mean = np.empty(adata.shape, np.float32) if store_true_mean else None
    counts = []
    for start in range(0, adata.n_obs, _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        mean = counterfactual_mean(adata[rows], labels[rows], dosage=None if dosage is None else dosage[rows])
        rate = rng.gamma(theta, mean / theta)
        counts.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
        if true_mean is not None:
            true_mean[rows] = mean
    adata.X = sparse.vstack(counts, format="csr", dtype=np.float32)
    if true_mean is not None:
        adata.layers["true_mean"] = true_mean
