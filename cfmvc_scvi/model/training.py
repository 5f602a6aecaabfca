"""Training: both stages in order, or one alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Literal

import numpy as np
from torch import Tensor

from cfmvc_scvi._base import MADE_ANEW, single_precision
from cfmvc_scvi._types import CellSplit
from cfmvc_scvi.calibration import CalibrationState, make_calibration
from cfmvc_scvi.calibration.held_out_spread import set_spread
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.cells.count_loader import CountDataModule
from cfmvc_scvi.cells.count_source import count_source
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.cells.pairs import LatentDataModule
from cfmvc_scvi.cells.split import split_cells
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.flow import get_coupling
from cfmvc_scvi.model.calibrate import CalibrationMixin
from cfmvc_scvi.model.data_module import CountsDataModule, DataModuleMixin
from cfmvc_scvi.model.resources import ResourceMixin
from cfmvc_scvi.module.initialize import initialize_linear_paths
from cfmvc_scvi.prediction.places import trained_places
from cfmvc_scvi.prediction.trained import confounded_with_batch, trained_conditions, warn_of_untrained
from cfmvc_scvi.registration.dose import effects_of_doses, fit_dose_response
from cfmvc_scvi.registration.fingerprint import data_fingerprint
from cfmvc_scvi.registration.registration import CellConditions
from cfmvc_scvi.train import (
    CheckpointFolder,
    FlowTrainingPlan,
    ModelState,
    StageArguments,
    VAETrainingPlan,
    reject_unknown,
    run_stage,
)
from cfmvc_scvi.train.arguments import (
    VAE_STEPS,
    check_sizes,
    epochs_for,
    flow_steps,
    monitor_of,
    refuse_of_one_stage,
    trainer_arguments,
)
from cfmvc_scvi.train.history import merge_histories
from cfmvc_scvi.train.processes import from_first, several
from cfmvc_scvi.train.state import Stage

#: Cells that the start values of stage 1 are computed from, and memory for their dense copy.
_INIT_CELLS, _INIT_BYTES = 20_000, 256 * 2**20


class TrainingMixin(CalibrationMixin, DataModuleMixin, ResourceMixin):
    """Training of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi._base.ModelBase`, cells and state; on the calibration that a training ends with,
    on the data of a data module, and on the memory that it is going to take.
    """

    def train(
        self,
        *,
        vae_max_epochs: int | None = None,
        flow_max_epochs: int | None = None,
        batch_size: int = 128,
        flow_batch_size: int = 256,
        train_size: float | None = None,
        validation_size: float | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        early_stopping: bool = False,
        data_on_device: bool | Literal["auto"] = "auto",
        vae_plan_kwargs: dict[str, Any] | None = None,
        flow_plan_kwargs: dict[str, Any] | None = None,
        checkpoint_dir: str | PathLike | None = None,
        resume: bool = False,
        datamodule: CountsDataModule | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train both stages: the VAE, then the flow on its frozen latents.

        Parameters
        ----------
        vae_max_epochs, flow_max_epochs
            Passes over the cells, at least 1; ``None`` chooses them by the number of cells, for about 900 steps of
            stage 1 and, of stage 2, 700 and 20 more for every perturbation, at most 20,000; at least 10 passes.
        batch_size, flow_batch_size
            Cells per step of each stage, those of all processes together.
        train_size, validation_size
            Fractions of the cells, of one seeded split for both stages. ``None`` is 0.9 and the rest.
        accelerator, devices
            As in Lightning's trainer. With several devices, each step's cells are shared among as many processes, and
            what is learned is what one process would learn, to rounding. A script is started once more for every
            further process, and all of them return from here with the same model; under ``torchrun`` leave
            ``devices`` out. See the page on training in the user guide.
        early_stopping
            Stop a stage when its own validation loss no longer falls: ``elbo_validation``, ``flow_loss_validation``.
        data_on_device
            Keep the counts of stage 1 on the GPU: ``"auto"`` where they take at most 40 % of its free memory (8 bytes
            per count that is not zero). Without a GPU, ``"auto"`` reads them from ``adata`` as they are.
        vae_plan_kwargs, flow_plan_kwargs
            Arguments of :class:`~cfmvc_scvi.train.VAETrainingPlan` and :class:`~cfmvc_scvi.train.FlowTrainingPlan`.
        checkpoint_dir
            Folder for the whole state of the training after every epoch; the last one replaces the one before.
        resume
            Go on from the state in ``checkpoint_dir``, with the same arguments and data: on the CPU the result is that
            of a run that was never interrupted, to the bit. Where the folder holds no state, start from the beginning;
            so a job that may be killed can always be called with ``resume=True``.
        datamodule
            Data of a model that was made or loaded without, from :meth:`setup_annbatch`; the model then keeps them.
        **trainer_kwargs
            Further arguments of :class:`scvi.train.Trainer`, for both stages. ``early_stopping_monitor`` is for the
            stage that logs it, the flow for names that begin with ``flow_``; the other stage watches its own loss.

        Raises
        ------
        TypeError
            For ``max_epochs`` or ``plan_kwargs``, which each stage has of its own, and numbers that are not whole.
        FloatingPointError
            When a stage diverges, with the stage, the epoch and a remedy. If it is stage 2, the VAE is
            trained and :meth:`get_latent_representation` works.
        ValueError
            When ``checkpoint_dir`` holds the state of another run, with the differences, or one and ``resume`` is off;
            for devices that cannot train together, with what to pass.
        MemoryError
            When more memory would be taken than is free, where the system says how much that is, with what would fit.
        OSError
            When a checkpoint cannot be written. The model is then left usable, as by Ctrl-C.
        KeyboardInterrupt
            After Ctrl-C, with a warning that says what is usable: the weights are those of the last finished epoch.
        """
        refuse_of_one_stage(trainer_kwargs)
        check_sizes(vae_max_epochs=vae_max_epochs, flow_max_epochs=flow_max_epochs)
        check_sizes(batch_size=batch_size, flow_batch_size=flow_batch_size)
        reject_unknown("flow_plan_kwargs", flow_plan_kwargs or {}, FlowTrainingPlan.__init__)
        monitor = trainer_kwargs.pop("early_stopping_monitor", None)
        common = {"accelerator": accelerator, "devices": devices, "early_stopping": early_stopping, **trainer_kwargs}
        common |= {"checkpoint_dir": checkpoint_dir, "resume": resume}
        self._require_memory(self._data_for("train", datamodule))
        self.train_vae(
            vae_max_epochs,
            batch_size=batch_size,
            train_size=train_size,
            validation_size=validation_size,
            data_on_device=data_on_device,
            plan_kwargs=vae_plan_kwargs,
            datamodule=datamodule,
            **common,
            **monitor_of("vae", monitor),
        )
        self.train_flow(
            flow_max_epochs,
            batch_size=flow_batch_size,
            plan_kwargs=flow_plan_kwargs,
            **common,
            **monitor_of("flow", monitor),
        )

    @single_precision
    def train_vae(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int = 128,
        train_size: float | None = None,
        validation_size: float | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        early_stopping: bool = False,
        data_on_device: bool | Literal["auto"] = "auto",
        plan_kwargs: dict[str, Any] | None = None,
        checkpoint_dir: str | PathLike | None = None,
        resume: bool = False,
        datamodule: CountsDataModule | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Stage 1 alone, with the arguments of :meth:`train`; a flow trained before no longer fits and is dropped."""
        adata = self._data_for("train", datamodule)
        check_sizes(max_epochs=max_epochs, batch_size=batch_size)
        checkpoints = CheckpointFolder.of(checkpoint_dir, resume)
        arguments = StageArguments(
            max_epochs=max_epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            plan_kwargs=plan_kwargs,
            seed=self._seed,
            train_size=train_size,
            validation_size=validation_size,
            trainer=trainer_kwargs,
        )
        resumed = None if checkpoints is None else checkpoints.begin(self._training_state(), "vae", arguments)
        if resumed is not None and (resumed["stage"] == "flow" or resumed["finished"]):
            if resumed["stage"] == "vae":
                self._finish_vae(self._read(adata))
            return
        if self.split_ is None or (resumed is None and (train_size is not None or validation_size is not None)):
            self._set_split(split_cells(adata.n_obs, train_size, validation_size, self._seed))
        cells = self._read(adata)
        self.module.likelihood.back_to_training()
        if not self.is_vae_trained_ and resumed is None:
            self._initialize(cells, self._conditions_of(adata), self._split.train)
        plan = VAETrainingPlan(self.module, **(plan_kwargs or {}))
        data = CountDataModule(count_source(cells), self._split, batch_size, on_device=data_on_device, seed=self._seed)
        trainer_kwargs = trainer_arguments(
            trainer_kwargs, early_stopping, "elbo_validation", len(self._split.validation)
        )
        stopped = run_stage(
            self,
            self._training_state(),
            plan,
            data,
            stage="vae",
            max_epochs=max_epochs or epochs_for(VAE_STEPS, len(self._split.train), data.batch_size),
            accelerator=accelerator,
            devices=devices,
            checkpoints=checkpoints,
            resumed=resumed,
            **trainer_kwargs,
        )
        self._finish_vae(cells)
        if stopped is not None:
            raise stopped

    @single_precision
    def train_flow(
        self,
        max_epochs: int | None = None,
        *,
        batch_size: int = 256,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        early_stopping: bool = False,
        plan_kwargs: dict[str, Any] | None = None,
        checkpoint_dir: str | PathLike | None = None,
        resume: bool = False,
        datamodule: CountsDataModule | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Stage 2 alone, on the split of stage 1; the VAE keeps every bit. The arguments are those of :meth:`train`."""
        self._require_memory(self._data_for("train", datamodule))
        check_sizes(max_epochs=max_epochs, batch_size=batch_size)
        checkpoints = CheckpointFolder.of(checkpoint_dir, resume)
        arguments = StageArguments(
            max_epochs=max_epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            plan_kwargs=plan_kwargs,
            seed=self._seed,
            trainer=trainer_kwargs,
        )
        resumed = None if checkpoints is None else checkpoints.begin(self._training_state(), "flow", arguments)
        self._require_vae("train the flow")
        if not self.vocabulary.names:
            raise ValueError("All cells are control cells: there is no perturbation for the flow to learn.")
        cache = self._cache_latents()
        if not self.vocabulary.has_embedding:
            warn_of_untrained(self.vocabulary.names, cache, self._split.train)
        populations = functools.cache(lambda: self._populations(cache))
        from_first(lambda: populations() is not None)  # one process goes through the counts, and before the training
        self._fit_doses(cache, populations)
        if resumed is not None and resumed["finished"]:
            self._finish_flow(cache, populations)
            return
        plan = FlowTrainingPlan(self.module, **(plan_kwargs or {}))
        units = self.module.flow_center.cpu(), self.module.flow_scale.cpu()
        data = LatentDataModule(
            cache.flow_data(*units, self.vocabulary.members(cache.conditions)),
            self._split,
            get_coupling(self.coupling),
            self.flow_source,
            batch_size,
            seed=self._seed,
        )
        trainer_kwargs = trainer_arguments(
            trainer_kwargs, early_stopping, "flow_loss_validation", len(self._split.validation)
        )
        stopped = run_stage(
            self,
            self._training_state(),
            plan,
            data,
            stage="flow",
            max_epochs=max_epochs
            or epochs_for(flow_steps(len(self.vocabulary.names)), len(self._split.train), batch_size),
            accelerator=accelerator,
            devices=devices,
            checkpoints=checkpoints,
            resumed=resumed,
            **trainer_kwargs,
        )
        self._finish_flow(cache, populations)
        if stopped is not None:
            raise stopped

    def _finish_vae(self, cells: CellTable) -> None:
        """What stage 1 ends with once the weights are there: the spread of counts, from cells outside training."""

        def fitted() -> dict[str, Tensor]:
            condition = self._conditions_of(self._require_adata("train")).code
            set_spread(self.module, cells, condition, self._split, self._seed)
            return {name: values.cpu() for name, values in self.module.state_dict().items()}

        self.module.load_state_dict(from_first(fitted))
        self.is_vae_trained_ = True

    def _finish_flow(self, cache: LatentCache, populations: Callable[[], Populations]) -> None:
        """What makes a flow usable once its weights are there."""
        self.trained_conditions_, self.trained_cells_ = trained_conditions(cache, self._split.train)
        self.trained_places_ = trained_places(cache, self._split.train)
        self.confounded_ = confounded_with_batch(cache, self._split.train)
        if several():
            saved = from_first(lambda: self._fit_calibration(cache, populations()).state.to_saved())
            self.calibration_ = make_calibration(CalibrationState.from_saved(saved), self.module, self.vocabulary)
        else:
            self.calibration_ = self._fit_calibration(cache, populations())
        self.is_flow_trained_ = self.is_trained_ = True

    def _fit_doses(self, cache: LatentCache, populations: Callable[[], Populations]) -> None:
        """Learn the response to doses from the populations, before anything is trained on it."""
        if self.setup_keys.dosage_key is None:
            return
        reference = self.vocabulary.reference_dose

        def fitted() -> dict[str, dict[str, float]]:
            found = populations()
            keys = [cache.conditions[code].key for code in found.condition]
            curves = fit_dose_response(effects_of_doses(keys, found.label, found.effect, found.variance), reference)
            return {name: curve.to_dict() for name, curve in curves.items()}

        self.dose_response_ = from_first(fitted)

    # ---- parts ------------------------------------------------------------------------------------------------

    def _training_state(self) -> ModelState:
        """What the stages may do to the state of this model."""
        return ModelState(self._reset_stage, self._checkpoint_state, self._restore_checkpoint, self._identity)

    def _reset_stage(self, stage: Stage) -> Callable[[], None]:
        before = {name: getattr(self, name) for name in MADE_ANEW[stage]}
        vars(self).update(MADE_ANEW[stage])
        return lambda: vars(self).update(before)

    def _checkpoint_state(self) -> dict[str, Any]:
        state = self._get_state()
        del state["calibration_"]  # made again from the latents
        return state

    def _restore_checkpoint(self, content: Mapping[str, Any]) -> None:
        self._set_state(content["attributes"])
        if self.split_ is not None:
            self._set_split(CellSplit(*self.split_))
        finished = content["finished"]
        self.history_ = (
            merge_histories(content["history"], content["stage_history"]) if finished else content["history"]
        )
        if content["stage"] == "flow" or finished:
            self.is_vae_trained_ = True
        self.module.load_state_dict(content["module"])

    def _identity(self) -> dict[str, Any]:
        init = self.init_params_
        data = data_fingerprint(self._require_adata("train"), self.setup_keys)
        variable = {name: value for group in init["kwargs"].values() for name, value in group.items()}
        named = {f"model argument `{name}`": value for name, value in (init["non_kwargs"] | variable).items()}
        named |= {f"setup argument `{name}`": value for name, value in self.registry["setup_args"].items()}
        return named | {f"the {name} of the data": value for name, value in data.items()}

    def _set_split(self, split: CellSplit) -> None:
        self.split_ = split.as_list()
        self.train_indices, self.validation_indices, self.test_indices = split.as_list()

    def _initialize(self, cells: CellTable, found: CellConditions, rows: np.ndarray) -> None:
        """Start values of stage 1 from a sample of the training cells."""
        n_most = min(_INIT_CELLS, max(1, _INIT_BYTES // (4 * cells.counts.shape[1])))
        if len(rows) > n_most:
            rows = np.sort(np.random.default_rng(self._seed).choice(rows, n_most, replace=False))
        cells = cells.take(rows)
        labels, batch = cells.context.labels.numpy(), cells.context.batch.numpy()
        group = np.unique(np.stack([labels, found.code[rows]]), axis=1, return_inverse=True)[1].ravel()
        counts = cells.dense(slice(None))
        initialize_linear_paths(self.module.cpu(), counts, cells.library, batch, group, seed=self._seed)

    def _cache_latents(self) -> LatentCache:
        """Posterior of every registered cell, encoded once, with its condition; sets the flow's units."""
        cache, train = self._latents(), self._split.train
        if not (cache.condition[train] == 0).any():
            raise ValueError(
                "There are no control cells among the training cells: train with a larger `train_size`, or check "
                f"`control_group` ({list(self.vocabulary.control_group)})."
            )
        spatial = cache.cells.context.spatial
        self.module.set_flow_units(cache.posterior.mean[train], None if spatial is None else spatial[train])
        return cache
