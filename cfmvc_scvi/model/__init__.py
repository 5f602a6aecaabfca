"""The model class users meet."""

from cfmvc_scvi.model.cfmvc import CFMVC

__all__ = ["CFMVC"]
