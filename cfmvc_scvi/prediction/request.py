"""What a prediction was asked for: conditions, and how to compute and return them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import pandas as pd
from scvi import settings

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._base import ModelBase
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._messages import shortened, unknown_choice
from cfmvc_scvi.flow import Solver, get_solver
from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.labels import split_label
from cfmvc_scvi.registration.spelling import as_list, is_missing, known_spelling, number_text, text_of, texts_of
from cfmvc_scvi.registration.vocabulary import Condition, PerturbationVocabulary, UnknownPerturbationError

ReturnType = Literal["mean", "counts", "lognorm", "latent"]

#: Unit of ``X`` for every return type.
UNITS = {
    "mean": "expected counts at each cell's own library size",
    "counts": "counts drawn from the negative binomial",
    "lognorm": "log1p of counts per 10,000",
    "latent": "intrinsic latent (z_int)",
}
#: Fixed-step solver and number of steps when none is given.
DEFAULT_SOLVER, DEFAULT_STEPS = "midpoint", 10
#: Cells at a time when it is not said.
DEFAULT_CELLS = 512
#: Columns that a DataFrame of conditions may have.
CONDITION_COLUMNS = ("perturbation", "dosage", "labels", "batch")


def default_solver() -> Solver:
    """Integrator of the flow where none is named: the midpoint method with 10 steps."""
    return get_solver(DEFAULT_SOLVER, DEFAULT_STEPS)


@dataclass(frozen=True)
class PredictionCall:
    """How to compute and return, the same for all conditions of a call.

    Attributes
    ----------
    return_type, n_samples, batch_size, seed
        As in :meth:`cfmvc_scvi.CFMVC.predict_perturbation`.
    solver
        Integrator of the flow.
    """

    return_type: ReturnType = "mean"
    n_samples: int = 1
    solver: Solver = field(default_factory=default_solver)
    batch_size: int = DEFAULT_CELLS
    seed: int = 0

    @classmethod
    def of(
        cls,
        return_type: ReturnType,
        *,
        n_samples: int = 1,
        solver: str | None = None,
        n_steps: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> PredictionCall:
        """Call with a user's arguments, checked; ``None`` takes the defaults.

        Raises
        ------
        ValueError
            For an unknown return type or solver, and numbers out of range.
        """
        if return_type not in UNITS:
            raise ValueError(unknown_choice("return_type", return_type, UNITS))
        whole_number("n_samples", n_samples)
        for argument, value in (("n_steps", n_steps), ("batch_size", batch_size)):
            if value is not None:
                whole_number(argument, value)
        solver = DEFAULT_SOLVER if solver is None else solver
        steps = DEFAULT_STEPS if n_steps is None and solver != "adaptive" else n_steps
        return cls(return_type, n_samples, get_solver(solver, steps), batch_size or DEFAULT_CELLS, seed)

    @property
    def draws(self) -> int:
        """Rows per cell."""
        return self.n_samples if self.return_type == "counts" else 1


@dataclass(frozen=True)
class Request:
    """One condition that was asked for.

    Attributes
    ----------
    condition
        What is done to the cells.
    dosage
        Its dose as it was written: a number, or text with one per member; ``None`` for control and without doses.
    labels
        Cell type of the cells to take; ``None`` takes all.
    batch
        Batch to decode in; ``None`` is each cell's own.
    """

    condition: Condition
    dosage: float | str | None = None
    labels: str | None = None
    batch: str | None = None


@dataclass(frozen=True)
class RequestReader:
    """Turns what a user asks for into requests, and refuses what the model cannot know.

    Attributes
    ----------
    vocabulary
        Perturbations of the model.
    keys
        Columns of the model's fields.
    batches, cell_types
        Levels of the model.
    """

    vocabulary: PerturbationVocabulary
    keys: SetupKeys
    batches: Sequence[str]
    cell_types: Sequence[str]

    def read(
        self,
        perturbation: str | Sequence[str] | pd.DataFrame,
        dosage: float | str | None = None,
        batch: str | None = None,
    ) -> list[Request]:
        """Requests of a label, a list of labels or a DataFrame of conditions.

        Raises
        ------
        KeyError
            For a DataFrame without a column ``perturbation``.
        ValueError
            For unknown perturbations, batches and cell types, and doses that are missing or not known.
        """
        rows = self._rows(perturbation, dosage, batch)
        if not rows:
            raise ValueError("No condition was asked for: `perturbation` is empty.")
        doses = [row["dosage"] for row in rows]
        has_doses = self.keys.dosage_key is not None
        if not has_doses and any(dose is not None for dose in doses):
            raise ValueError("The model was set up without `dosage_key`, so it knows no doses: leave `dosage` out.")
        absent = [i for i, row in enumerate(rows) if is_missing(row["perturbation"])]
        if absent:
            raise ValueError(
                f"`perturbation` is missing in {len(absent)} of {len(rows)} conditions, the first in row {absent[0]}: "
                f"give a label, or {self.vocabulary.control_label!r} for control."
            )
        conditions = [self.vocabulary.parse(self._label(row["perturbation"]), row["dosage"]) for row in rows]
        if has_doses:
            missing = [c.label for c, dose in zip(conditions, doses, strict=True) if dose is None and c.members]
            if missing:
                raise ValueError(f"The model was trained with doses: pass `dosage` for {shortened(missing, 5)}.")
        if self.keys.labels_key is None and any(row["labels"] is not None for row in rows):
            raise ValueError("The model was set up without `labels_key` and knows no cell types: leave `labels` out.")
        labels = [_level("labels", row["labels"], self.cell_types) for row in rows]
        batches = [_level("batch", row["batch"], self.batches) for row in rows]
        self.vocabulary.members(conditions)  # refuses unknown perturbations
        self._warn_beyond_doses(conditions)
        return [
            Request(condition, _number(row["dosage"]), label, of_batch)
            for condition, row, label, of_batch in zip(conditions, rows, labels, batches, strict=True)
        ]

    def _label(self, value: Any) -> str:
        return known_spelling(value, [*self.vocabulary.control_group, *self.vocabulary.names])

    def _rows(self, perturbation: Any, dosage: Any, batch: Any) -> list[dict[str, Any]]:
        default = {"dosage": dosage, "labels": None, "batch": batch}
        if not isinstance(perturbation, pd.DataFrame):
            labels, doses = as_list(perturbation), as_list(dosage)
            if len(labels) == 1:
                labels = labels * len(doses)
            elif len(doses) == 1:
                doses = doses * len(labels)
            if len(doses) != len(labels):
                raise ValueError(
                    f"`dosage` lists {len(doses)} doses for {len(labels)} perturbations: give one dose, one for each "
                    "perturbation, or a DataFrame with a row for each condition."
                )
            pairs = zip(labels, doses, strict=True)
            return [default | {"perturbation": label, "dosage": dose} for label, dose in pairs]
        table = self._renamed(perturbation)
        if "perturbation" not in table:
            raise KeyError(
                "A DataFrame of conditions needs a column 'perturbation' (and 'dosage' where there are doses); "
                f"there is: {list(table.columns)}."
            )
        ignored = [str(name) for name in table.columns if name not in CONDITION_COLUMNS]
        if ignored:
            warnings.warn(
                f"Columns {ignored} of the DataFrame of conditions are not part of a condition and are ignored; known "
                f"ones are {list(CONDITION_COLUMNS)} and the model's own names of them.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        table = table[[name for name in CONDITION_COLUMNS if name in table]]
        records = cast("list[dict[str, Any]]", table.astype(object).to_dict("records"))
        none = {"perturbation": None}
        return [none | default | {k: v for k, v in record.items() if not is_missing(v)} for record in records]

    def _renamed(self, table: pd.DataFrame) -> pd.DataFrame:
        """The model's own names of the columns, such as ``cell_type`` for ``labels``, are understood too."""
        own = {
            self.keys.perturbation_key: "perturbation",
            self.keys.dosage_key: "dosage",
            self.keys.labels_key: "labels",
            self.keys.batch_key: "batch",
        }
        return table.rename(columns={k: v for k, v in own.items() if k in table and v not in table})

    def _warn_beyond_doses(self, conditions: Sequence[Condition]) -> None:
        """Say where a dose is above the highest one of its perturbation in training."""
        highest = self.vocabulary.reference_dose
        beyond = sorted(
            {
                f"{member} at {dose:g} (highest {highest[member]:g})"
                for condition in conditions
                for member, dose in zip(condition.members, condition.doses, strict=True)
                if member in highest and dose > highest[member] * (1 + 1e-9)
            }
        )
        if beyond:
            warnings.warn(
                f"Doses above the highest of the training data: {shortened(beyond, 5)}. The response there is "
                "extrapolated.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )


class RequestMixin(ModelBase):
    """Reading of requests by :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: vocabulary, levels and the conditions of training.
    """

    def _requests(
        self, perturbation: str | Sequence[str] | pd.DataFrame | None, dosage: float | str | None, batch: str | None
    ) -> list[Request]:
        """Conditions that were asked for; ``None`` is every one that was trained on."""
        reader = RequestReader(self.vocabulary, self.setup_keys, self.batches, self.cell_types)
        if perturbation is None and dosage is None:
            [control] = reader.read([self.vocabulary.control_label], None, batch)  # refuses an unknown batch
            return self._trained_requests(control.batch)
        requests = reader.read(self._trained_names if perturbation is None else perturbation, dosage, batch)
        self._check_trained([request.condition for request in requests])
        return requests

    @property
    def _trained_names(self) -> list[str]:
        """Perturbations that a training cell had, or that are known by a vector."""
        members = {member for (members, _), _ in self._conditions_of_training for member in members}
        return [name for name in self.vocabulary.names if name in members or self.vocabulary.has_embedding]

    def _check_trained(self, conditions: Sequence[Condition]) -> None:
        """Raise for perturbations of the data that no training cell had, where no vector says anything of them."""
        if self.vocabulary.has_embedding:
            return
        trained = set(self._trained_names)
        asked = dict.fromkeys(member for condition in conditions for member in condition.members)
        untrained = [name for name in asked if name in self.vocabulary.names and name not in trained]
        if untrained:
            raise UnknownPerturbationError(
                f"No training cell had {shortened(untrained)}: all its cells fell among the validation or test cells, "
                "so the model knows nothing of it. Train on more of its cells (a larger `train_size`), leave it out, "
                "or give vectors (`perturbation_embedding_key`)."
            )

    @cached_property
    def _labels_in_data(self) -> dict[tuple[str, ...], str]:
        """Label that the registered data have for members, the first of them in alphabetical order."""
        levels: list[Any] = []
        if not self._has_presence_matrix:
            levels = sorted(texts_of(self._levels(CFMVC_KEYS.PERTURBATION_KEY)), reverse=True)
        return {self.vocabulary.parse(level).members: level for level in levels}

    def _trained_requests(self, batch: str | None) -> list[Request]:
        """Every condition the model was trained on, control left out."""
        delimiter = self.vocabulary.combination_delimiter or ""
        requests = []
        for members, doses in sorted({key for key, _ in self._conditions_of_training if key[0]}):
            label = self._labels_in_data.get(members, delimiter.join(members))
            condition = Condition(label, members, doses)
            one_dose = doses[0] if len(set(doses)) == 1 else self._dose_text(label, condition)
            has_doses = self.setup_keys.dosage_key is not None
            requests.append(Request(condition, one_dose if has_doses else None, batch=batch))
        return requests

    def _dose_text(self, label: str, condition: Condition) -> str:
        """Doses in the order of the members of a label; a control among them has dose 0."""
        of = dict(zip(condition.members, condition.doses, strict=True))
        delimiter, group = self.vocabulary.combination_delimiter, self.vocabulary.control_group
        members = split_label(label, delimiter, group)
        return (delimiter or "").join(number_text(of.get(member, 0.0)) for member in members)


def _level(argument: str, value: Any, known: Sequence[str]) -> str | None:
    """The known level that is meant, ``None`` where none is asked for."""
    if is_missing(value):
        return None
    level = known_spelling(value, known)
    if level not in known:
        raise ValueError(unknown_choice(argument, level, sorted(known)))
    return level


def _number(dosage: Any) -> float | str | None:
    """A dose as a number where it is one."""
    if dosage is None:
        return None
    try:
        return float(dosage)
    except (TypeError, ValueError):
        return text_of(dosage)
