"""Perturbation labels, doses and embeddings: from what the user writes to the vector the network reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cfmvc_scvi._messages import close_matches, shortened
from cfmvc_scvi.registration.dose import HillCurve
from cfmvc_scvi.registration.labels import split_label
from cfmvc_scvi.registration.members import Members
from cfmvc_scvi.registration.spelling import split_doses, text_of, texts_of


@dataclass(frozen=True)
class Condition:
    """Perturbations applied together, each with its dose; no members means control.

    Attributes
    ----------
    label
        The label as the user wrote it.
    members
        Names of the perturbations, sorted, controls left out.
    doses
        One dose per member; 1.0 where the data have no doses.
    """

    label: str
    members: tuple[str, ...] = ()
    doses: tuple[float, ...] = ()

    @property
    def is_control(self) -> bool:
        """Whether nothing is applied."""
        return not self.members

    @property
    def key(self) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """What identifies the condition, whatever its spelling."""
        return self.members, self.doses

    def parts(self) -> list[Condition]:
        """Every member alone, at its dose."""
        return [Condition(member, (member,), (dose,)) for member, dose in zip(self.members, self.doses, strict=True)]


class UnknownPerturbationError(ValueError):
    """A perturbation that was not in the training data and has no embedding."""


class PerturbationVocabulary:
    r"""The perturbations of a data set and the vector :math:`p` of every condition.

    .. math:: p = \sum_{k \in \text{members}} r_k(\text{dose}_k) \, e_k

    with :math:`e_k` the unit vector of perturbation :math:`k`, or its row of the embedding divided by the
    mean norm of the embedding, and :math:`r_k` its dose response, 1 at the reference dose: the curve learned in
    training, before that the dose divided by the reference dose. Control is the zero vector, and so is dose 0.

    Parameters
    ----------
    control_group
        Labels of unperturbed cells.
    names
        Perturbations seen in training, controls left out.
    combination_delimiter
        Splits a label into members; ``None`` never splits.
    embedding
        Vector per perturbation, seen or not; ``None`` for one-hot vectors.
    reference_dose
        Dose per perturbation at which its vector has weight 1; missing ones have 1.0.
    dose_response
        Parameters of the :class:`~cfmvc_scvi.registration.dose.HillCurve` of every perturbation, as trained.
    """

    def __init__(
        self,
        control_group: Sequence[str],
        names: Sequence[str],
        combination_delimiter: str | None = None,
        embedding: Mapping[str, np.ndarray] | None = None,
        reference_dose: Mapping[str, float] | None = None,
        dose_response: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        self.control_group = tuple(control_group)
        self.names = tuple(names)
        self.combination_delimiter = combination_delimiter
        self.reference_dose = dict(reference_dose or {})
        self._curves = {name: HillCurve(**curve) for name, curve in (dose_response or {}).items()}
        self.has_embedding = embedding is not None
        self._rank = {name: i for i, name in enumerate(self.names)}
        self._row = self._rank if embedding is None else {name: i for i, name in enumerate(embedding)}
        self._table = None if embedding is None else _scaled(embedding)
        missing = [name for name in self.names if name not in self._row]
        if missing:
            raise ValueError(
                f"`perturbation_embedding_key` has no vector for {len(missing)} perturbations of the data: "
                f"{shortened(missing)}. Every perturbation except the control needs one."
            )

    @classmethod
    def from_registry(
        cls, state: Mapping[str, Any], dose_response: Mapping[str, Mapping[str, float]] | None = None
    ) -> PerturbationVocabulary:
        """Vocabulary of a saved state, the counterpart of :meth:`to_registry`."""
        return cls(**{key: state[key] for key in _STATE_KEYS}, dose_response=dose_response)

    def to_registry(self, embedding: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
        """Plain containers that :meth:`from_registry` reads back."""
        return {
            "control_group": list(self.control_group),
            "names": list(self.names),
            "combination_delimiter": self.combination_delimiter,
            "embedding": None if embedding is None else {k: np.asarray(v) for k, v in embedding.items()},
            "reference_dose": self.reference_dose,
        }

    @property
    def n_features(self) -> int:
        """Length of the vector :math:`p`; 1 where there is no perturbation at all."""
        return self._table.shape[1] if self._table is not None else max(len(self.names), 1)

    @property
    def control_label(self) -> str:
        """The label written for unperturbed cells."""
        return self.control_group[0]

    def parse(self, label: str, dosage: float | str | None = None) -> Condition:
        """Condition of a label and its dose.

        Raises
        ------
        ValueError
            When the number of doses is neither 1 nor the number of members, or a dose is negative or not
            finite.
        """
        label = text_of(label)
        members = split_label(label, self.combination_delimiter, self.control_group)
        doses = self._parse_doses(label, dosage)
        merged: dict[str, float] = {}
        for member, dose in zip(members, doses, strict=True):
            if member in self.control_group or dose == 0:
                continue
            merged[member] = dose if dosage is None else merged.get(member, 0.0) + dose
        ordered = sorted(merged)
        return Condition(label, tuple(ordered), tuple(merged[name] for name in ordered))

    def _parse_doses(self, label: str, dosage: float | str | None) -> list[float]:
        members = split_label(label, self.combination_delimiter, self.control_group)
        n_members = len(members)
        if dosage is None or all(member in self.control_group for member in members):
            return [1.0] * n_members
        delimiter = self.combination_delimiter
        parts = split_doses(dosage, delimiter) if isinstance(dosage, str) else [dosage]
        try:
            doses = [float(part) for part in parts]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Dosage {dosage!r} of perturbation {label!r} is not a number, nor numbers delimited by {delimiter!r}."
            ) from error
        if len(doses) == 1:
            doses *= n_members
        if len(doses) != n_members:
            raise ValueError(
                f"Perturbation {label!r} has {n_members} members but dosage {dosage!r} has {len(doses)}: "
                "give one dose for all or one per member."
            )
        if not all(np.isfinite(dose) and dose >= 0 for dose in doses):
            raise ValueError(f"Dosage {dosage!r} of perturbation {label!r} must be finite and not negative.")
        return doses

    def encode(self, conditions: Iterable[Condition]) -> np.ndarray:
        """Vectors of the conditions, shape (n, n_features), float32.

        Raises
        ------
        UnknownPerturbationError
            Naming the perturbation, its close matches and the known ones.
        """
        return self.encode_members(conditions).sum(axis=1)

    def encode_members(self, conditions: Iterable[Condition]) -> np.ndarray:
        """Weighted vectors of the members of a few conditions, shape (n, most members, n_features), float32.

        Rows beyond the members of a condition are zero. The members are in the order of the vocabulary, so that sums
        over them have the same bits however the label was written and whatever the names are.

        Raises
        ------
        UnknownPerturbationError
            Naming the perturbation, its close matches and the known ones.
        """
        return self.members(conditions).dense()

    def members(self, conditions: Iterable[Condition]) -> Members:
        """The same for any number of conditions: members as rows of the table of vectors, and their weights.

        Raises
        ------
        UnknownPerturbationError
            Naming the perturbation, its close matches and the known ones.
        """
        conditions = list(conditions)
        most = max((len(condition.members) for condition in conditions), default=0)
        index = np.full((len(conditions), max(most, 1)), -1, dtype=np.int32)
        weight = np.zeros(index.shape, dtype=np.float32)
        for row, condition in enumerate(conditions):
            for place, (member, dose) in enumerate(self._in_order(condition)):
                index[row, place], weight[row, place] = self._row_of(member), self.response(member, dose)
        return Members(index, weight, self._table, self.n_features)

    def measured(self, condition: Condition) -> np.ndarray:
        """Whether each member of a condition is among the data, in the order of :meth:`encode_members`."""
        return np.array([member in self._rank for member, _ in self._in_order(condition)], dtype=bool)

    def stream_key(self, condition: Condition) -> tuple[tuple[int | str, float], ...]:
        """What random draws for a condition depend on: positions in the vocabulary (names beyond it) and doses."""
        return tuple((self._rank.get(member, member), dose) for member, dose in self._in_order(condition))

    def _in_order(self, condition: Condition) -> list[tuple[str, float]]:
        members = zip(condition.members, condition.doses, strict=True)
        return sorted(members, key=lambda pair: (self._rank.get(pair[0], len(self._rank)), pair[0]))

    def response(self, name: str, dose: float) -> float:
        """Response of a perturbation to a dose, 1 at its reference dose."""
        if name in self._curves:
            return self._curves[name](dose)
        return dose / self.reference_dose.get(name, 1.0)

    def _row_of(self, name: str) -> int:
        if name in self._row:
            return self._row[name]
        known = sorted(self._row)
        raise UnknownPerturbationError(
            f"Unknown perturbation {name!r}.{close_matches(name, known, n=3, cutoff=0.5)} Known: "
            f"{shortened(known, 30)}; "
            f"control: {list(self.control_group)}. A perturbation that was not measured can be predicted only from "
            "a vector: give one for it in `perturbation_embedding_key` of `setup_anndata`."
        )


_STATE_KEYS = ("control_group", "names", "combination_delimiter", "embedding", "reference_dose")


def cell_conditions(
    vocabulary: PerturbationVocabulary,
    labels: np.ndarray | Sequence[str],
    dosage: np.ndarray | Sequence[float | str] | None,
) -> tuple[np.ndarray, list[Condition]]:
    """Distinct conditions of a data set and the index of each cell's own, shape (n_cells,).

    Condition 0 is control. Spellings of one condition ("A+B", "B+A") share an index.
    """
    label_codes, names = pd.factorize(texts_of(np.asarray(labels)))
    dose_codes, doses = (
        (0, np.array([np.nan])) if dosage is None else pd.factorize(np.asarray(dosage), use_na_sentinel=False)
    )
    codes, pairs = pd.factorize(label_codes * len(doses) + dose_codes)  # no tuple for every cell is made
    index: dict[tuple, int] = {((), ()): 0}
    conditions = [Condition(vocabulary.control_label)]
    of_row = np.empty(len(pairs), dtype=np.int64)
    for i, pair in enumerate(pairs):
        dose = None if dosage is None else doses[pair % len(doses)]
        condition = vocabulary.parse(names[pair // len(doses)], dose)
        if condition.key not in index:
            index[condition.key] = len(conditions)
            conditions.append(condition)
        of_row[i] = index[condition.key]
    return of_row[codes], conditions


def read_embedding(table: Any, key: str) -> dict[str, np.ndarray]:
    """Vectors of ``adata.uns[key]``, a DataFrame (perturbation x features) or a dict of vectors."""
    if isinstance(table, pd.DataFrame):
        if not table.index.is_unique:
            repeated = table.index[table.index.duplicated()].unique().tolist()
            raise ValueError(
                f"adata.uns[{key!r}] has more than one row for {shortened(repeated, 5)}: keep one vector for each."
            )
        table = {text_of(name): row for name, row in zip(table.index, table.to_numpy(), strict=True)}
    if not isinstance(table, Mapping) or not table:
        raise TypeError(
            f"adata.uns[{key!r}] is a {type(table).__name__}; `perturbation_embedding_key` needs a DataFrame "
            "(perturbation x features) or a dict of vectors."
        )
    vectors = {text_of(name): np.asarray(vector, dtype=np.float32).ravel() for name, vector in table.items()}
    lengths = {len(vector) for vector in vectors.values()}
    if len(lengths) > 1:
        raise ValueError(f"The vectors of adata.uns[{key!r}] have different lengths: {sorted(lengths)}.")
    bad = [name for name, vector in vectors.items() if not np.isfinite(vector).all()]
    if bad:
        raise ValueError(f"The vectors of {shortened(bad, 5)} in adata.uns[{key!r}] are not finite.")
    return vectors


def _scaled(embedding: Mapping[str, np.ndarray]) -> np.ndarray:
    """Vectors one below another, shape (n_vectors, n_features), float32, divided by their mean norm."""
    norms = [np.linalg.norm(vector) for vector in embedding.values()]
    scale = float(np.mean(norms)) or 1.0
    return np.stack([(np.asarray(vector) / scale).astype(np.float32) for vector in embedding.values()])
