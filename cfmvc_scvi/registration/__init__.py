"""What the user says of the AnnData: columns, labels, doses, and the checks of all of them."""

from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.registration import CellConditions, Registration
from cfmvc_scvi.registration.vocabulary import Condition, PerturbationVocabulary, UnknownPerturbationError

__all__ = [
    "CellConditions",
    "Condition",
    "PerturbationVocabulary",
    "Registration",
    "SetupKeys",
    "UnknownPerturbationError",
]
