"""The mean effect on every gene, from the training populations, and the correction of decoded changes by it."""

from cfmvc_scvi.calibration.calibration import Calibration, CalibrationState, ObservedEffects, Uncalibrated
from cfmvc_scvi.calibration.estimate import ESTIMATORS, EffectEstimator, EffectQuery, register_estimator

__all__ = [
    "ESTIMATORS",
    "Calibration",
    "CalibrationState",
    "EffectEstimator",
    "EffectQuery",
    "ObservedEffects",
    "Uncalibrated",
    "register_estimator",
]
