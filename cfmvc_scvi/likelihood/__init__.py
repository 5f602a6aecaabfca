"""Distributions of counts: what is asked of one, and the negative binomial."""

from cfmvc_scvi.likelihood.base import LIKELIHOODS, Likelihood, get_likelihood, register_likelihood
from cfmvc_scvi.likelihood.negative_binomial import NegativeBinomial

register_likelihood("nb", NegativeBinomial)

__all__ = ["LIKELIHOODS", "Likelihood", "NegativeBinomial", "get_likelihood", "register_likelihood"]
