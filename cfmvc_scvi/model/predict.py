"""Counterfactual prediction: given cells, as they would look under a perturbation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import settings
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.data.cells import CellTable
from cfmvc_scvi.data.perturbation import Condition
from cfmvc_scvi.flow import Solver, get_solver
from cfmvc_scvi.model.calibrate import CalibrationMixin
from cfmvc_scvi.model.change import (
    CellChange,
    cell_generators,
    drawn_counts,
    expected_counts,
    lognorm_expression,
)
from cfmvc_scvi.model.latents import CellPosterior

ReturnType = Literal["mean", "counts", "lognorm", "latent"]

_UNITS = {
    "mean": "expected counts at each cell's own library size",
    "counts": "counts drawn from the negative binomial",
    "lognorm": "log1p of counts per 10,000",
    "latent": "intrinsic latent (z_int)",
}
#: Fixed-step solver and number of steps when none is given.
DEFAULT_SOLVER, DEFAULT_STEPS = "midpoint", 10


@dataclass(frozen=True)
class PredictionCall:
    """What was asked for, beside the cells and the conditions."""

    return_type: ReturnType
    n_samples: int
    solver: Solver
    batch: str | None
    batch_size: int
    seed: int

    @property
    def solver_key(self) -> tuple[str, int | None]:
        """What identifies the solver."""
        return type(self.solver).__name__, getattr(self.solver, "n_steps", None)


class PredictionMixin(CalibrationMixin):
    """Prediction of :class:`~cfmvc_scvi.CFMVC`."""

    def predict_perturbation(
        self,
        adata: AnnData | None = None,
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
    ) -> AnnData:
        r"""Given cells, as they would look under a perturbation.

        The prediction keeps each observed cell and adds the change that the model decodes for it, on the scale of
        log1p of counts per 10,000; drawn counts come from the cell's own negative binomial with its rate multiplied
        (:func:`~cfmvc_scvi.module.likelihood.counterfactual_mean`). So an unchanged cell comes back as it was.

        Parameters
        ----------
        adata
            Control cells to perturb, with the model's genes in any order; nothing is written into it. ``None``
            takes the control cells of the registered data.
        perturbation
            A label, a list of labels, or a DataFrame of conditions with a column ``perturbation`` and,
            where there are doses, ``dosage``. ``None`` is every perturbation seen in training. One block of
            rows per condition.
        indices
            Rows of ``adata`` (or of the registered data) to take.
        dosage
            Dose of the perturbation: one number, or numbers delimited like the label.
        batch
            Decode as if measured in this batch; ``None`` is each cell's own.
        return_type
            ``"mean"``: expected counts at each cell's own library size, float32. ``"counts"``: integer counts drawn
            from the negative binomial, CSR. ``"lognorm"``: log1p of the expected counts per 10,000, float32.
            ``"latent"``: the transported intrinsic latent alone.
        n_samples
            For ``"counts"``, draws per cell, in rows of their own; else the number of posterior draws of the
            latent that are averaged, where 1 uses the posterior mean.
        n_steps, solver
            Steps and method of the flow: ``"euler"``, ``"midpoint"``, ``"rk4"`` or ``"adaptive"``.
        batch_size
            Cells at a time; does not change the result of the fixed-step solvers.
        seed
            Seed of all draws; ``None`` is that of ``scvi.settings``, or 0. Draws belong to a cell's name and
            condition: other cells in the call do not change them.

        Returns
        -------
        AnnData (n_conditions * n_cells [* n_samples], n_genes). ``obs`` has the cells' own columns with the
        perturbation replaced, ``source_cell`` and ``support`` (``"seen"``, ``"new context"``, ``"new combination"``,
        ``"new perturbation"``); ``obsm["X_cfmvc"]`` the transported latent; ``uns["cfmvc"]`` the call.

        Raises
        ------
        ValueError
            For a perturbation that was not in training and has no embedding, naming the known ones.
        RuntimeError
            When the flow is not trained.
        """
        self._require_flow("predict")
        call = self._make_call(return_type, n_samples, solver, n_steps, batch, batch_size, seed)
        conditions = self._requested_conditions(perturbation, dosage)
        self.vocabulary.encode(conditions)  # refuses unknown ones before any work is done
        cells = self._source_cells(adata, indices, batch)
        n_cells = len(cells)
        cells = cells.padded()
        posterior = self._encode(cells, call.batch_size)
        blocks = [self._predict_condition(cells, n_cells, posterior, condition, call) for condition in conditions]
        result = blocks[0] if len(blocks) == 1 else ad.concat(blocks, merge="same")
        result.obs_names_make_unique()
        result.uns["cfmvc"] = self._describe(call, conditions)
        return result

    # ---- what is asked ----------------------------------------------------------------------------------------

    def _make_call(
        self,
        return_type: str,
        n_samples: int,
        solver: str | None,
        n_steps: int | None,
        batch: str | None,
        batch_size: int | None,
        seed: int | None,
    ) -> PredictionCall:
        if return_type not in _UNITS:
            raise ValueError(f"Unknown `return_type` {return_type!r}: choose one of {list(_UNITS)}.")
        if n_samples < 1:
            raise ValueError(f"`n_samples` is {n_samples}; it must be at least 1.")
        if batch is not None and str(batch) not in self.batches:
            raise ValueError(f"Unknown `batch` {batch!r}: choose one of {self.batches}.")
        solver = DEFAULT_SOLVER if solver is None else solver
        steps = DEFAULT_STEPS if n_steps is None and solver != "adaptive" else n_steps
        return PredictionCall(
            return_type=return_type,
            n_samples=n_samples,
            solver=get_solver(solver, steps),
            batch=None if batch is None else str(batch),
            batch_size=batch_size or settings.batch_size,
            seed=self._seed if seed is None else seed,
        )

    def _requested_conditions(
        self, perturbation: str | Sequence[str] | pd.DataFrame | None, dosage: float | str | None
    ) -> list[Condition]:
        vocabulary = self.vocabulary
        if perturbation is None:
            return self._trained_conditions()
        if isinstance(perturbation, pd.DataFrame):
            if "perturbation" not in perturbation:
                raise KeyError(
                    "A DataFrame of conditions needs a column 'perturbation' (and 'dosage' where there are doses); "
                    f"there is: {list(perturbation.columns)}."
                )
            doses = perturbation["dosage"] if "dosage" in perturbation else [dosage] * len(perturbation)
            pairs = list(zip(perturbation["perturbation"], doses, strict=True))
        else:
            labels = [perturbation] if np.isscalar(perturbation) else list(perturbation)
            pairs = [(label, dosage) for label in labels]
        if not pairs:
            raise ValueError("No condition was asked for: `perturbation` is empty.")
        if self.setup_keys.dosage_key is None and any(dose is not None for _, dose in pairs):
            raise ValueError("The model was set up without `dosage_key`, so it knows no doses: leave `dosage` out.")
        conditions = [vocabulary.parse(str(label), dose) for label, dose in pairs]
        if self.setup_keys.dosage_key is not None:
            missing = [
                str(label) for (label, dose), c in zip(pairs, conditions, strict=True) if dose is None and c.members
            ]
            if missing:
                raise ValueError(f"The model was trained with doses: pass `dosage` for {missing[:5]}.")
        return conditions

    def _trained_conditions(self) -> list[Condition]:
        """Every condition the model was trained on, control left out."""
        keys = sorted({key for key, _ in self.trained_conditions_ if key[0]})
        delimiter = self.vocabulary.combination_delimiter or ""
        return [Condition(delimiter.join(members), members, doses) for members, doses in keys]

    def _source_cells(self, adata: AnnData | None, indices: Sequence[int] | None, batch: str | None) -> CellTable:
        if adata is None and indices is None:
            self._require_adata("predict for its control cells")
            labels = self.adata.obs[self.setup_keys.perturbation_key].astype(str)
            indices = np.flatnonzero(labels.isin(self.vocabulary.control_group).to_numpy())
        cells = self._cells(adata, indices, batch)
        if not len(cells):
            raise ValueError("There are no cells to perturb: `adata` or `indices` is empty.")
        return cells

    # ---- the work ---------------------------------------------------------------------------------------------

    def _predict_condition(
        self, cells: CellTable, n_cells: int, posterior: CellPosterior, condition: Condition, call: PredictionCall
    ) -> AnnData:
        """Prediction of the first ``n_cells`` cells; those after them only fill the last chunk."""
        draws = call.n_samples if call.return_type == "counts" else 1
        latents, values = [], []
        for draw in range(draws):
            for rows in cells.chunks(call.batch_size):
                latent, value = self._predict_chunk(cells, posterior, rows, condition, call, draw)
                kept = min(n_cells - rows.start, len(latent))
                latents.append(latent[:kept])
                values.append(value[:kept])
        x = sparse.vstack(values, format="csr") if call.return_type == "counts" else np.concatenate(values)
        var = latent_var(self.module.n_latent) if call.return_type == "latent" else self._gene_var()
        obs = self._result_obs(cells.take(np.arange(n_cells)), condition, call, draws)
        return AnnData(x, obs=obs, var=var, obsm={"X_cfmvc": np.concatenate(latents)})

    def _predict_chunk(
        self,
        cells: CellTable,
        posterior: CellPosterior,
        rows: slice,
        condition: Condition,
        call: PredictionCall,
        draw: int,
    ) -> tuple[np.ndarray, Any]:
        """Transported latent and returned expression of some cells."""
        names = [str(name) for name in cells.obs.index[rows]]
        z, moved = self._moved_latents(cells, posterior, rows, condition, call, names)
        latent = moved.mean(dim=0).numpy()
        if call.return_type == "latent":
            return latent, latent
        change = self._cell_change(cells, posterior, rows, condition, call, z, moved)
        x = cells.dense(rows)
        if call.return_type == "counts":
            generators = cell_generators(names, call.seed, "counts", condition.key, draw)
            return latent, drawn_counts(x, change, self._theta(), generators)
        highest = self.calibration_["highest"]
        counts = expected_counts(x, cells.library[rows], change.lognorm, change.scale, change.center, highest)
        return latent, counts if call.return_type == "mean" else lognorm_expression(counts, cells.library[rows])

    def _moved_latents(
        self,
        cells: CellTable,
        posterior: CellPosterior,
        rows: slice,
        condition: Condition,
        call: PredictionCall,
        names: list[str],
    ) -> tuple[Tensor, Tensor]:
        """Latents before and after, each (n_draws, n, n_latent): the posterior mean, or draws to average over."""
        mean = posterior.mean[rows]
        if call.n_samples == 1 or call.return_type == "counts":
            z = mean.unsqueeze(0)
        else:
            generators = cell_generators(names, call.seed, "posterior")
            shape = (call.n_samples, mean.shape[1])
            noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in generators], axis=1)
            z = mean + posterior.scale[rows] * torch.from_numpy(noise)
        p = torch.from_numpy(self.vocabulary.encode([condition])).to(self._device)
        context = cells.context[rows].to(self._device)
        p = p.expand(len(context), -1)
        moved = [self.module.transport(draw.to(self._device), p, context, call.solver).cpu() for draw in z]
        return z, torch.stack(moved)

    @torch.inference_mode()
    def _cell_change(
        self,
        cells: CellTable,
        posterior: CellPosterior,
        rows: slice,
        condition: Condition,
        call: PredictionCall,
        z: Tensor,
        moved: Tensor,
    ) -> CellChange:
        """Decoded change of some cells, calibrated per gene; averaged over the posterior draws."""
        context = cells.context[rows]
        technical = posterior.technical_mean[rows]
        target = self._technical_in_batch(technical, context, call.batch)
        before = torch.stack([self._log_share(draw, technical) for draw in z]).mean(dim=0)
        after = torch.stack([self._log_share(draw, target) for draw in moved]).mean(dim=0)
        before, after = before.numpy(), after.numpy()
        labels = context.labels.numpy()
        calibration = self._calibration(condition, labels, call, rates=call.return_type == "counts")
        library = cells.library[rows, None]
        return CellChange(
            lognorm=np.log1p(1e4 * np.exp(after)) - np.log1p(1e4 * np.exp(before)) + calibration.lognorm[labels],
            scale=calibration.scale[labels],
            center=calibration.center[labels],
            log_ratio=after - before + calibration.log_ratio[labels],
            mean0=np.exp(before) * library,
        )

    def _log_share(self, z: Tensor, technical: Tensor) -> Tensor:
        return self.module.decoder(z.to(self._device), technical.to(self._device)).cpu()

    def _technical_in_batch(self, technical: Tensor, context: FlowContext, batch: str | None) -> Tensor:
        if batch is None:
            return technical
        source = context.batch.to(self._device)
        target = torch.full_like(source, self.batches.index(batch))
        return self.module.move_batch(technical.to(self._device), source, target).cpu()

    def _theta(self) -> np.ndarray:
        return self.module.decoder.theta.detach().cpu().numpy()

    # ---- the result -------------------------------------------------------------------------------------------

    def _gene_var(self) -> pd.DataFrame:
        if self.adata is not None:
            return self.adata.var.copy()
        return pd.DataFrame(index=pd.Index(self.get_var_names(), dtype=str))

    def _result_obs(self, cells: CellTable, condition: Condition, call: PredictionCall, draws: int) -> pd.DataFrame:
        keys = self.setup_keys
        obs = cells.obs.loc[:, [name for name in cells.obs if not str(name).startswith("_scvi")]].copy()
        obs[keys.perturbation_key] = condition.label
        if keys.dosage_key is not None:
            obs[keys.dosage_key] = condition.doses[0] if len(set(condition.doses)) == 1 else _dose_text(condition)
        if call.batch is not None and keys.batch_key is not None:
            obs[keys.batch_key] = call.batch
        obs["source_cell"] = obs.index.astype(str)
        obs["support"] = self._support(condition, cells.context.labels.numpy())
        if draws > 1:
            obs = pd.concat([obs.assign(sample=draw) for draw in range(draws)])
            obs.index = obs["source_cell"] + "_" + condition.label + "_" + obs["sample"].astype(str)
        else:
            obs.index = obs["source_cell"] + "_" + condition.label
        return obs.rename_axis(None)

    def _support(self, condition: Condition, labels: np.ndarray) -> pd.Categorical:
        """What each prediction rests on; see :meth:`predict_perturbation`."""
        trained = {(key, label) for key, label in self.trained_conditions_}
        known_keys = {key for key, _ in trained}
        known_members = {member for (members, _), _ in trained for member in members}
        if condition.is_control:
            unseen = "seen"
        elif condition.key in known_keys:
            unseen = "new context"
        elif all(member in known_members for member in condition.members):
            unseen = "new combination"
        else:
            unseen = "new perturbation"
        values = ["seen" if (condition.key, int(label)) in trained else unseen for label in labels]
        return pd.Categorical(values, categories=["seen", "new context", "new combination", "new perturbation"])

    def _describe(self, call: PredictionCall, conditions: list[Condition]) -> dict[str, Any]:
        return {
            "return_type": call.return_type,
            "units": _UNITS[call.return_type],
            "perturbations": [condition.label for condition in conditions],
            "seed": call.seed,
            "solver": type(call.solver).__name__.lower(),
            "n_steps": getattr(call.solver, "n_steps", -1),
            "n_samples": call.n_samples,
            "batch": "own" if call.batch is None else call.batch,
            "flow_source": self.flow_source,
            "versions": {name: version(name) for name in ("cfmvc_scvi", "scvi-tools", "torch")},
        }


def latent_var(n_latent: int) -> pd.DataFrame:
    """Names of the intrinsic latent's dimensions."""
    return pd.DataFrame(index=[f"z_int_{i}" for i in range(n_latent)])


def _dose_text(condition: Condition) -> str:
    return "+".join(f"{dose:g}" for dose in condition.doses) or "0"
