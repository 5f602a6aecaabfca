"""Transfer: a trained model that takes in further data, in the manner of scArches."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings

from cfmvc_scvi._arguments import cells_of
from cfmvc_scvi._base import single_precision
from cfmvc_scvi._compat import parse_device
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._messages import shortened
from cfmvc_scvi._types import obs_of
from cfmvc_scvi.calibration import make_calibration
from cfmvc_scvi.calibration.extend import extended
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.cells.pairs import PairLoader
from cfmvc_scvi.flow import get_coupling
from cfmvc_scvi.model.calibrate import CalibrationMixin
from cfmvc_scvi.model.effects import EffectMixin
from cfmvc_scvi.model.persist import PersistenceMixin, align_genes
from cfmvc_scvi.module.extend import set_batch, take_over
from cfmvc_scvi.prediction.places import trained_places
from cfmvc_scvi.prediction.trained import confounded_with_batch, trained_conditions
from cfmvc_scvi.registration.keys import has_presence_matrix, perturbation_labels
from cfmvc_scvi.registration.labels import split_label
from cfmvc_scvi.registration.spelling import texts_of
from cfmvc_scvi.train.new_columns import fit_new_columns

logger = logging.getLogger("scvi.cfmvc")

#: Pairs of a step when new perturbations are learned.
_PAIRS = 256


class QueryMixin(  # pyright: ignore[reportIncompatibleMethodOverride]  # scvi-tools' mixins and ours: ours come first
    CalibrationMixin, EffectMixin, PersistenceMixin
):
    """Transfer of :class:`~cfmvc_scvi.CFMVC` to further data.

    Relies on :class:`~cfmvc_scvi.model.persist.PersistenceMixin` to make a model of another's attributes, on
    :class:`~cfmvc_scvi.model.effects.EffectMixin` for the populations of the reference, and on
    :class:`~cfmvc_scvi.model.calibrate.CalibrationMixin` for those of the further data.
    """

    @classmethod
    @single_precision
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: str | os.PathLike | Self,
        *,
        accelerator: str = "auto",
        device: int | str = "auto",
    ) -> Self:
        r"""A trained model with further data taken in: new batches, cell types and perturbations.

        After scArches (Lotfollahi et al. 2022), which adds rows to the tables of a trained model and keeps everything
        else. Here most of the rows are found in closed form, so the model is ready when it is returned, in seconds;
        there is nothing to train.

        - **Frozen**: everything that the reference learned. Its latents stay as they were to the bit, its decoder and
          flow to rounding (offsets of batches are centred anew), and with them the latent path of what it predicted.
        - **A new batch** needs control cells of a cell type that was trained on: its offsets in encoder and decoder and
          its technical prior are set from them (:func:`~cfmvc_scvi.module.extend.set_batch`). Without such cells it is
          an average batch, which is logged.
        - **A new cell type** needs control cells, and may have nothing else. The encoder takes it for the trained type
          with the nearest control profile; the calibration gets its own profile and control cells.
        - **A new perturbation** without a vector is learned from its cells, a few suffice: its column in the flow's
          adapter, 300 steps of Adam and nothing else (:func:`~cfmvc_scvi.train.new_columns.fit_new_columns`). Where the
          model has vectors, the reference's must hold one for it, and nothing is trained.
        - **The process** of mean effects is fitted anew on the populations of the reference and of the further data
          together. This is the one way in which predictions for what was known before change: by what the further
          cells say of it.

        The populations of the reference travel with its calibration: with a model at hand that has its data they are
        made where they are missing; a saved model has them when :meth:`get_perturbation_effect` was called before
        :meth:`save`.

        Parameters
        ----------
        adata
            Further cells with the columns and, by name, the genes of the reference: control cells, and perturbed ones
            or not. Effects are measured against these control cells, so perturbed cells need some of their cell type.
        reference_model
            A trained model, or the folder it was saved in.
        accelerator, device
            Where the networks go, as in scvi-tools.

        Returns
        -------
        A model of its own; the reference is not touched. Its registered data are ``adata``, its cell types, batches and
        perturbations those of both. It is not trained or calibrated further: to take in more, make it again.

        Raises
        ------
        ValueError
            Without control cells; for missing genes, new levels of further covariates, new perturbations at doses or
            without a vector where the others have one, and a reference without the effects of its populations.
        RuntimeError
            When the reference is not trained.

        References
        ----------
        Lotfollahi M, et al. (2022). Mapping single-cell data to reference atlases by transfer learning. Nature
        Biotechnology 40, 121-130.

        Examples
        --------
        >>> query = CFMVC.load_query_data(new_cells, "kang_model")
        >>> predicted = query.predict_perturbation(perturbation="IFNB")
        """
        cells_of("adata", adata)
        reference = cls._reference(reference_model)
        registry = copy.deepcopy(reference.registry)
        adata = align_genes(adata, [str(name) for name in reference.get_var_names()])
        reference._check_further_levels(adata)
        vocabulary = registry["field_registries"][CFMVC_KEYS.PERTURBATION_KEY]["state_registry"]["vocabulary"]
        vocabulary["names"] = [*vocabulary["names"], *reference._new_perturbations(adata)]
        cls.setup_anndata(adata, source_registry=registry, extend_categories=True, **registry["setup_args"])
        attributes = {k: copy.copy(v) for k, v in reference._saved_attributes().items() if k != "registry_"}
        attributes["init_params_"] = copy.deepcopy(attributes["init_params_"])
        model = cls._restore(adata, registry, attributes)
        model._take_in(reference)
        model.to_device(parse_device(accelerator, device))
        model.module.eval()
        return model

    # ---- the reference ----------------------------------------------------------------------------------------

    @classmethod
    def _reference(cls, model: str | os.PathLike | Self) -> Self:
        """The reference with the effects of its training populations."""
        if isinstance(model, (str, os.PathLike)):
            model = cls.load(os.fspath(model), adata=False)
        if not isinstance(model, cls):
            raise TypeError(
                f"`reference_model` is of type {type(model).__name__}; give a trained {cls.__name__}, or the folder it "
                "was saved in."
            )
        model._require_flow("take in further data")
        if model._calibration.state.observed is None and model._registered is None:
            raise ValueError(
                "The reference does not carry the effects of its training populations, which the further data are put "
                "beside: load it with its data, as `CFMVC.load(path, adata=...)`, and pass the model; or call "
                "`get_perturbation_effect` once before it is saved."
            )
        model._observed_effects()
        return model

    def _check_further_levels(self, adata: AnnData) -> None:
        keys = self.setup_keys
        for key in keys.categorical_covariate_keys or []:
            known = self._field_registries[REGISTRY_KEYS.CAT_COVS_KEY]["state_registry"]["mappings"][key]
            further = sorted(set(texts_of(obs_of(adata)[key])) - set(texts_of(known))) if key in adata.obs else []
            if further:
                raise ValueError(
                    f"adata.obs[{key!r}] has levels that the reference was not trained with: {shortened(further)}. New "
                    "batches, cell types and perturbations are taken in, new levels of further covariates are not: "
                    "leave these cells out."
                )

    def _new_perturbations(self, adata: AnnData) -> list[str]:
        """Perturbations of further cells that were not in training, refused where nothing could be learned of them."""
        keys, vocabulary = self.setup_keys, self.vocabulary
        if not has_presence_matrix(adata, keys.perturbation_key) and keys.perturbation_key not in adata.obs:
            raise KeyError(
                f"adata.obs[{keys.perturbation_key!r}] is not there: it says what was done to each cell. Control cells "
                f"alone have {vocabulary.control_label!r} in it."
            )
        labels = dict.fromkeys(perturbation_labels(adata, keys))
        found = [m for label in labels for m in split_label(label, keys.combination_delimiter, keys.control_group)]
        names = [name for name in dict.fromkeys(found) if name not in (*vocabulary.names, *keys.control_group)]
        if names and has_presence_matrix(adata, keys.perturbation_key):
            raise ValueError(
                f"{shortened(names)}: new columns of the presence matrix are not taken in. Register the reference with "
                "a column of labels, or leave these perturbations out."
            )
        if names and keys.dosage_key is not None:
            raise ValueError(
                f"{shortened(names)} were not in training. New perturbations at doses are not taken in: their response "
                "to doses would have to be learned from few cells. Leave them out, or train with all cells."
            )
        if vocabulary.has_embedding:
            vocabulary.members([vocabulary.parse(name) for name in names])  # refuses those without a vector
        return names

    # ---- what is taken in -------------------------------------------------------------------------------------

    def _take_in(self, reference: Self) -> None:
        """Rows of new levels, the process with further populations, and the record of what was trained on."""
        adata = self._require_adata("take them in")
        cells, found = self._read(adata), self._conditions_of(adata)
        control, labels = np.flatnonzero(found.code == 0), cells.context.labels.numpy()
        if not len(control):
            raise ValueError(
                "There are no control cells among the further cells: effects are measured against them, and they say "
                f"what a batch and a cell type are like. Controls are {list(self.vocabulary.control_group)}."
            )
        n_before = len(reference.cell_types)
        lacking = [self.cell_types[c] for c in range(n_before, len(self.cell_types)) if c not in labels[control]]
        if lacking:
            raise ValueError(
                f"{shortened(lacking)}: new cell types without control cells. Give control cells of them, or leave "
                "these cells out."
            )
        stray = self._without_controls(found, labels, labels[control])
        new_types, of_type = range(n_before, len(self.cell_types)), labels[control]
        like = [reference._nearest_type(cells.take(control[of_type == code])) for code in new_types]
        take_over(self.module, reference.module.state_dict(), like)
        for code, near in zip(new_types, like, strict=True):
            logger.info(f"New cell type {self.cell_types[code]!r}: encoded as {self.cell_types[near]!r}.")
        profiles = reference._calibration.state.profiles
        trained = control[np.isin(of_type, reference._types_with_controls())]
        for code in range(len(reference.batches), len(self.batches)):
            rows = trained[cells.context.batch.numpy()[trained] == code]
            if len(rows) > 1:
                set_batch(self.module, code, cells.take(rows), profiles[labels[rows]])
            else:
                logger.warning(
                    f"New batch {self.batches[code]!r} has no control cells of a trained cell type: it is taken for an "
                    "average batch."
                )
        self.split_ = [np.flatnonzero(~stray), np.zeros(0, dtype=int), np.flatnonzero(stray)]
        self.train_indices, self.validation_indices, self.test_indices = self.split_
        cache = self._latents()
        self._learn_columns(cache, reference.vocabulary.n_features)
        populations = self._populations(cache)
        members = self.vocabulary.members(cache.conditions).take(populations.condition)
        state = reference._calibration.state
        self.calibration_ = make_calibration(
            extended(state, cache, self._fitted_rows, populations, members, self._seed), self.module, self.vocabulary
        )
        self._add_to_record(cache)
        self.adapted_ = True

    def _without_controls(self, found: Any, labels: np.ndarray, of_controls: np.ndarray) -> np.ndarray:
        """Perturbed cells whose type has no control cells among the further cells, with a warning; (n_cells,)."""
        stray = (found.code != 0) & ~np.isin(labels, of_controls)
        if not stray.any():
            return stray
        names = [self.cell_types[code] for code in np.unique(labels[stray])]
        usable = {member for code in np.unique(found.code[~stray]) for member in found.conditions[code].members}
        trained = {member for (members, _), _ in self._conditions_of_training for member in members}
        asked = {member for code in np.unique(found.code[stray]) for member in found.conditions[code].members}
        lost = [] if self.vocabulary.has_embedding else sorted(asked - usable - trained)
        if lost:
            raise ValueError(
                f"{shortened(lost)}: new perturbations all of whose cells are of types without control cells among the "
                f"further cells ({shortened(names)}), so there is nothing to measure them from. Give control cells of "
                "these types, or leave the perturbed ones out."
            )
        warnings.warn(
            f"{int(stray.sum())} perturbed cells are left aside: there are no control cells of their types "
            f"({shortened(names)}) among the further cells, which effects would be measured from.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
        return stray

    def _nearest_type(self, cells: Any) -> int:
        """Code of the trained cell type whose control profile correlates best with the mean of some cells."""
        candidates = self._types_with_controls()
        profiles = self._calibration.state.profiles[candidates]
        mean = cells.batch(slice(None)).lognorm.dense().mean(dim=0).numpy()
        return int(candidates[np.argmax([np.corrcoef(profile, mean)[0, 1] for profile in profiles])])

    def _learn_columns(self, cache: LatentCache, n_trained: int) -> None:
        """Columns of the flow's adapter for new perturbations, where these have no vectors."""
        p = self.vocabulary.members(cache.conditions)
        if p.table is not None or p.n_features == n_trained:
            return
        is_new = np.asarray((p.index >= n_trained).any(axis=1))
        rows = np.intersect1d(np.flatnonzero(is_new[cache.condition]), self._fitted_rows)
        pairs = PairLoader(
            cache.flow_data(self.module.flow_center.cpu(), self.module.flow_scale.cpu(), p),
            rows,
            get_coupling(self.coupling),
            self.flow_source,
            _PAIRS,
            seed=self._seed,
            spare_controls=np.flatnonzero(cache.condition == 0),
        )
        names = self.vocabulary.names[n_trained:]
        logger.info(f"New perturbations {shortened(names)}: learned from {len(rows)} cells, all else frozen.")
        fit_new_columns(self.module, pairs, n_trained, self._seed)

    def _add_to_record(self, cache: LatentCache) -> None:
        """What was trained on, the reference's and the further cells together."""
        rows = self._fitted_rows
        conditions, counts = trained_conditions(cache, rows)
        before, n_before = list(self._conditions_of_training), self.trained_cells_
        place = {pair: i for i, pair in enumerate(dict.fromkeys([*before, *conditions]))}
        if n_before is not None:
            total = dict.fromkeys(place, 0)
            for pair, n in zip([*before, *conditions], [*n_before, *counts], strict=True):
                total[pair] += n
            self.trained_cells_ = list(total.values())
        if self.trained_places_ is not None:
            here = trained_places(cache, rows)
            here["pair"] = np.array([place[conditions[i]] for i in here["pair"]])
            self.trained_places_ = {k: np.concatenate([self.trained_places_[k], here[k]]) for k in here}
        self.trained_conditions_ = list(place)
        if self.confounded_ is not None:
            self.confounded_ = _doubtful(self.confounded_, confounded_with_batch(cache, rows), before, conditions)


def _doubtful(before: Sequence[Any], found: Sequence[Any], trained: Sequence[Any], further: Sequence[Any]) -> list[Any]:
    """Conditions that were measured only in batches without control cells, in both data."""
    clear_before = {key for key, _ in trained} - set(before)
    clear_here = {key for key, _ in further} - set(found)
    return [key for key in dict.fromkeys([*before, *found]) if key not in clear_before | clear_here]
