"""Generation of new cells of a condition, from the flow's source distribution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._base import single_precision
from cfmvc_scvi._constants import CP10K
from cfmvc_scvi._types import FlowContext, obs_of
from cfmvc_scvi.calibration.held_out_spread import keep_signal
from cfmvc_scvi.cells.latents import CellPosterior
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.prediction.output import latent_var
from cfmvc_scvi.prediction.predict import PredictionMixin
from cfmvc_scvi.prediction.request import PredictionCall, Request
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.registration.spelling import text_of, texts_of
from cfmvc_scvi.registration.vocabulary import Condition


class GenerationMixin(PredictionMixin):
    """Generation of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi.prediction.predict.PredictionMixin` for the annotations of the result.
    """

    @single_precision
    def generate_cells(
        self,
        perturbation: str,
        n_cells: int,
        *,
        labels: str | None = None,
        batch: str | None = None,
        dosage: float | str | None = None,
        spatial: np.ndarray | None = None,
        return_type: Literal["mean", "counts", "lognorm", "latent"] = "counts",
        seed: int | None = None,
    ) -> AnnData:
        """New cells of a condition.

        Contexts and library sizes are those of control cells of the registered data, drawn with replacement. The latent
        starts at the flow's source: a posterior draw of that control cell, or standard normal noise.

        Parameters
        ----------
        perturbation
            A perturbation, combination or control label.
        n_cells
            Cells to generate.
        labels
            Cell type; ``None`` keeps the proportions of the control cells.
        batch
            Batch to decode in; ``None`` that of the drawn control cells.
        dosage
            Dose of the perturbation.
        spatial
            Coordinates of the new cells, shape (n_cells, n_spatial); ``None`` those of the drawn control cells.
        return_type
            As in :meth:`predict_perturbation`; here the counts are drawn from the negative binomial afresh.
        seed
            Seed of all draws.

        Returns
        -------
        AnnData (n_cells, n_genes).
        """
        self._require_flow("generate cells")
        whole_number("n_cells", n_cells)
        call = PredictionCall.of(return_type, seed=self._seed if seed is None else seed)
        frame = pd.DataFrame({"perturbation": [perturbation], "labels": [labels], "batch": [batch]}, dtype=object)
        [request] = self._requests(frame, dosage, None)
        condition = request.condition
        p = torch.from_numpy(self._calibration.encode(condition)).expand(n_cells, -1).to(self.module.device)
        rng = np.random.default_rng([call.seed, n_cells])
        cells = self._template_cells(n_cells, request.labels, rng)
        context = self._generated_context(cells, request.batch, spatial)
        posterior = self._encode(cells)
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32))
        drawn = self.module.standardize((posterior.mean + posterior.scale * noise).to(self.module.device))
        start = drawn if self.flow_source == "control" else noise.to(self.module.device)
        latent = self.module.push_forward(start, p, context.to(self.module.device), call.solver).cpu()
        obs = self._generated_obs(cells, posterior, request, call)
        x = latent.numpy() if return_type == "latent" else self._emit(latent, context, cells, condition, call, rng)
        var = latent_var(latent.shape[1]) if return_type == "latent" else self._gene_var()
        key = self.setup_keys.spatial_key
        coordinates = {} if key is None or context.spatial is None else {key: context.spatial.numpy()}
        obsm: Any = coordinates | {"X_cfmvc": latent.numpy()}  # anndata's annotation does not name arrays
        layer = self._counts_layer(return_type)
        layers: Any = {} if layer is None else {layer: x.copy()}
        result = AnnData(x, obs=obs, var=var, obsm=obsm, layers=layers, uns=self._colors(obs))
        result.uns["cfmvc"] = self._describe(call, [request])
        return result

    def _generated_obs(
        self, cells: CellTable, posterior: CellPosterior, request: Request, call: PredictionCall
    ) -> pd.DataFrame:
        known = np.zeros(len(cells), dtype=bool)
        labels = np.array(self.cell_types)[cells.context.labels.numpy()]
        source = SourceCells(cells, len(cells), known, labels, posterior, self.module, call)
        obs = self._result_obs([request], {request.labels: source}, call).drop(columns="source_cell")
        return obs.set_axis([f"generated_{i}" for i in range(len(cells))])

    def _template_cells(self, n_cells: int, labels: str | None, rng: np.random.Generator) -> CellTable:
        """Control cells whose context and library size the new cells take."""
        adata = self._require_adata("generate cells")
        keys = self.setup_keys
        control = self._conditions_of(adata).is_control
        if labels is not None:
            control &= texts_of(obs_of(adata)[keys.labels_key]) == text_of(labels)
        rows = np.flatnonzero(control)
        if not len(rows):
            raise ValueError(f"The registered data have no control cells of cell type {labels!r} to start from.")
        return self._cells(adata, rng.choice(rows, n_cells))

    def _generated_context(self, cells: CellTable, batch: str | None, spatial: np.ndarray | None) -> FlowContext:
        context = cells.context if batch is None else cells.context.with_batch(self.batches.index(batch))
        if spatial is None:
            return context
        if context.spatial is None or np.shape(spatial) != tuple(context.spatial.shape):
            expected = "no coordinates" if context.spatial is None else f"shape {tuple(context.spatial.shape)}"
            raise ValueError(f"`spatial` has shape {np.shape(spatial)}; the model expects {expected}.")
        return replace(context, spatial=torch.as_tensor(spatial, dtype=torch.float32))

    @torch.inference_mode()
    def _emit(
        self,
        latent: Tensor,
        context: FlowContext,
        cells: CellTable,
        condition: Condition,
        call: PredictionCall,
        rng: np.random.Generator,
    ) -> np.ndarray | sparse.csr_matrix:
        """Expression of generated latents, calibrated as predictions are."""
        batch = context.batch.to(self.module.device)
        prior = self.module.technical_prior(batch)
        noise = torch.from_numpy(rng.standard_normal(tuple(prior.loc.shape), dtype=np.float32)).to(self.module.device)
        technical = prior.loc + prior.scale * noise
        log_share = self.module.decoder(latent.to(self.module.device), technical, batch).cpu().numpy()
        labels = context.labels.numpy()
        population = np.unique(np.stack([labels, context.batch.numpy()]), axis=1, return_inverse=True)[1].ravel()
        log_share = keep_signal(log_share, cells.library, population, self.module.gene_signal.cpu().numpy())
        log_share += self._calibration.correct(condition, labels, call.solver).log_ratio[labels]
        mean = np.exp(log_share) * cells.library[:, None]
        if call.return_type == "counts":
            return sparse.csr_matrix(self.module.likelihood.in_batches(batch).draw(mean, rng).astype(np.float32))
        return mean if call.return_type == "mean" else np.log1p(CP10K * np.exp(log_share))
