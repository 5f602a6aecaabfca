"""Calibration of a model whose flow is trained."""

from __future__ import annotations

from typing import Any

from cfmvc_scvi._base import ModelBase, single_precision
from cfmvc_scvi.calibration import Calibration
from cfmvc_scvi.calibration.populations import Populations
from cfmvc_scvi.cells.latents import LatentCache

#: Cells that are encoded at a time for stage 2 and the calibration.
_ENCODE_CELLS = 1024


class CalibrationMixin(ModelBase):
    """Calibration of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi._base.ModelBase` alone: cells and their encoding.
    """

    @single_precision
    def calibrate(self, estimator: str | None = "average", *, spread: bool = True) -> None:
        """Calibrate a trained model anew, to another estimate of the mean effects; the networks stay as they are.

        Parameters
        ----------
        estimator
            ``"average"`` of the latent path's estimate and the Gaussian process's (what training ends with),
            ``"latent"`` or ``"process"`` alone, the name of an estimator that was registered with
            :func:`cfmvc_scvi.calibration.register_estimator`, or ``None``: decoded changes stay as they are.
        spread
            Whether the spread of every gene over cells changes as it did in the training populations.

        Raises
        ------
        ValueError
            For an unknown estimator.
        RuntimeError
            When the flow is not trained, or the model was loaded without data, or made by :meth:`load_query_data`.
        """
        self._require_flow("be calibrated")
        self._require_not_adapted("be calibrated")
        self._require_adata("calibrate it")
        cache = self._latents()
        self.calibration_ = self._fit_calibration(cache, self._populations(cache), estimator=estimator, spread=spread)

    def _fit_calibration(self, cache: LatentCache, populations: Populations, **choices: Any) -> Calibration:
        return Calibration.fit(
            cache, self._fitted_rows, populations, self.module, self.vocabulary, seed=self._seed, **choices
        )

    def _populations(self, cache: LatentCache) -> Populations:
        """Statistics of every population of training and validation cells."""
        return Populations.of(cache, self._fitted_rows, len(self.cell_types))

    def _latents(self) -> LatentCache:
        """Posterior of every registered cell, with its condition."""
        adata = self._require_adata("use its cells")
        cells, found = self._read(adata), self._conditions_of(adata)
        return LatentCache(cells, self._encode(cells, _ENCODE_CELLS), found.code, found.conditions)
