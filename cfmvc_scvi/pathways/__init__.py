"""What effects mean: gene sets scored by decoupler."""

from cfmvc_scvi.pathways.gene_sets import read_gmt
from cfmvc_scvi.pathways.score import score_gene_sets

__all__ = ["read_gmt", "score_gene_sets"]
