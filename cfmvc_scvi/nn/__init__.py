"""The networks, one per file."""

from cfmvc_scvi.nn.context import ContextEncoder, PerturbationAdapter
from cfmvc_scvi.nn.decoder import Decoder
from cfmvc_scvi.nn.encoder import Encoder, Posterior
from cfmvc_scvi.nn.flow_field import FlowField, VelocityParts

__all__ = ["ContextEncoder", "Encoder", "FlowField", "Decoder", "PerturbationAdapter", "Posterior", "VelocityParts"]
