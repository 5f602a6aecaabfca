"""Cells to start from and cells to arrive at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import settings

from cfmvc_scvi._base import as_rows
from cfmvc_scvi._messages import missing_genes, shortened
from cfmvc_scvi.calibration.change import lognorm_expression
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.prediction.predict import PredictionMixin
from cfmvc_scvi.prediction.request import PredictionCall, Request
from cfmvc_scvi.prediction.sources import SourceCells

#: Most of a mix of cell types that may differ between source and target without a warning.
_MIX = 0.1
#: Cells that are made dense together.
_CHUNK = 4096


@dataclass(frozen=True)
class Target:
    """Where the cells are to be brought: cells, or a mean profile alone.

    Attributes
    ----------
    mean
        Mean log1p CP10k, shape (n_genes,).
    cells
        The cells as the networks read them; ``None`` where only the mean is known.
    n_trained
        How many of them were trained on, by their names.
    """

    mean: np.ndarray
    cells: CellTable | None = None
    n_trained: int = 0


class AimMixin(PredictionMixin):
    """Reading of source and target cells by :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi.prediction.predict.PredictionMixin` for the source cells.
    """

    def _read_target(self, target: Any, codes: np.ndarray | None, n_cells: int, rng: np.random.Generator) -> Target:
        if target is None:
            raise ValueError(
                "`target` is missing: give the cells to arrive at, an AnnData or rows of the registered data, or a "
                "mean profile of log1p of counts per 10,000."
            )
        if isinstance(target, pd.Series) and target.dtype.kind == "f":
            absent = [name for name in self._var_names if name not in target.index]
            if absent:
                n = len(self._var_names)
                raise ValueError(
                    missing_genes(absent, target.index, wanted=f"the {n} genes of the model", where="`target`")
                )
            target = target.reindex(pd.Index(self._var_names)).to_numpy()
        if not isinstance(target, AnnData) and np.asarray(target).dtype.kind == "f" and len(np.asarray(target)):
            return Target(self._checked_profile(np.asarray(target, dtype=np.float64)))
        cells = self._cells(target) if isinstance(target, AnnData) else self._cells(None, self._rows_of(target))
        if codes is not None:
            cells = cells.take(np.flatnonzero(np.isin(cells.context.labels.numpy(), codes)))
        if len(cells) < 2:
            raise ValueError(
                f"`target` has {len(cells)} cells{'' if codes is None else ' of `labels`'}; give 2 at least."
            )
        n_trained = 0
        if self._registered is not None:
            n_trained = int(cells.obs.index.isin(self._registered.obs_names[self._fitted_rows]).sum())
        if n_trained:
            warnings.warn(
                f"{n_trained} of the {len(cells)} target cells were trained on: candidates that were measured are "
                "compared with their own training cells. To ask which perturbation explains cells, leave these out of "
                "training.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        total = sum(lognorm_of(cells, rows).sum(axis=0, dtype=np.float64) for rows in cells.chunks(_CHUNK))
        return Target(np.asarray(total) / len(cells), _some(cells, n_cells, rng), n_trained)

    def _checked_profile(self, profile: np.ndarray) -> np.ndarray:
        n_genes = len(self._var_names)
        if profile.shape != (n_genes,):
            raise ValueError(
                f"`target` is an array of numbers of shape {profile.shape}; a mean profile has one for each of the "
                f"{n_genes} genes, in the order of `model.get_var_names()`. Rows of cells are whole numbers."
            )
        if not np.isfinite(profile).all() or profile.min() < 0:
            raise ValueError(
                "`target` has negative or missing values; a mean profile is the mean of log1p of counts per 10,000, "
                "not a change or a scaled value."
            )
        return profile

    def _read_source(
        self,
        source: Any,
        aim: Target,
        codes: np.ndarray | None,
        n_cells: int,
        rng: np.random.Generator,
        requests: list[Request],
        call: PredictionCall,
    ) -> SourceCells:
        """The source cells, ready for what is asked of them."""
        adata = source if isinstance(source, AnnData) else None
        if source is None:
            rows = self._own_controls(aim, codes)
        else:
            rows = self._rows_of(source)
            if codes is not None:
                rows = rows[np.isin(self._cells(adata, rows).context.labels.numpy(), codes)]
        if len(rows) < 2:
            raise ValueError(
                f"`source` has {len(rows)} cells{'' if codes is None else ' of `labels`'}; give 2 at least."
            )
        if len(rows) > n_cells:
            rows = np.sort(rng.choice(rows, n_cells, replace=False))
        [start] = self._sources(adata, cast("Sequence[int]", rows), requests, call, "error").values()
        self._warn_of_mix(start, aim)
        return start

    def _rows_of(self, source: Any) -> np.ndarray:
        if isinstance(source, AnnData):
            return np.arange(source.n_obs)
        own = self._require_adata("use its cells")
        return as_rows(source, own.n_obs, own.obs_names)

    def _own_controls(self, aim: Target, codes: np.ndarray | None) -> np.ndarray:
        """Rows of registered control cells of the target's cell types, in its batches where there are some."""
        own = self._require_adata("start from its control cells")
        rows = np.flatnonzero(self._conditions_of(own).is_control)
        context = self._cells(None, rows).context
        types, batch = context.labels.numpy(), context.batch.numpy()
        if codes is None and aim.cells is not None:
            codes = np.unique(aim.cells.context.labels.numpy())
        chosen = np.ones(len(rows), dtype=bool) if codes is None else np.isin(types, codes)
        if not chosen.any():
            names = [self.cell_types[code] for code in (() if codes is None else codes)]
            raise ValueError(
                f"There are no registered control cells of {shortened(names)}: give the cells to start from by "
                "`source`."
            )
        if aim.cells is not None:
            beside = chosen & np.isin(batch, np.unique(aim.cells.context.batch.numpy()))
            chosen = beside if beside.sum() > 1 else chosen
        return rows[chosen]

    def _warn_of_mix(self, start: SourceCells, aim: Target) -> None:
        if aim.cells is None:
            return
        n = len(self.cell_types)
        mixes = [
            np.bincount(codes, minlength=n) / len(codes) for codes in (start.codes, aim.cells.context.labels.numpy())
        ]
        apart = 0.5 * np.abs(mixes[0] - mixes[1]).sum()
        if apart > _MIX:
            warnings.warn(
                f"Source and target differ in {100 * apart:.0f} % of their mix of cell types, which no perturbation "
                "explains: pass `labels=` to compare one cell type.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )


def lognorm_of(cells: CellTable, rows: slice = slice(None)) -> np.ndarray:
    """Levels of some cells, log1p of counts per 10,000, shape (n, n_genes)."""
    return lognorm_expression(cells.dense(rows), cells.library[rows])


def _some(cells: CellTable, n_cells: int, rng: np.random.Generator) -> CellTable:
    """A random sample of the cells where they are more."""
    return cells if len(cells) <= n_cells else cells.take(np.sort(rng.choice(len(cells), n_cells, replace=False)))
