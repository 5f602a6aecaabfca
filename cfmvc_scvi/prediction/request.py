"""What a prediction was asked for: conditions, and how to compute and return them."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from scvi import settings

from cfmvc_scvi.flow import Solver
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
#: Columns that a DataFrame of conditions may have.
CONDITION_COLUMNS = ("perturbation", "dosage", "labels", "batch")


@dataclass(frozen=True)
class PredictionCall:
    """How to compute and return, the same for all conditions of a call."""

    return_type: ReturnType
    n_samples: int
    solver: Solver
    batch_size: int
    seed: int

    @property
    def solver_key(self) -> tuple[str, int | None]:
        """What identifies the solver."""
        return type(self.solver).__name__, getattr(self.solver, "n_steps", None)

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
                raise ValueError(f"The model was trained with doses: pass `dosage` for {missing[:5]}.")
        if self.keys.labels_key is None and any(row["labels"] is not None for row in rows):
            raise ValueError("The model was set up without `labels_key` and knows no cell types: leave `labels` out.")
        _check_levels("labels", [row["labels"] for row in rows], self.cell_types)
        _check_levels("batch", [row["batch"] for row in rows], self.batches)
        self.vocabulary.encode(conditions)  # refuses unknown perturbations
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
        records = table.astype(object).where(table.notna(), None).to_dict("records")
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
                f"Doses above the highest of the training data: {beyond[:5]}. The response there is extrapolated.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )


def _check_levels(argument: str, values: Sequence[Any], known: Sequence[str]) -> None:
    for value in values:
        if value is None or str(value) in known:
            continue
        close = difflib.get_close_matches(str(value), known, n=3)
        hint = f" Did you mean {close}?" if close else ""
        raise ValueError(f"Unknown `{argument}` {str(value)!r}: choose one of {sorted(known)[:30]}.{hint}")


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
