"""Names that several layers share: registry keys, conventional columns, usual names of a control group."""

from __future__ import annotations

from typing import Final, NamedTuple


class _Auto:
    """Type of :data:`AUTO`: take the conventional column when it is there, otherwise none."""

    _instance: _Auto | None = None

    def __new__(cls) -> _Auto:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "AUTO"

    def __reduce__(self) -> str:
        return "AUTO"


AUTO: Final = _Auto()


class _CFMVCKeys(NamedTuple):
    """Registry keys that scvi-tools does not have."""

    PERTURBATION_KEY: str = "perturbation"
    DOSAGE_KEY: str = "dosage"
    SPATIAL_KEY: str = "spatial"


CFMVC_KEYS: Final = _CFMVCKeys()

#: Columns of ``adata.obs`` that :data:`AUTO` looks for.
CONVENTIONAL_OBS: Final[dict[str, str]] = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "perturbation_key": "perturbation",
}
#: Arrays of ``adata.obsm`` that :data:`AUTO` looks for.
CONVENTIONAL_OBSM: Final[dict[str, str]] = {"spatial_key": "spatial"}

#: Usual names of unperturbed cells, compared without regard to case.
CONTROL_NAMES: Final[tuple[str, ...]] = (
    "control",
    "ctrl",
    "non-targeting",
    "nt",
    "dmso",
    "vehicle",
    "pbs",
    "unstimulated",
    "untreated",
    "mock",
)

#: What a cell without any perturbation is called where perturbations are given as a presence matrix.
NO_PERTURBATION: Final = "control"

#: Bounds of the log-variances of both latents; values beyond them are set to the bound.
LOGVAR_BOUNDS: Final[tuple[float, float]] = (-10.0, 10.0)

#: Few counts are larger: for these the loss computes gamma functions, for smaller ones it counts how often each occurs.
LARGE_COUNT: Final = 16

#: Counts per 10,000: every cell's counts are divided by its library size and multiplied by this number before log1p.
CP10K: Final = 1e4
