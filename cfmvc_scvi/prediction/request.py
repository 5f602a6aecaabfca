"""What a prediction was asked for: conditions, and how to compute and return them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pandas as pd
from scvi import settings

from cfmvc_scvi._base import ModelBase
from cfmvc_scvi._messages import shortened, unknown_choice
from cfmvc_scvi.flow import Solver, get_solver
from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.vocabulary import Condition, PerturbationVocabulary

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
        if n_samples < 1:
            raise ValueError(f"`n_samples` is {n_samples}; it must be at least 1.")
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
        conditions = [self.vocabulary.parse(str(row["perturbation"]), row["dosage"]) for row in rows]
        if has_doses:
            missing = [c.label for c, dose in zip(conditions, doses, strict=True) if dose is None and c.members]
            if missing:
                raise ValueError(f"The model was trained with doses: pass `dosage` for {shortened(missing, 5)}.")
        if self.keys.labels_key is None and any(row["labels"] is not None for row in rows):
            raise ValueError("The model was set up without `labels_key` and knows no cell types: leave `labels` out.")
        _check_levels("labels", [row["labels"] for row in rows], self.cell_types)
        _check_levels("batch", [row["batch"] for row in rows], self.batches)
        self.vocabulary.members(conditions)  # refuses unknown perturbations
        self._warn_beyond_doses(conditions)
        return [
            Request(condition, _number(row["dosage"]), _text(row["labels"]), _text(row["batch"]))
            for condition, row in zip(conditions, rows, strict=True)
        ]

    def _rows(self, perturbation: Any, dosage: Any, batch: Any) -> list[dict[str, Any]]:
        default = {"dosage": dosage, "labels": None, "batch": batch}
        if not isinstance(perturbation, pd.DataFrame):
            labels = [perturbation] if isinstance(perturbation, str) or not _is_list(perturbation) else perturbation
            return [default | {"perturbation": label} for label in labels]
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
        known = table.astype(object).where(table.notna(), cast(Any, None))  # pandas' stubs do not know None
        records = cast("list[dict[str, Any]]", known.to_dict("records"))
        return [default | {key: value for key, value in record.items() if value is not None} for record in records]

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
            reader.read([self.vocabulary.control_label], None, batch)  # refuses an unknown batch
            return self._trained_requests(None if batch is None else str(batch))
        return reader.read(list(self.vocabulary.names) if perturbation is None else perturbation, dosage, batch)

    def _trained_requests(self, batch: str | None) -> list[Request]:
        """Every condition the model was trained on, control left out."""
        delimiter = self.vocabulary.combination_delimiter or ""
        requests = []
        for members, doses in sorted({key for key, _ in self._conditions_of_training if key[0]}):
            condition = Condition(delimiter.join(members), members, doses)
            one_dose = doses[0] if len(set(doses)) == 1 else delimiter.join(f"{dose:g}" for dose in doses)
            has_doses = self.setup_keys.dosage_key is not None
            requests.append(Request(condition, one_dose if has_doses else None, batch=batch))
        return requests


def _check_levels(argument: str, values: Sequence[Any], known: Sequence[str]) -> None:
    for value in values:
        if value is None or str(value) in known:
            continue
        raise ValueError(unknown_choice(argument, str(value), sorted(known)))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) or hasattr(value, "__array__")


def _number(dosage: Any) -> float | str | None:
    """A dose as a number where it is one."""
    if dosage is None:
        return None
    try:
        return float(dosage)
    except ValueError:
        return str(dosage)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
