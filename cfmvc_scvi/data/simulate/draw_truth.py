"""Draw the parameters of a simulated screen."""

from __future__ import annotations

import numpy as np

from cfmvc_scvi.data.simulate.design import ScreenDesign, numbered
from cfmvc_scvi.data.simulate.truth import Truth


def draw_truth(design: ScreenDesign, rng: np.random.Generator, vector_rng: np.random.Generator) -> Truth:
    """Parameters of the genes, cell types, batches and perturbations."""
    n_genes, n_types, n_state, n_dims = design.n_genes, design.n_cell_types, design.n_state, design.n_embedding
    n_affected = round(design.affected_fraction * n_genes)
    # Each dimension of the vectors moves about half of the affected genes; every affected gene has at least one.
    in_programme = np.zeros((n_dims, n_genes), bool)
    affected = rng.choice(n_genes, n_affected, replace=False)
    in_programme[:, affected] = rng.random((n_dims, n_affected)) < 0.5
    in_programme[rng.integers(n_dims, size=n_affected), affected] = True
    scale = design.effect_size * in_programme / np.sqrt(np.maximum(in_programme.sum(axis=0), 1))

    def loadings(share: float, *leading: int) -> np.ndarray:
        # A uniform number between 0.5 and 1.5 has the mean square 1 + 1/12: divided by its root, 1.
        size = rng.uniform(0.5, 1.5, (*leading, n_dims, n_genes)) / np.sqrt(13 / 12)
        return np.sqrt(share) * scale * size * rng.choice([-1.0, 1.0], size.shape)

    def sparse_normal(sd: float, n_rows: int) -> np.ndarray:
        return sd * rng.standard_normal((n_rows, n_genes)) * (rng.random((n_rows, n_genes)) < 0.2)

    specific = max(1 - design.shared_fraction - design.state_fraction, 0.0)
    vectors = vector_rng.standard_normal((design.n_perturbations, n_dims))
    vectors *= np.sqrt(n_dims) / np.linalg.norm(vectors, axis=1, keepdims=True)
    half_dose = np.empty(0)
    if design.doses is not None:
        low, high = np.log(min(design.doses)), np.log(max(design.doses))
        half_dose = np.exp(low + (high - low) * vector_rng.uniform(0.2, 0.8, design.n_perturbations))
    return Truth(
        control=design.control,
        genes=numbered("gene", n_genes),
        cell_types=numbered("type", n_types),
        batches=numbered("batch", design.n_batches),
        perturbations=design.perturbations,
        baseline=np.minimum(1.2 * rng.standard_normal(n_genes), 1.5),
        dispersion=design.dispersion * np.exp(0.5 * rng.standard_normal(n_genes)),
        cell_type_programme=sparse_normal(design.cell_type_effect, n_types),
        state_loadings=sparse_normal(design.state_effect, n_state),
        batch_effect=design.batch_effect * rng.standard_normal((design.n_batches, n_genes)),
        effect_shared=loadings(design.shared_fraction),
        effect_cell_type=loadings(specific, n_types),
        effect_state=loadings(design.state_fraction / n_state, n_state),
        effect_pair=loadings(design.interaction**2),
        vectors=vectors,
        half_dose=half_dose,
    )
