"""The torch module of CFM-VC."""

from cfmvc_scvi.module.cfmvc_module import CFMVCModule
from cfmvc_scvi.module.elbo import ElboTerms

__all__ = ["CFMVCModule", "ElboTerms"]
