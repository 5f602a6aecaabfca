"""What is simulated: sizes, effects and confounding of a screen, checked when they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Integral, Real
from typing import Any

import numpy as np

from cfmvc_scvi.data.simulate.truth import DELIMITER


@dataclass(frozen=True, kw_only=True)
class ScreenDesign:
    """Arguments of :func:`simulate_perturbation`, where they are described; out of range, they are refused.

    Raises
    ------
    ValueError
        For an argument outside of its range, with the range and what was given.
    """

    n_cells: int
    n_genes: int
    n_cell_types: int
    n_batches: int
    n_perturbations: int
    n_pairs: int
    interaction: float
    effect_size: float
    affected_fraction: float
    shared_fraction: float
    state_fraction: float
    n_embedding: int
    embedding_noise: float
    doses: Sequence[float] | None
    cell_type_effect: float
    n_state: int
    state_effect: float
    batch_effect: float
    confounding: float
    control_fraction: float
    mean_library_size: float | None
    library_size_sd: float
    dispersion: float
    spatial: bool
    spatial_gradient: float
    n_panel_genes: int | None
    control: str
    seed: int

    def __post_init__(self) -> None:
        """Refuse arguments out of range."""
        for names, allowed, fits in _RANGES:
            for name in names:
                if not fits(getattr(self, name)):
                    raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)!r}.")
        if self.shared_fraction + self.state_fraction > 1 + 1e-9:
            raise ValueError(
                f"shared_fraction + state_fraction must not exceed 1, got {self.shared_fraction!r} + "
                f"{self.state_fraction!r}. The rest is the cell-type-specific share."
            )
        self._check_conditions()
        self._check_panel()

    @property
    def perturbations(self) -> list[str]:
        """Names of the perturbations, ``"P1"``, ``"P2"``, ..."""
        return numbered("P", self.n_perturbations)

    @property
    def possible_pairs(self) -> list[tuple[str, str]]:
        """All pairs of two perturbations."""
        return list(combinations(self.perturbations, 2))

    @property
    def doses_of_arms(self) -> list[float]:
        """Doses at which every perturbation is measured; the one dose 1 where there are no doses."""
        return [1.0] if self.doses is None else [float(dose) for dose in self.doses]

    def _check_conditions(self) -> None:
        """Refuse pairs, a control, confounding and doses that cannot be."""
        possible = len(self.possible_pairs)
        if self.n_pairs > possible:
            raise ValueError(
                f"n_pairs={self.n_pairs}, but {self.n_perturbations} perturbations make {possible} pairs. "
                "Lower n_pairs or raise n_perturbations."
            )
        is_name = isinstance(self.control, str) and self.control and DELIMITER not in self.control
        if not is_name or self.control in self.perturbations:
            raise ValueError(
                f"control must be a non-empty string without {DELIMITER!r} that is no perturbation's name "
                f"('P1', ...), got {self.control!r}."
            )
        n_labels = self.n_perturbations + self.n_pairs
        if self.confounding > 0 and n_labels < self.n_batches:
            raise ValueError(
                f"confounding={self.confounding} gives every batch perturbations of its own, but there are "
                f"{n_labels} for {self.n_batches} batches. Raise n_perturbations."
            )
        if self.doses is None:
            return
        doses = list(self.doses) if isinstance(self.doses, Iterable) else []
        if not doses or len(set(doses)) < len(doses) or not all(_is_number(d) and 0 < d < np.inf for d in doses):
            raise ValueError(
                f"doses must be distinct finite numbers above 0, got {self.doses!r}. Dose 0 is the control, which is "
                "always there; None is for no doses."
            )

    def _check_panel(self) -> None:
        """Refuse a panel with more genes than there are."""
        panel = self.n_panel_genes
        if panel is not None and not (isinstance(panel, Integral) and 1 <= panel <= self.n_genes):
            raise ValueError(
                f"n_panel_genes must be None or an integer from 1 to n_genes={self.n_genes}, got {panel!r}."
            )


def numbered(stem: str, n: int) -> list[str]:
    """``stem1``, ``stem2``, ..."""
    return [f"{stem}{i + 1}" for i in range(n)]


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not np.isnan(float(value))


def _is_positive(value: object) -> bool:
    return isinstance(value, Real) and _is_number(value) and 0 < float(value) < np.inf


#: Arguments, what they may be in words, and whether a value is that.
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (("n_pairs", "seed"), "an integer of at least 0", lambda value: _is_integer(value) and value >= 0),
    (
        ("n_cells", "n_cell_types", "n_batches", "n_perturbations", "n_embedding", "n_state"),
        "an integer of at least 1",
        lambda value: _is_integer(value) and value >= 1,
    ),
    (("n_genes",), "an integer of at least 2", lambda value: _is_integer(value) and value >= 2),
    (
        ("affected_fraction", "shared_fraction", "state_fraction", "confounding", "spatial_gradient"),
        "a number between 0 and 1",
        lambda value: _is_number(value) and 0 <= value <= 1,
    ),
    (
        (
            *("effect_size", "interaction", "embedding_noise", "cell_type_effect"),
            *("state_effect", "batch_effect", "library_size_sd"),
        ),
        "a finite number of at least 0",
        lambda value: _is_number(value) and 0 <= value < np.inf,
    ),
    (("dispersion",), "a finite number above 0", _is_positive),
    (("mean_library_size",), "None or a finite number above 0", lambda value: value is None or _is_positive(value)),
    (("control_fraction",), "above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1),
)
