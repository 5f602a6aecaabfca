"""What every part of the model class may use: its state, declared in one list, and its services."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.model.base import BaseModelClass

from cfmvc_scvi._arguments import cells_of
from cfmvc_scvi._compat import forget_with, registered_codes
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._messages import close_matches, shortened
from cfmvc_scvi._rows import row_sums
from cfmvc_scvi._types import CellSplit, obs_of
from cfmvc_scvi.calibration import Calibration
from cfmvc_scvi.cells.latents import CellPosterior
from cfmvc_scvi.cells.reader import CellReader, categories
from cfmvc_scvi.cells.table import ROW_UNIT, CellTable
from cfmvc_scvi.module import CFMVCModule
from cfmvc_scvi.registration.fields import vocabulary_state
from cfmvc_scvi.registration.keys import SetupKeys
from cfmvc_scvi.registration.registration import CellConditions
from cfmvc_scvi.registration.spelling import texts_of
from cfmvc_scvi.registration.units import as_registered, check_expected, check_holds_counts, may_be_fractional
from cfmvc_scvi.registration.vocabulary import PerturbationVocabulary

#: Members and doses that identify a condition.
ConditionKey: TypeAlias = tuple[tuple[str, ...], tuple[float, ...]]
#: State of a model beside the weights of its networks, with its values before training. It is saved with the model and,
#: but for the calibration, with every checkpoint. Names end with an underscore, as scvi-tools asks of what is saved.
STATE: Final[dict[str, Any]] = {
    "is_vae_trained_": False,
    "is_flow_trained_": False,
    "trained_conditions_": None,
    "trained_cells_": None,
    "trained_places_": None,
    "confounded_": None,
    "split_": None,
    "dose_response_": None,
    "calibration_": None,
    "adapted_": False,
}
#: What each stage makes anew, and the values until then.
MADE_ANEW: Final[dict[str, dict[str, Any]]] = {
    "vae": {"is_vae_trained_": False, "is_flow_trained_": False, "is_trained_": False, "calibration_": None},
    "flow": {"is_flow_trained_": False, "is_trained_": False},
}


class ModelBase(BaseModelClass):
    """State and services of :class:`~cfmvc_scvi.CFMVC`, which its mixins inherit.

    Attributes
    ----------
    module
        The networks.
    flow_source, coupling
        Where the flow starts, and how its sources and targets are paired.
    is_vae_trained_, is_flow_trained_
        Which stages are through.
    trained_conditions_
        Key of every condition and code of every cell type that were trained on together.
    trained_cells_
        Training cells of each of them; ``None`` in models saved before they were counted.
    trained_places_
        Batches and samples of each of them (:func:`~cfmvc_scvi.prediction.places.trained_places`); ``None`` in models
        saved before they were noted.
    confounded_
        Key of every condition that was measured only in batches without control cells.
    split_
        Rows of training, validation and test cells.
    dose_response_
        Parameters of the dose-response curve of every perturbation.
    calibration_
        What decoded changes are corrected to.
    adapted_
        Whether the model took in further data (:meth:`~cfmvc_scvi.CFMVC.load_query_data`).
    """

    _module_cls: ClassVar[type[CFMVCModule]] = CFMVCModule

    module: CFMVCModule
    flow_source: Literal["control", "noise"]
    coupling: Literal["ot", "independent"]
    is_vae_trained_: bool
    is_flow_trained_: bool
    trained_conditions_: list[tuple[ConditionKey, int]] | None
    trained_cells_: list[int] | None
    trained_places_: dict[str, np.ndarray] | None
    confounded_: list[ConditionKey] | None
    split_: list[np.ndarray] | None
    dose_response_: dict[str, dict[str, float]] | None
    calibration_: Calibration | None
    adapted_: bool
    init_params_: dict[str, Any]
    history_: dict[str, pd.DataFrame] | None

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None) -> None:
        super().__init__(adata, registry)
        forget_with(self)
        vars(self).update(STATE)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the trainer of the last run, which holds open loaders and is of no use elsewhere."""
        return {name: value for name, value in vars(self).items() if name != "trainer"}

    # ---- what the registration says ---------------------------------------------------------------------------

    @cached_property
    def setup_keys(self) -> SetupKeys:
        """Where each field is found in an AnnData."""
        return SetupKeys(**self.registry["setup_args"])

    @property
    def vocabulary(self) -> PerturbationVocabulary:
        """Perturbations of the training data and their vectors; made again when the dose responses are learned."""
        made_for, vocabulary = vars(self).get("_vocabulary", (None, None))
        if vocabulary is None or made_for is not self.dose_response_:
            vocabulary = PerturbationVocabulary.from_registry(
                vocabulary_state(self._field_registries), self.dose_response_
            )
            self._vocabulary = (self.dose_response_, vocabulary)
        return vocabulary

    @cached_property
    def cell_types(self) -> list[str]:
        """Cell types of the training data, in the order of their codes."""
        return categories(self._field_registries, REGISTRY_KEYS.LABELS_KEY)

    @cached_property
    def batches(self) -> list[str]:
        """Batches of the training data, in the order of their codes."""
        return categories(self._field_registries, REGISTRY_KEYS.BATCH_KEY)

    @property
    def _field_registries(self) -> dict[str, Any]:
        return self.registry["field_registries"]

    @property
    def _var_names(self) -> Sequence[str]:
        """Genes at registration, whatever became of the AnnData since."""
        return self._field_registries[REGISTRY_KEYS.X_KEY]["state_registry"]["column_names"]

    def get_var_names(self, legacy_mudata_format: bool = False) -> Any:
        """Names of the genes that the model was set up with, in its order.

        They are those of the registration: where the genes of the AnnData were filtered or ordered anew since, the
        model still has these, and finds them by name.
        """
        return np.asarray(self._var_names)

    def _conditions_of(self, adata: AnnData) -> CellConditions:
        """Condition of every cell of an AnnData; of the registered one, whose column must be as it was."""
        if adata is self.adata:
            self._check_unchanged(adata)
        return CellConditions.of(adata, self.setup_keys, self.vocabulary)

    def _check_unchanged(self, adata: AnnData) -> None:
        """Raise when the registered perturbation column was overwritten."""
        key = self.setup_keys.perturbation_key
        codes = None if self._has_presence_matrix else registered_codes(self, CFMVC_KEYS.PERTURBATION_KEY)
        if codes is None or key not in adata.obs:
            return
        levels = texts_of(self._levels(CFMVC_KEYS.PERTURBATION_KEY))
        changed = np.flatnonzero(levels[codes] != texts_of(obs_of(adata)[key]))
        if len(changed):
            raise ValueError(
                f"adata.obs[{key!r}] of the registered data was changed for {len(changed)} of {adata.n_obs} cells "
                "since `setup_anndata`. The column says what was done to each cell; what to predict is asked for by "
                "`perturbation=`. Put the column back, or set the data up again and make a new model."
            )

    @cached_property
    def _has_presence_matrix(self) -> bool:
        """Whether the perturbations were registered as a presence matrix, with or without the data at hand."""
        field = self._field_registries[CFMVC_KEYS.PERTURBATION_KEY]
        return field["data_registry"]["attr_name"] == "obsm"

    def _levels(self, field: str) -> np.ndarray:
        """Levels of a categorical field as they are in the data, in the order of their codes."""
        return self._field_registries[field]["state_registry"]["categorical_mapping"]

    # ---- cells and their latents ------------------------------------------------------------------------------

    @cached_property
    def _reader(self) -> CellReader:
        return CellReader(self._field_registries, self._var_names, self.setup_keys)

    def _read(self, adata: AnnData, **arguments: Any) -> CellTable:
        """Cells of any AnnData, with units and spellings checked; every method reads by it."""
        keys, reader = self.setup_keys, self._reader
        if adata is not self.adata:
            cells_of("adata", adata)
            check_holds_counts(adata, keys)
            fields = {keys.batch_key: REGISTRY_KEYS.BATCH_KEY, keys.labels_key: REGISTRY_KEYS.LABELS_KEY}
            adata = as_registered(adata, {key: self._levels(field) for key, field in fields.items() if key is not None})
            if may_be_fractional(adata, keys) and not keys.allow_noncounts:
                reader = CellReader(self._field_registries, self._var_names, replace(keys, allow_noncounts=True))
        cells = reader.read(adata, **arguments)
        if reader is not self._reader and not cells.whole:
            check_expected(cells.counts, keys)
        return cells

    def _cells(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch: str | None = None,
        *,
        allow_unknown: bool = False,
    ) -> CellTable:
        """Cells as the networks read them; nothing is written into the AnnData."""
        if adata is None:
            adata = self._require_adata("use its cells")
        read = functools.partial(self._read, adata, batch=batch, allow_unknown=allow_unknown)
        rows = None if indices is None else as_rows(indices, adata.n_obs, adata.obs_names)
        # no counts at all would be refused: where no cell is asked for, all are checked
        cells = read().take(rows) if rows is not None and not len(rows) else read(rows=rows)
        if adata is not self.adata:
            _warn_of_empty_cells(cells)
        return cells

    @torch.inference_mode()
    def _encode(self, cells: CellTable, batch_size: int | None = None) -> CellPosterior:
        """Posterior of both latents of every cell."""
        self.module.eval()
        n, module = len(cells), self.module
        dims = (module.n_latent, module.n_latent, module.n_latent_technical, module.n_latent_technical)
        # filled in place: kept pieces between the large arrays of every chunk would splinter the memory
        whole = CellPosterior(*(torch.empty(n, dim) for dim in dims))
        start = 0
        for table, rows in _in_whole_units(cells, batch_size or settings.batch_size):
            q, q_tech = module.posterior_of(table.batch(rows).to(module.device))
            stop = min(start + rows.stop - rows.start, n)
            whole.put(start, CellPosterior(q.loc, q.scale, q_tech.loc, q_tech.scale)[: stop - start])
            start = stop
        return whole

    # ---- the split and the seed -------------------------------------------------------------------------------

    @property
    def _split(self) -> CellSplit:
        """Rows of training, validation and test cells of a model whose stage 1 has begun."""
        assert self.split_ is not None
        return CellSplit(*self.split_)

    @property
    def _fitted_rows(self) -> np.ndarray:
        """Rows of the training and validation cells."""
        return np.sort(np.concatenate([self._split.train, self._split.validation]))

    @property
    def _seed(self) -> int:
        return 0 if settings.seed is None else int(settings.seed)

    # ---- what a call needs ------------------------------------------------------------------------------------

    @property
    def _registered(self) -> AnnData | None:
        """The registered data; scvi-tools' property may hold MuData, which this model does not register."""
        return cast("AnnData | None", self.adata)

    def _require_adata(self, task: str) -> AnnData:
        """The registered data."""
        if self._registered is None:
            raise RuntimeError(
                f"This model was loaded without data: load it with `adata=` to {task}. One that was made of a registry "
                "gets its data by `train(datamodule=...)`."
            )
        return self._registered

    def _require_not_adapted(self, task: str) -> None:
        if self.adapted_:
            raise RuntimeError(
                f"This model is of `load_query_data`, and its registered cells are a part of what it stands on: it "
                f"cannot {task}. Call `load_query_data` again, with all further cells, or train a model of all cells."
            )

    def _require_vae(self, task: str) -> None:
        if not self.is_vae_trained_:
            raise RuntimeError(f"Train the model before you {task}: call `model.train()` or `model.train_vae()`.")

    def _require_flow(self, task: str) -> None:
        if not self.is_flow_trained_:
            first = "`model.train_flow()`" if self.is_vae_trained_ else "`model.train()`"
            raise RuntimeError(f"The flow is not trained, so the model cannot {task}: call {first}.")

    @property
    def _calibration(self) -> Calibration:
        """The calibration of a model whose flow is trained."""
        assert self.calibration_ is not None
        return self.calibration_

    @property
    def _conditions_of_training(self) -> list[tuple[ConditionKey, int]]:
        """:attr:`trained_conditions_` of a model whose flow is trained."""
        assert self.trained_conditions_ is not None
        return self.trained_conditions_

    # ---- the state as a whole ---------------------------------------------------------------------------------

    def _get_state(self) -> dict[str, Any]:
        """Everything in :data:`STATE`, and whether scvi-tools may take the model for trained."""
        return {name: getattr(self, name) for name in (*STATE, "is_trained_")}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Counterpart of :meth:`_get_state`; what is not given stays as it is."""
        unknown = state.keys() - {*STATE, "is_trained_"}
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no state of a model: the file is of another version or damaged.")
        vars(self).update(state)


_Method = TypeVar("_Method", bound=Callable[..., Any])


def single_precision(method: _Method) -> _Method:
    """A method that makes its tensors in float32 whatever torch's default type is, which is as before afterwards."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return method(*args, **kwargs)
        finally:
            torch.set_default_dtype(default)

    return cast(_Method, call)


def as_rows(indices: Sequence[int] | np.ndarray, n_cells: int, names: pd.Index | None = None) -> np.ndarray:
    """Integer rows of indices, of a boolean mask, or of names of cells.

    Raises
    ------
    IndexError
        For a mask of another length or rows out of range.
    KeyError
        For names of cells that are not there, or not there alone.
    TypeError
        For anything else, such as fractional numbers.
    """
    rows = np.atleast_1d(np.asarray(indices))
    if rows.dtype.kind in "OU" and len(rows) and names is not None:
        return _rows_of_names(rows, names)
    if rows.dtype.kind not in "iub" and len(rows):
        raise TypeError(f"`indices` holds {rows.dtype} values; give whole numbers, a boolean mask, or names of cells.")
    if rows.dtype == bool:
        if len(rows) != n_cells:
            raise IndexError(f"`indices` is a mask of length {len(rows)} for {n_cells} cells.")
        return np.flatnonzero(rows)
    rows = rows.astype(np.int64)
    if len(rows) and (rows.min() < -n_cells or rows.max() >= n_cells):
        raise IndexError(f"`indices` reach from {rows.min()} to {rows.max()}; there are {n_cells} cells.")
    return rows % n_cells if n_cells else rows


def _rows_of_names(wanted: np.ndarray, names: pd.Index) -> np.ndarray:
    if not names.is_unique:
        raise KeyError("`indices` names cells, but adata.obs_names are not unique: give row numbers or a mask.")
    found = names.get_indexer(pd.Index(wanted))
    missing = wanted[found < 0]
    if len(missing):
        raise KeyError(
            f"`indices` names {len(missing)} cells that are not there: {shortened(missing, 5)}."
            f"{close_matches(missing[:5], names)}"
        )
    return found


def _in_whole_units(cells: CellTable, size: int) -> Iterator[tuple[CellTable, slice]]:
    """Chunks of cells, in whole units of rows: only the cells that fill none are copied, and padded."""
    whole = len(cells) // ROW_UNIT * ROW_UNIT
    for rows in cells.chunks(size):
        if rows.start < whole:
            yield cells, slice(rows.start, min(rows.stop, whole))
    if whole < len(cells):
        yield cells.take(np.arange(whole, len(cells))).padded(), slice(0, ROW_UNIT)


def _warn_of_empty_cells(cells: CellTable) -> None:
    empty = np.flatnonzero(row_sums(cells.counts) == 0)
    if len(empty):
        warnings.warn(
            f"{len(empty)} cells have no counts in the model's genes, e.g. {list(cells.obs.index[empty[:3]])}: what "
            "comes out for them is a guess from their cell type. Leave them out.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
