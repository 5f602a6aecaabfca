"""The mean effect on every gene, from the training populations, and the correction of decoded changes by it."""

from cfmvc_scvi.calibration.calibration import Calibration, Uncalibrated, make_calibration
from cfmvc_scvi.calibration.estimate import ESTIMATORS, EffectEstimator, EffectQuery, register_estimator
from cfmvc_scvi.calibration.state import CalibrationState, ObservedEffects

__all__ = [
    "ESTIMATORS",
    "Calibration",
    "CalibrationState",
    "EffectEstimator",
    "EffectQuery",
    "ObservedEffects",
    "Uncalibrated",
    "make_calibration",
    "register_estimator",
]
