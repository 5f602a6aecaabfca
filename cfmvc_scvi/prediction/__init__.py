"""From what is asked for to an AnnData: conditions, cells, expression, support."""

from cfmvc_scvi.prediction.request import PredictionCall, Request, RequestReader
from cfmvc_scvi.prediction.sources import SourceCells

__all__ = ["PredictionCall", "Request", "RequestReader", "SourceCells"]
