"""How far an answer reaches: what was trained on, and how near a condition is to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS, settings

from cfmvc_scvi._base import ConditionKey, ModelBase
from cfmvc_scvi._messages import shortened
from cfmvc_scvi.cells.reader import categories
from cfmvc_scvi.prediction.places import Places
from cfmvc_scvi.prediction.request import Request
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.registration.keys import cell_dosage, perturbation_labels
from cfmvc_scvi.registration.members import Members
from cfmvc_scvi.registration.vocabulary import Condition

#: What a prediction can rest on, from most to least.
SUPPORT_LEVELS = ("seen", "new context", "new combination", "new perturbation")

#: Part of an answer below which the user is told that a vector tells little.
LITTLE_REACH = 0.2


@dataclass(frozen=True)
class _Trained:
    """What was trained on, to look conditions up in.

    Attributes
    ----------
    sets, members
        Perturbations that were given together, and each of them.
    together
        Perturbations and codes of cell types that were seen together, where the type has control cells.
    cells
        Training cells by condition and cell type; ``None`` if not counted.
    vectors
        Vectors of the conditions.
    places
        What was trained on in every batch and sample, by the name of the field.
    """

    sets: set[tuple[str, ...]]
    members: set[str]
    together: set[tuple[tuple[str, ...], int]]
    cells: dict[tuple[ConditionKey, int], int] | None
    vectors: Members
    places: dict[str, Places]


class SupportMixin(ModelBase):
    """Support of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: the split, the conditions of training and the vocabulary.
    """

    def support(self) -> pd.DataFrame:
        """What the model was trained on.

        Returns
        -------
        DataFrame with one row per perturbation, dose (where there are doses), cell type, batch and sample of the
        registered data, and the number of cells (column ``n_cells``) and of training cells (``n_train``).
        """
        adata = self._require_adata("count its cells")
        keys = self.setup_keys
        columns: dict[str, np.ndarray | None] = {"perturbation": perturbation_labels(adata, keys)}
        if keys.dosage_key is not None:
            columns["dosage"] = cell_dosage(adata, keys.dosage_key)
        for name, key in (("cell_type", keys.labels_key), ("batch", keys.batch_key), ("sample", keys.sample_key)):
            if key is not None:
                columns[name] = adata.obs[key].astype(str).to_numpy()
        table = pd.DataFrame(columns)
        n_train = np.zeros(len(table), dtype=np.int64)
        if self.split_ is not None:
            n_train[self._split.train] = 1
        table["n_train"] = n_train
        grouped = table.groupby(list(columns), observed=True, dropna=False)["n_train"].agg(["size", "sum"])
        return grouped.reset_index().rename(columns={"size": "n_cells", "sum": "n_train"})

    def _types_with_controls(self) -> np.ndarray:
        """Codes of the cell types whose control cells were trained on."""
        return np.array(sorted(label for (members, _), label in self._conditions_of_training if not members))

    def _support(self, condition: Condition, labels: np.ndarray, perturbed: np.ndarray | None = None) -> pd.Categorical:
        """What each prediction rests on; see :meth:`predict_perturbation`.

        Parameters
        ----------
        labels
            Codes of the cells' types; below 0 for a type that was not in training.
        perturbed
            Which cells are perturbed already: what is done to them is a new combination.
        """
        trained = self._trained
        if condition.members in trained.sets:
            unseen = "new context"
        elif all(member in trained.members for member in condition.members):
            unseen = "new combination"
        else:
            unseen = "new perturbation"
        values = ["seen" if (condition.members, int(label)) in trained.together else unseen for label in labels]
        if perturbed is not None and condition.members:
            values = ["new combination" if twice else value for value, twice in zip(values, perturbed, strict=True)]
        return pd.Categorical(values, categories=list(SUPPORT_LEVELS))

    def _grounds(
        self, condition: Condition, labels: np.ndarray, places: dict[str, np.ndarray], perturbed: np.ndarray | None
    ) -> dict[str, pd.Categorical]:
        """What each prediction rests on in its batch and sample, by column; see :meth:`predict_perturbation`.

        Parameters
        ----------
        places
            Codes of the cells' batches and samples, by the name of the field; those that the model does not have, or of
            which it does not know what was trained on, are left out.
        """
        found = {}
        for field, known in self._trained.places.items():
            if field in places:
                values = known.grounds(condition.members, labels, places[field])
                if perturbed is not None and condition.members:
                    values[perturbed & (np.asarray(values) == "seen")] = "controls only"
                found[f"support_{field}"] = values
        return found

    def _grounds_of(self, request: Request, source: SourceCells) -> dict[str, Any]:
        """Columns that say what the answers to a request rest on."""
        condition, labels, perturbed = request.condition, source.codes, source.perturbed
        asked = source.asked
        batch = (
            asked.context.batch if request.batch is None else np.full(len(labels), self.batches.index(request.batch))
        )
        places = {"batch": np.asarray(batch)} | ({} if asked.sample is None else {"sample": asked.sample})
        n_support = self._n_support(condition, labels, perturbed)
        return {
            "support": self._support(condition, labels, perturbed),
            "support_distance": self._support_distance(condition),
            **({} if self._calibration.state.reach is None else {"support_reach": self._reach(condition)}),
            **({} if n_support is None else {"n_support": n_support}),
            **self._grounds(condition, labels, places, perturbed),
        }

    def _reach(self, condition: Condition) -> float:
        """Part of the answer that is kept of the member whose vector tells least; 1 where all were measured."""
        return float(self._calibration.reach(condition).min(initial=1.0))

    def _carried_by(self, conditions: Sequence[Condition]) -> dict[str, np.ndarray]:
        """Weight of every estimator in the mean effects of some conditions, by its name, shape (n_conditions,)."""
        weights = [self._calibration.carried_by(condition) for condition in conditions]
        names = dict.fromkeys(name for found in weights for name in found)
        return {name: np.array([found.get(name, 0.0) for found in weights]) for name in names}

    def _warn_of_little_reach(self, conditions: Iterable[Condition]) -> None:
        """Name the perturbations without cells whose vectors tell next to nothing of what they do."""
        little = {condition.label for condition in conditions if self._reach(condition) < LITTLE_REACH}
        if little:
            warnings.warn(
                f"{shortened(sorted(little))}: not measured, and what the vectors tell hangs on single perturbations "
                "of the training data, so little is kept of it and the answer is near to no change "
                "(obs['support_reach'] or attrs['reach'] says how much). Other vectors, or more measured perturbations "
                "like these, may help.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    def _warn_of_batches_without_controls(self, support: Mapping[Request, Mapping[str, Any]]) -> None:
        """Say where answers are about a batch in which no control cell of the cell type was trained on."""
        levels = [columns["support_batch"] for columns in support.values() if "support_batch" in columns]
        n_lacking = sum(int((values == "no controls").sum()) for values in levels)
        if n_lacking:
            warnings.warn(
                f"{n_lacking} of {sum(map(len, levels))} predicted cells are in a batch in which no control cell of "
                f"their cell type was trained on (adata.obs[{self.setup_keys.batch_key!r}]): what that batch does to "
                "such cells is taken from other cell types. obs['support_batch'] tells which; give cells of other "
                "batches, or `batch=` one that has controls.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    def _measured_in(self, condition: Condition, labels: Iterable[int]) -> dict[str, list[str]]:
        """Batches and samples in which a condition was trained on beside controls, by the name of the field."""
        names = {"batch": self.batches, "sample": self._samples}
        places = self._trained.places
        return {field: [names[field][at] for at in places[field].where(condition.members, labels)] for field in places}

    @cached_property
    def _samples(self) -> list[str]:
        """Samples of the training data, in the order of their codes."""
        has_samples = self.setup_keys.sample_key is not None
        return categories(self._field_registries, REGISTRY_KEYS.SAMPLE_KEY) if has_samples else []

    def _confounded(self, conditions: Sequence[Condition]) -> list[str]:
        """Which of the conditions hold what was measured only in batches without control cells, with a warning."""
        confounded = set(self.confounded_ or ())
        clear = {key for key, _ in self._conditions_of_training} - confounded
        elsewhere = {member for members, _ in clear for member in members}
        doubtful = {member for members, _ in confounded for member in members} - elsewhere
        found = list(dict.fromkeys(one.label for one in conditions if doubtful.intersection(one.members)))
        if found:
            warnings.warn(
                f"{shortened(found)}: measured only in batches without control cells (adata.obs"
                f"[{self.setup_keys.batch_key!r}]), so this answer cannot tell the perturbation from the batch.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        return found

    def _n_support(
        self, condition: Condition, labels: np.ndarray, perturbed: np.ndarray | None = None
    ) -> np.ndarray | None:
        """Training cells of a condition, at its dose, in the cell type of each prediction; ``None`` if not counted."""
        found = self._trained.cells
        if found is None:
            return None
        if perturbed is not None and condition.members:
            labels = np.where(perturbed, -1, labels)
        return np.array([found.get((condition.key, int(label)), 0) for label in labels], dtype=np.int64)

    def _support_distance(self, condition: Condition) -> float:
        """Distance of a condition's vector to the nearest of training, control among them."""
        return self._trained.vectors.distance(self.vocabulary.encode([condition])[0])

    @property
    def _trained(self) -> _Trained:
        """What was trained on, made again when that, or the vectors, change."""
        key = (self._conditions_of_training, self.vocabulary, self.trained_places_)
        made_for, trained = vars(self).get("_trained_of", ((None, None, None), None))
        if trained is None or any(old is not new for old, new in zip(made_for, key, strict=True)):
            from_control = set(self._types_with_controls().tolist())
            sets = {members for (members, _), _ in self._conditions_of_training}
            counts = self.trained_cells_
            trained = _Trained(
                sets=sets,
                members={member for members in sets for member in members},
                together={(m, label) for (m, _), label in self._conditions_of_training if label in from_control},
                cells=None if counts is None else dict(zip(self._conditions_of_training, counts, strict=True)),
                vectors=self.vocabulary.members([Condition("", *k) for k in {k for k, _ in key[0]}]),
                places=self._places_of_training(),
            )
            self._trained_of = (key, trained)
        return trained

    def _places_of_training(self) -> dict[str, Places]:
        noted, keys = self.trained_places_, self.setup_keys
        if noted is None:
            return {}
        populations = [(members, label) for (members, _), label in self._conditions_of_training]
        fields = (("batch", keys.batch_key), ("sample", keys.sample_key))
        return {field: Places.of(populations, noted["pair"], noted[field]) for field, key in fields if key is not None}
