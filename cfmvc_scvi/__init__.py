"""How would these cells look under that perturbation? Conditional flow matching on scvi-tools."""

from importlib.metadata import version

from cfmvc_scvi import data, metrics, pathways, pl
from cfmvc_scvi._constants import AUTO
from cfmvc_scvi.model import CFMVC
from cfmvc_scvi.module import CFMVCModule

__version__ = version("cfmvc_scvi")

__all__ = ["AUTO", "CFMVC", "CFMVCModule", "__version__", "data", "metrics", "pathways", "pl"]
