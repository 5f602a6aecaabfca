"""Parameters of a simulated screen and the mean counts they imply.

:func:`~cfmvc_scvi.data.simulate_perturbation` states the model, with the symbols used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from scipy.special import expit

from cfmvc_scvi._messages import close_matches, shortened

DELIMITER: Final = "+"
TRUTH_KEY: Final = "simulation"
_HILL: Final = 1.5
#: Rows of every matrix product. BLAS rounds differently for different shapes: with one shape for all, the mean of a
#: cell has the same bits whichever other cells are asked for with it.
_BLOCK_ROWS: Final = 256


@dataclass(kw_only=True, frozen=True)
class Truth:
    """Parameters of the genes, cell types, batches and perturbations of a screen: all of it except the cells.

    Shapes: G genes, C cell types, B batches, P perturbations, S state dimensions, Q dimensions of their vectors.
    """

    control: str
    genes: list[str]
    cell_types: list[str]
    batches: list[str]
    perturbations: list[str]
    baseline: np.ndarray  #: (G,)
    dispersion: np.ndarray  #: (G,)
    cell_type_programme: np.ndarray  #: (C, G)
    state_loadings: np.ndarray  #: (S, G)
    batch_effect: np.ndarray  #: (B, G)
    effect_shared: np.ndarray  #: (Q, G)
    effect_cell_type: np.ndarray  #: (C, Q, G)
    effect_state: np.ndarray  #: (S, Q, G)
    effect_pair: np.ndarray  #: (Q, G)
    vectors: np.ndarray  #: (P, Q)
    half_dose: np.ndarray  #: (P,), or (0,) without doses

    def to_uns(self) -> dict[str, Any]:
        """As arrays and strings that an ``.h5ad`` can hold."""
        return {k: v if isinstance(v, str) else np.asarray(v) for k, v in asdict(self).items()}

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> Truth:
        """Back from :meth:`to_uns`."""
        missing = [field.name for field in fields(cls) if field.name not in stored]
        if missing:
            raise KeyError(
                f"adata.uns[{TRUTH_KEY!r}] lacks {missing}: it was written by another version of "
                "simulate_perturbation, or edited. Simulate the data again."
            )
        names = ("genes", "cell_types", "batches", "perturbations")
        values = {f.name: stored[f.name] for f in fields(cls)}
        values |= {name: [str(value) for value in values[name]] for name in names}
        return cls(**values | {"control": str(values["control"])})

    @property
    def affected(self) -> np.ndarray:
        """Genes that any perturbation moves, (G,) bool."""
        parts = (self.effect_shared, self.effect_cell_type, self.effect_state, self.effect_pair)
        return np.any([part.reshape(-1, len(self.genes)).any(axis=0) for part in parts], axis=0)

    def codes(self, what: Literal["genes", "cell_types", "batches"], names: Iterable[str]) -> np.ndarray:
        """Positions of names among those simulated; unknown ones are refused."""
        known = pd.Index(getattr(self, what))
        codes = known.get_indexer(pd.Index(names).astype(object))
        if (codes < 0).any():
            unknown = pd.Index(names)[codes < 0].unique().tolist()
            raise ValueError(
                f"{what} {shortened(unknown, 5)} were not simulated. Simulated were {shortened(known)}."
                f"{close_matches(unknown, known)} Use the names that simulate_perturbation gave."
            )
        return codes

    def condition_vectors(
        self, labels: str | Sequence[str], dosage: Any, *, n_cells: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Effect and pair features of each cell's condition, (n_cells, Q) both."""
        conditions = zip(_per_cell("perturbation", labels, n_cells), _per_cell("dosage", dosage, n_cells), strict=True)
        position: dict[tuple[Any, Any], int] = {}
        codes = [position.setdefault(condition, len(position)) for condition in conditions]
        features = np.array([self._features(*condition) for condition in position])
        features = features.reshape(-1, 2, self.vectors.shape[1])[codes]
        return features[:, 0], features[:, 1]

    def _features(self, label: str, dose: Any) -> tuple[np.ndarray, np.ndarray]:
        """``sum_k r_k v_k`` and ``sum_{k<l} r_k r_l v_k v_l`` of one condition."""
        weighted = [response * self.vectors[k] for k, response in sorted(self._responses(label, dose).items())]
        zero = np.zeros(self.vectors.shape[1])
        pairs = (a * b for i, a in enumerate(weighted) for b in weighted[i + 1 :])
        return sum(weighted, zero), sum(pairs, zero)

    def _responses(self, label: str, dose: Any) -> dict[int, float]:
        """Response in [0, 1] of each perturbation (by position) of a label; the control has none."""
        members = str(label).split(DELIMITER)
        known = {name: k for k, name in enumerate(self.perturbations)}
        unknown = [member for member in members if member not in known and member != self.control]
        if unknown:
            raise ValueError(
                f"Unknown perturbation {shortened(unknown)} in {label!r}.{close_matches(unknown, known)} Known: "
                f"{shortened([self.control, *known], 20)}, and combinations of these joined by {DELIMITER!r}."
            )
        doses = self._member_doses(label, members, dose)
        responses: dict[int, float] = {}
        for member, value in zip(members, doses, strict=True):
            if member != self.control:
                k = known[member]
                responses[k] = max(responses.get(k, 0.0), self._response(k, value))
        return responses

    def _member_doses(self, label: str, members: list[str], dose: Any) -> list[float | None]:
        """One dose per member of a label; ``None`` where there are no doses."""
        if len(self.half_dose) == 0:
            if dose is not None:
                raise ValueError("These data were simulated without doses: leave dosage=None, or simulate with doses=.")
            return [None] * len(members)
        if dose is None:
            if set(members) == {self.control}:
                return [0.0] * len(members)
            raise ValueError(f"These data were simulated with doses: give dosage= for {label!r} (0 is control).")
        parts = dose.split(DELIMITER) if isinstance(dose, str) else [dose]
        try:
            values = [float(part) for part in parts]
        except (TypeError, ValueError):
            values = []
        if len(values) == 1:
            values *= len(members)
        if len(values) != len(members) or not all(0 <= value < np.inf for value in values):
            raise ValueError(
                f"dosage {dose!r} of {label!r}: allowed are one finite number of at least 0, or one per "
                f"member joined by {DELIMITER!r}."
            )
        return list(values)

    def _response(self, perturbation: int, dose: float | None) -> float:
        """Hill curve: 0 at dose 0, rising, at most 1."""
        if dose is None:
            return 1.0
        if dose == 0:
            return 0.0
        return float(expit(_HILL * (np.log(dose) - np.log(self.half_dose[perturbation]))))

    def mean(
        self,
        *,
        state: np.ndarray,
        cell_types: np.ndarray,
        batches: np.ndarray,
        effects: np.ndarray,
        pairs: np.ndarray,
        library_size: np.ndarray,
        genes: np.ndarray,
    ) -> np.ndarray:
        """Expected counts, (n_cells, len(genes)) float32."""
        state = np.asarray(state, dtype=np.float64)
        n_cells = len(state)
        state_effects = np.hstack([state[:, [s]] * effects for s in range(state.shape[1])])
        in_batch = np.eye(len(self.batches))[batches]
        design = np.hstack([np.ones((n_cells, 1)), state, in_batch, effects, state_effects, pairs])
        every_gene = np.array_equal(genes, np.arange(len(self.genes)))
        mean = np.empty((n_cells, len(genes)), np.float32)
        for cell_type in np.unique(cell_types):
            loadings = self._loadings(cell_type)
            cells = np.flatnonzero(cell_types == cell_type)
            for start in range(0, len(cells), _BLOCK_ROWS):
                rows = cells[start : start + _BLOCK_ROWS]
                fractions = _softmax_product(design[rows], loadings)
                fractions = fractions if every_gene else fractions[:, genes]
                mean[rows] = library_size[rows, None] * fractions
        return mean

    def _loadings(self, cell_type: int) -> np.ndarray:
        """Genes' coefficients in a cell type, one row per column of the design."""
        return np.vstack(
            [
                self.baseline + self.cell_type_programme[cell_type],
                self.state_loadings,
                self.batch_effect,
                self.effect_shared + self.effect_cell_type[cell_type],
                self.effect_state.reshape(-1, len(self.genes)),
                self.effect_pair,
            ]
        )


def _softmax_product(design: np.ndarray, loadings: np.ndarray) -> np.ndarray:
    """Softmax over genes of ``design @ loadings``, for at most ``_BLOCK_ROWS`` rows."""
    block = np.zeros((_BLOCK_ROWS, design.shape[1]))
    block[: len(design)] = design
    log_rate = (block @ loadings)[: len(design)]
    log_rate -= log_rate.max(axis=1, keepdims=True)
    rate = np.exp(log_rate, out=log_rate)
    rate /= rate.sum(axis=1, keepdims=True)
    return rate


def _per_cell(name: str, value: Any, n_cells: int) -> list[Any]:
    """One value per cell."""
    if value is None or isinstance(value, (str, Real)):
        return [value] * n_cells
    values = list(value)
    if len(values) != n_cells:
        raise ValueError(f"{name} must be one value for all cells or one for each of the {n_cells}, got {len(values)}.")
    return values
