"""Vectors of perturbations from files, brought together, and what they say about effects."""

from cfmvc_scvi.data.vectors.combine import combine_vectors
from cfmvc_scvi.data.vectors.effects import effect_vectors, mean_effects
from cfmvc_scvi.data.vectors.evidence import vector_evidence
from cfmvc_scvi.data.vectors.read import read_vectors

__all__ = ["combine_vectors", "effect_vectors", "mean_effects", "read_vectors", "vector_evidence"]
