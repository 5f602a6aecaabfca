"""Vectors of perturbations from files, brought together, and what they say about effects."""

from cfmvc_scvi.data.vectors.read import read_vectors

__all__ = ["read_vectors"]
