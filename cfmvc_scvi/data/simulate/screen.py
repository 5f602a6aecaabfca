"""Simulated perturbation screens whose counterfactuals are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfmvc_scvi._types import obs_of
from cfmvc_scvi.data.simulate.cells import draw_annotations, draw_labels, draw_layout, draw_library_size
from cfmvc_scvi.data.simulate.design import ScreenDesign
from cfmvc_scvi.data.simulate.draw_truth import draw_truth
from cfmvc_scvi.data.simulate.truth import TRUTH_KEY, Truth

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
        Fraction of the genes that perturbations move; on all other genes their effect is 0.
    shared_fraction, state_fraction
        Share of the effect's variance that all cell types have in common, and share that depends on the cell state.
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
        Keep only this number of random genes, as a targeted panel does. ``obs["library_size"]`` still refers to all
        `n_genes`, and is then the column to use as ``size_factor_key``.
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
    in it, so the effect of a perturbation without cells can be learned from other perturbations and their vectors.
    :math:`A` is the part shared by all cell types, :math:`C` the cell-type-specific, :math:`D` the state-dependent part
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
    design = ScreenDesign(
        n_cells=n_cells,
        n_genes=n_genes,
        n_cell_types=n_cell_types,
        n_batches=n_batches,
        n_perturbations=n_perturbations,
        n_pairs=n_pairs,
        interaction=interaction,
        effect_size=effect_size,
        affected_fraction=affected_fraction,
        shared_fraction=shared_fraction,
        state_fraction=state_fraction,
        n_embedding=n_embedding,
        embedding_noise=embedding_noise,
        doses=doses,
        cell_type_effect=cell_type_effect,
        n_state=n_state,
        state_effect=state_effect,
        batch_effect=batch_effect,
        confounding=confounding,
        control_fraction=control_fraction,
        mean_library_size=mean_library_size,
        library_size_sd=library_size_sd,
        dispersion=dispersion,
        spatial=spatial,
        spatial_gradient=spatial_gradient,
        n_panel_genes=n_panel_genes,
        control=control,
        seed=seed,
    )
    return _draw_screen(design, store_true_mean=store_true_mean)


def _draw_screen(design: ScreenDesign, *, store_true_mean: bool) -> AnnData:
    """Draw cells of a design; genes, vectors, cells, places and counts each have a random stream of their own."""
    gene_rng, vector_rng, design_rng, place_rng, cell_rng, count_rng = np.random.default_rng(design.seed).spawn(6)
    labels = draw_labels(design, design_rng)
    truth = draw_truth(design, gene_rng, vector_rng)
    obs = draw_annotations(design, labels, truth, design_rng)
    layout = draw_layout(obs, place_rng)
    state = cell_rng.standard_normal((design.n_cells, design.n_state))
    if design.spatial:
        # sqrt(2) cos(pi x) has variance 1 over the square, so the state keeps variance 1 and has this correlation.
        gradient = np.sqrt(2) * np.cos(np.pi * layout[:, 0])
        correlation = design.spatial_gradient
        state[:, 0] = np.sqrt(1 - correlation**2) * state[:, 0] + correlation * gradient
    obs["library_size"] = draw_library_size(design, obs["batch"].cat.codes.to_numpy(), cell_rng)

    adata = AnnData(obs=obs, var=pd.DataFrame(index=pd.Index(truth.genes)))
    adata.obsm["true_state"] = state.astype(np.float32)
    if design.spatial:
        adata.obsm["spatial"] = _LAYOUT_SIZE * layout
    adata.var["dispersion"] = truth.dispersion
    adata.var["affected"] = truth.affected
    adata.uns["simulation"] = truth.to_uns()
    vectors = truth.vectors + design.embedding_noise * vector_rng.standard_normal(truth.vectors.shape)
    adata.uns["perturbation_embedding"] = pd.DataFrame(
        vectors, index=pd.Index(truth.perturbations), columns=[f"v{q + 1}" for q in range(design.n_embedding)]
    )
    if design.n_panel_genes is not None:
        panel = np.sort(design_rng.choice(design.n_genes, design.n_panel_genes, replace=False))
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
        any order, measured or not; a control member changes nothing, a repeated member counts once).
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
