"""The two training plans, and what runs them."""

from cfmvc_scvi.train.checkpoint import CheckpointFolder
from cfmvc_scvi.train.flow_plan import FlowTrainingPlan
from cfmvc_scvi.train.parts import reject_unknown
from cfmvc_scvi.train.run import run_stage
from cfmvc_scvi.train.state import ModelState, StageArguments
from cfmvc_scvi.train.vae_plan import VAETrainingPlan

__all__ = [
    "CheckpointFolder",
    "FlowTrainingPlan",
    "ModelState",
    "StageArguments",
    "VAETrainingPlan",
    "reject_unknown",
    "run_stage",
]
