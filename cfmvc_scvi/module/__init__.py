"""The torch module of CFM-VC."""

from cfmvc_scvi.module.cfmvc_module import CFMVCModule

__all__ = ["CFMVCModule"]
