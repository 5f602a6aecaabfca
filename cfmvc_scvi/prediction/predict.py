"""Counterfactual prediction: given cells, as they would look under a perturbation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings
from scvi.utils import track
from torch import Tensor

from cfmvc_scvi._arguments import cells_and_perturbation
from cfmvc_scvi._base import as_rows, single_precision
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._messages import shortened
from cfmvc_scvi.calibration.change import (
    LevelChange,
    RateChange,
    cell_generators,
    decoded_change,
    drawn_counts,
    expected_counts,
    lognorm_expression,
)
from cfmvc_scvi.cells.nearest import with_nearest_labels
from cfmvc_scvi.prediction.like_data import LikeDataMixin
from cfmvc_scvi.prediction.output import Output, latent_var, make_output
from cfmvc_scvi.prediction.request import UNITS, PredictionCall, Request, RequestMixin, ReturnType
from cfmvc_scvi.prediction.result import result_obs
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.prediction.support import SupportMixin
from cfmvc_scvi.registration.registration import perturbed_cells

#: Size of a dense result in memory above which writing it to disk is suggested.
_LARGE_BYTES = 4 * 2**30
#: Size of the dense counts of the cells to perturb up to which they are read from disk once, for all conditions.
_HELD_BYTES = 2**30


class PredictionMixin(RequestMixin, SupportMixin, LikeDataMixin):
    """Prediction of :class:`~cfmvc_scvi.CFMVC`.

    Relies on the reading of requests, on the support of conditions and on the model's calibration.
    """

    @single_precision
    def predict_perturbation(
        self,
        adata: AnnData | str | Sequence[str] | pd.DataFrame | None = None,
        perturbation: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        indices: Sequence[int] | None = None,
        dosage: float | str | None = None,
        batch: str | None = None,
        return_type: ReturnType = "mean",
        n_samples: int = 1,
        n_steps: int | None = None,
        solver: str | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        unknown_labels: Literal["error", "nearest"] = "error",
        out: str | os.PathLike | None = None,
        show_progress: bool | None = None,
    ) -> AnnData:
        r"""Given cells, as they would look under a perturbation.

        The prediction keeps each observed cell and adds the change that the model decodes for it, on the scale of
        log1p of counts per 10,000; drawn counts come from the cell's own negative binomial with its rate multiplied
        (:func:`~cfmvc_scvi.likelihood.negative_binomial.counterfactual_mean`). So an unchanged cell comes back as it
        was.

        Parameters
        ----------
        adata
            Control cells to perturb, with the model's genes in any order; nothing is written into it. ``None``
            takes the control cells of the registered data; so does a perturbation that stands here alone, as in
            ``predict_perturbation("IFNB")``.
        perturbation
            A label, a list of labels, or a DataFrame of conditions, one per row, with the columns ``perturbation``
            and, where wanted, ``dosage``, ``labels`` (take the cells of this cell type only) and ``batch`` (decode in
            this batch). ``None`` is every perturbation seen in training. One block of rows per condition.
        indices
            Rows of ``adata`` (or of the registered data) to take: numbers, a boolean mask, or names of cells.
        dosage
            Dose of the perturbation: one number, or numbers delimited like the label. A list has one for each
            perturbation, or several for one.
        batch
            Decode as if measured in this batch; ``None`` is each cell's own.
        return_type
            ``"mean"``: expected counts at each cell's own library size, float32. ``"counts"``: integer counts drawn
            from the negative binomial, CSR. ``"lognorm"``: log1p of counts per 10,000 after the change, float32; the
            logarithm of ``"mean"`` but in cells with fewer than 400 counts, where the means of the counts and of
            their logarithms cannot both be right.
            ``"latent"``: the transported intrinsic latent alone.
        n_samples
            For ``"counts"``, draws per cell, in rows of their own that ``obs["draw"]`` numbers; else the number of
            posterior draws of the latent that are averaged, where 1 uses the posterior mean.
        n_steps, solver
            Steps and method of the flow: ``"euler"``, ``"midpoint"``, ``"rk4"`` or ``"adaptive"``.
        batch_size
            Cells at a time, 512 if ``None``; does not change the result of the fixed-step solvers.
        seed
            Seed of all draws; ``None`` is that of ``scvi.settings``, or 0. Draws belong to a cell's name and
            condition: other cells in the call do not change them.
        unknown_labels
            What to do with cells of a type that was not in training (or without the column of cell types).
            ``"error"`` refuses them. ``"nearest"`` treats each cell as one of the trained type whose mean control
            expression correlates best with it, and names that type in ``obs["nearest_label"]``; the support of such
            a cell is never ``"seen"``.
        out
            Path ending in ``.h5ad`` or ``.zarr``: the result is written there in chunks, and never as a whole in
            memory. The file appears when it is complete.
        show_progress
            Show a bar over conditions; ``None`` does when there are several.

        Returns
        -------
        AnnData (n_conditions * n_cells [* n_samples], n_genes)
            With ``out``, the values stay on disk. ``obs`` has the cells' own columns with the perturbation replaced,
            and

            - ``source_cell``: name of the cell that was perturbed;
            - ``support``: ``"seen"`` (this perturbation in this cell type was trained on), ``"new context"`` (in
              others), ``"new combination"`` (its members were, but not together), ``"new perturbation"`` (known by its
              vector);
            - ``support_distance``: Euclidean distance of the condition's vector to the nearest one of training, control
              among them, in units of a perturbation's typical length: 0 for a trained one, 1 as far as a typical
              perturbation is from control;
            - ``support_reach``, where perturbations have vectors: what is kept of the answer for a perturbation that
              was not measured, from 0.05 to 1, and 1 for those measured. Near 1 several measured perturbations agree on
              it; near 0 it hangs on a single one, and the answer is near to no change;
            - ``n_support``: training cells of this condition (at its dose) in this cell type. With few of them the
              answer leans on what is known of other perturbations, cell types and genes, and on no effect;
            - ``support_batch``, where the model has batches, and ``support_sample``, where it has samples and the cells
              say theirs: what was trained on in the batch that is decoded, and in the cell's sample. ``"seen"`` (this
              perturbation in this cell type, beside controls), ``"controls only"`` (control cells of this type alone:
              the answer comes from other batches or samples), ``"no controls"`` (no control cell of this type),
              ``"unknown"`` (nothing).

            A column of the cells that has one of these names is kept with the ending ``_of_source``. With several draws
            per cell, ``draw`` numbers them.

            ``obsm["X_cfmvc"]`` is the transported latent; ``uns["cfmvc"]`` the call, where ``carried_by`` has the
            weights of the estimators of the mean effect, for every one of the ``perturbations``. Of ``"mean"`` and
            ``"counts"``, the layer that was registered holds the same values as ``X``, so that the result can stand
            beside the real cells (``anndata.concat``) and be given back to the model.

        Warns
        -----
        UserWarning
            Where cells are perturbed already, doses are above those of training, cells have no counts, a batch has
            no control cells of their type, or the vector of a perturbation that was not measured tells little.

        Raises
        ------
        ValueError
            For a perturbation that was not in training and has no embedding, naming the known ones; for unknown
            cell types, batches and doses.
        RuntimeError
            When the flow is not trained.
        TypeError
            For cells that are no AnnData.
        """
        self._require_flow("predict")
        adata, perturbation = cells_and_perturbation(adata, perturbation)
        call = PredictionCall.of(
            return_type,
            n_samples=n_samples,
            solver=solver,
            n_steps=n_steps,
            batch_size=batch_size,
            seed=self._seed if seed is None else seed,
        )
        requests = self._requests(perturbation, dosage, batch)
        sources = self._sources(adata, indices, requests, call, unknown_labels)
        output = self._make_output(out, requests, sources, call)
        hidden = len(requests) == 1 if show_progress is None else not show_progress
        try:
            for request in track(requests, description="Predicting conditions", disable=hidden):
                for x, latent in self._predict_request(request, sources[request.labels], call):
                    output.append(x, latent)
            return output.finish()
        except BaseException:
            output.abandon()
            raise

    # ---- what is asked ----------------------------------------------------------------------------------------

    def _sources(
        self,
        adata: AnnData | None,
        indices: Sequence[int] | None,
        requests: list[Request],
        call: PredictionCall,
        unknown_labels: str,
    ) -> dict[str | None, SourceCells]:
        """Cells of every cell type that was asked for; ``None`` stands for all."""
        if unknown_labels not in ("error", "nearest"):
            raise ValueError(f"Unknown `unknown_labels` {unknown_labels!r}: choose 'error' or 'nearest'.")
        rows: Sequence[int] | np.ndarray | None = indices
        if adata is None and indices is None:
            own = self._require_adata("predict for its control cells")
            rows = np.flatnonzero(self._conditions_of(own).is_control)
        batches = {request.batch for request in requests}
        default = batches.pop() if len(batches) == 1 else None
        cells = self._cells(adata, rows, default, allow_unknown=unknown_labels == "nearest")
        if not len(cells):
            raise ValueError("There are no cells to perturb: `adata` or `indices` is empty.")
        perturbed = self._perturbed(adata, rows, requests)
        cells, nearest = with_nearest_labels(cells, self._calibration.state.profiles, self._types_with_controls())
        several = len(requests) > 1
        out = {}
        for name in dict.fromkeys(request.labels for request in requests):
            wanted = np.ones(len(cells), dtype=bool)
            if name is not None:
                wanted = (cells.context.labels.numpy() == self.cell_types.index(name)) & ~nearest
                if not wanted.any():
                    raise ValueError(f"None of the {len(cells)} cells is of cell type {name!r}, which was asked for.")
            rows = np.flatnonzero(wanted)
            table = cells.take(rows).padded().held(_HELD_BYTES)
            posterior = self._encode(table, call.batch_size)
            labels = np.array(self.cell_types)[table.context.labels.numpy()[: len(rows)]]
            twice = None if perturbed is None else perturbed[rows]
            out[name] = SourceCells(
                table, len(rows), nearest[rows], labels, posterior, self.module, call, several, perturbed=twice
            )
        return out

    def _perturbed(
        self, adata: AnnData | None, rows: Sequence[int] | np.ndarray | None, requests: list[Request]
    ) -> np.ndarray | None:
        """Which of the cells are perturbed already, with a warning; ``None`` where none is."""
        cells = self._require_adata("use its cells") if adata is None else adata
        found = perturbed_cells(cells, self.setup_keys, self.vocabulary)
        found = found if rows is None else found[as_rows(rows, cells.n_obs, cells.obs_names)]
        asked = [request.condition.label for request in requests if not request.condition.is_control]
        if not found.any():
            return None
        if asked:
            warnings.warn(
                f"{int(found.sum())} of the {len(found)} cells are perturbed already, by their "
                f"{self.setup_keys.perturbation_key!r}: {shortened(asked, 3)} is predicted on top of that, which the "
                "training data say nothing about, and their support is 'new combination'. Give control cells alone.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        return found

    # ---- the work ---------------------------------------------------------------------------------------------

    def _predict_request(
        self, request: Request, source: SourceCells, call: PredictionCall
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Rows of one condition, some at a time: values as they are returned, and latents."""
        moved = source.move(self._calibration.encode(request.condition))
        for draw in range(call.draws):
            for rows in source.cells.chunks(call.batch_size):
                latent = moved[:, rows].mean(dim=0).numpy()
                value = latent
                if call.return_type != "latent":
                    value = self._expression(source, rows, request, call, moved[:, rows], draw)
                kept = min(source.n_cells - rows.start, len(latent))
                yield value[:kept], latent[:kept]

    @torch.inference_mode()
    def _expression(
        self,
        source: SourceCells,
        rows: slice,
        request: Request,
        call: PredictionCall,
        moved: Tensor,
        draw: int,
    ) -> Any:
        """Returned expression of some cells, whose latents are ``moved``; averaged over the posterior draws."""
        technical, context = source.posterior.technical_mean[rows], source.cells.context[rows]
        before = source.decoded(rows)
        target = context.batch if request.batch is None else context.with_batch(self.batches.index(request.batch)).batch
        after = source.decode(moved, self._technical_in_batch(technical, context.batch, target), target)
        labels = context.labels.numpy()
        is_counts = call.return_type == "counts"
        correction = self._calibration.correct(request.condition, labels, call.solver, rates=is_counts)
        x, library = source.cells.dense(rows), source.cells.library[rows]
        if is_counts:
            change = RateChange.of(before.numpy(), after.numpy(), correction.log_ratio[labels], library)
            key = self.vocabulary.stream_key(request.condition)
            generators = cell_generators(source.names[rows], call.seed, "counts", key, draw)
            return drawn_counts(x, context.batch, change, self.module.likelihood, generators)
        shift = correction.lognorm[labels]
        if request.batch is not None:
            there = self._calibration.batch_shift(labels, self.batches.index(request.batch), call.solver)
            shift = shift + (target != context.batch).numpy()[:, None] * there[labels]
        change = LevelChange(
            decoded_change(before, after) + torch.from_numpy(shift),
            torch.from_numpy(correction.scale[labels]),
            torch.from_numpy(correction.center[labels]),
        )
        counts = expected_counts(x, library, change, self._calibration.state.highest)
        if call.return_type == "lognorm":
            return lognorm_expression(counts, library)
        return counts if request.condition.is_control else counts * correction.count_scale[labels]

    def _technical_in_batch(self, technical: Tensor, source: Tensor, target: Tensor) -> Tensor:
        if bool((source == target).all()):
            return technical
        device = self.module.device
        return self.module.move_batch(technical.to(device), source.to(device), target.to(device)).cpu()

    # ---- the result -------------------------------------------------------------------------------------------

    def _make_output(
        self,
        out: str | os.PathLike | None,
        requests: list[Request],
        sources: dict[str | None, SourceCells],
        call: PredictionCall,
        identity: Mapping[str, str] | None = None,
    ) -> Output:
        """Where a result goes; ``identity`` is what it depends on, kept in ``uns`` where it is given."""
        is_latent = call.return_type == "latent"
        var = latent_var(self.module.n_latent) if is_latent else self._gene_var()
        obs = self._result_obs(requests, sources, call)
        described = self._describe(call, requests)
        if identity is not None:
            described["identity"] = dict(identity)
        size = 4 * len(obs) * len(var) * (1 if self._counts_layer(call.return_type) is None else 2)
        if out is None and call.return_type != "counts" and size > _LARGE_BYTES:
            warnings.warn(
                f"The prediction is a dense matrix of {len(obs)} x {len(var)}, {size / 2**30:.0f} GiB, in memory. "
                "`out=` writes it to an .h5ad or .zarr file in chunks; `return_type='counts'` is sparse.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        return make_output(
            out,
            obs=obs,
            var=var,
            uns={"cfmvc": described} | self._colors(obs),
            layer=self._counts_layer(call.return_type),
            obsm=self._coordinates([sources[request.labels] for request in requests], call.draws),
            n_latent=self.module.n_latent,
            is_sparse=call.return_type == "counts",
        )

    def _result_obs(
        self, requests: list[Request], sources: dict[str | None, SourceCells], call: PredictionCall
    ) -> pd.DataFrame:
        support = {request: self._grounds_of(request, sources[request.labels]) for request in requests}
        self._warn_of_batches_without_controls(support)
        self._warn_of_little_reach(request.condition for request in requests)
        native = {self._perturbation_column: {}, self.setup_keys.batch_key or "": self._native(REGISTRY_KEYS.BATCH_KEY)}
        if not self._has_presence_matrix:
            native[self._perturbation_column] = self._native(CFMVC_KEYS.PERTURBATION_KEY)
        return result_obs(requests, sources, support, self.setup_keys, self._perturbation_column, call.draws, native)

    def _describe(self, call: PredictionCall, requests: list[Request]) -> dict[str, Any]:
        batches = sorted({request.batch or "own" for request in requests})
        return {
            "return_type": call.return_type,
            "units": UNITS[call.return_type],
            "perturbations": [request.condition.label for request in requests],
            "carried_by": self._carried_by([request.condition for request in requests]),
            "seed": call.seed,
            "solver": type(call.solver).__name__.lower(),
            "n_steps": getattr(call.solver, "n_steps", -1),
            "n_samples": call.n_samples,
            "batch": batches[0] if len(batches) == 1 else batches,
            "flow_source": self.flow_source,
            "perturbation_column": self._perturbation_column,
            **{name: value for name, value in self._where().items() if value is not None},
            "confounded_with_batch": self._confounded([request.condition for request in requests]),
            "allow_noncounts": self.setup_keys.allow_noncounts,
            "versions": {name: version(name) for name in ("cfmvc_scvi", "scvi-tools", "torch")},
        }
