"""Data: simulated screens, loaders of public data sets, vectors of perturbations, counts that stay on disk."""

from cfmvc_scvi.data.datasets import (
    cao2018,
    gasperini2019,
    kang2018,
    kang2018_all,
    moffitt2018_merfish,
    papalexi2021,
    tian2019_cellbench,
    wang2018_starmap,
)
from cfmvc_scvi.data.embeddings import coexpression_embedding, gene_loadings, onehot_embedding, smiles_fingerprints
from cfmvc_scvi.data.importer import import_counts
from cfmvc_scvi.data.on_disk import open_counts
from cfmvc_scvi.data.simulate import counterfactual_mean, simulate_perturbation
from cfmvc_scvi.data.vectors import combine_vectors, effect_vectors, mean_effects, read_vectors, vector_evidence

__all__ = [
    "cao2018",
    "coexpression_embedding",
    "combine_vectors",
    "counterfactual_mean",
    "effect_vectors",
    "gasperini2019",
    "gene_loadings",
    "import_counts",
    "kang2018",
    "kang2018_all",
    "mean_effects",
    "moffitt2018_merfish",
    "onehot_embedding",
    "open_counts",
    "papalexi2021",
    "read_vectors",
    "simulate_perturbation",
    "smiles_fingerprints",
    "tian2019_cellbench",
    "vector_evidence",
    "wang2018_starmap",
]
