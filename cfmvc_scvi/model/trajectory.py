"""Latents on their way from control to perturbed."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import torch
from anndata import AnnData

from cfmvc_scvi._arguments import cells_and_perturbation
from cfmvc_scvi._base import single_precision
from cfmvc_scvi._messages import shortened
from cfmvc_scvi.prediction.output import latent_var
from cfmvc_scvi.prediction.predict import PredictionMixin
from cfmvc_scvi.prediction.request import PredictionCall
from cfmvc_scvi.prediction.result import kept_aside


class TrajectoryMixin(PredictionMixin):
    """Interpolation of :class:`~cfmvc_scvi.CFMVC` along the flow.

    Relies on :class:`~cfmvc_scvi.prediction.predict.PredictionMixin` for the cells and the annotations of the result.
    """

    @single_precision
    def get_trajectory(
        self,
        adata: AnnData | str | None = None,
        perturbation: str | None = None,
        *,
        times: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        indices: Sequence[int] | None = None,
        dosage: float | str | None = None,
        n_steps: int | None = None,
        solver: str | None = None,
        batch_size: int | None = None,
    ) -> AnnData:
        r"""Intrinsic latents of cells at times of the flow, from control (0) to perturbed (1).

        .. math:: z(t) = z + \phi_t(z_0; p) - \phi_t(z_0; 0)

        with :math:`\phi_t` the solution of :math:`dz/dt = v` at time t from the starting point :math:`z_0` of
        :meth:`predict_perturbation`. Flow time orders the change; it is not a time in hours.

        Parameters
        ----------
        adata
            Control cells with the model's genes; ``None`` takes the control cells of the registered data, and so does a
            perturbation that stands here alone.
        perturbation
            A perturbation or combination.
        times
            Times from 0 to 1, in the order wanted.
        indices
            Rows of ``adata`` (or of the registered data) to take.
        dosage
            Dose of the perturbation.
        n_steps, solver
            As in :meth:`predict_perturbation`. Every time is reached from 0 with ``n_steps`` steps.
        batch_size
            Cells at a time.

        Returns
        -------
        AnnData (n_times * n_cells, n_latent) with one block of rows per time, in latent units. ``obs`` has the cells'
        columns with the perturbation replaced, ``source_cell``, ``support`` and ``time``. At 0 it is the latent of the
        cells, at 1 the ``obsm["X_cfmvc"]`` of their prediction.

        Raises
        ------
        ValueError
            For times outside of 0 to 1, no perturbation, or one that is not known.
        RuntimeError
            When the flow is not trained.
        """
        self._require_flow("give trajectories")
        adata, perturbation = cells_and_perturbation(adata, perturbation)
        at = np.asarray(times, dtype=float).ravel()
        if not len(at) or not ((at >= 0.0) & (at <= 1.0)).all():
            raise ValueError(f"`times` is {at.tolist()}; give at least one flow time, each from 0 to 1.")
        if perturbation is None:
            raise ValueError(
                f"`perturbation` is missing: give one, for instance of {shortened(self.vocabulary.names)}."
            )
        call = PredictionCall.of("latent", solver=solver, n_steps=n_steps, batch_size=batch_size, seed=self._seed)
        requests = self._requests([perturbation], dosage, None)
        p = torch.from_numpy(self._calibration.encode(requests[0].condition)).to(self.module.device)
        sources = self._sources(adata, indices, requests, call, "error")
        [source] = sources.values()
        padded, n_cells, posterior = source.cells, source.n_cells, source.posterior
        latents: list[list[np.ndarray]] = [[] for _ in at]
        for rows in padded.chunks(call.batch_size):
            context = padded.context[rows].to(self.module.device)
            z = posterior.mean[rows].to(self.module.device)
            vectors, base = p.expand(len(z), -1), self.module.base_flow(z, context, call.solver)
            for found, t in zip(latents, at.tolist(), strict=True):
                moved = self.module.transport(z, vectors, context, call.solver, base, until=t)
                found.append(moved.cpu().numpy())
        obs = self._result_obs(requests, sources, call)
        blocks = []
        for found, t in zip(latents, at, strict=True):
            names = obs.index + f"_t{t:g}"
            latent = np.concatenate(found)[:n_cells]
            blocks.append(
                AnnData(
                    latent,
                    obs=kept_aside(obs, ["time"]).assign(time=t).set_index(names),
                    var=latent_var(latent.shape[1]),
                )
            )
        result = blocks[0] if len(blocks) == 1 else ad.concat(blocks, merge="same")
        result.obs_names_make_unique()
        result.uns["cfmvc"] = self._describe(call, requests) | {"times": at}
        return result
