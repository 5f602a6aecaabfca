"""Prediction of whole screens: effects, or cells, of many conditions, in blocks on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from scipy import sparse

from cfmvc_scvi._base import single_precision
from cfmvc_scvi._constants import CFMVC_KEYS
from cfmvc_scvi._messages import unknown_choice
from cfmvc_scvi.flow import Adaptive
from cfmvc_scvi.io.codec import to_plain
from cfmvc_scvi.model.effects import EFFECT_UNITS, EffectMixin, check_probabilities, effect_table
from cfmvc_scvi.prediction.output import Output, make_output
from cfmvc_scvi.prediction.predict import PredictionMixin
from cfmvc_scvi.prediction.request import UNITS, PredictionCall, Request
from cfmvc_scvi.prediction.screen import Rows, Screen, in_chunks
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.registration.spelling import number_text

#: Layers of the effects of a screen, beside the effect itself in ``X``.
EFFECT_LAYERS = ("expression", "sd", "lower", "upper", "lfsr")
#: Conditions whose effects are one block.
_EFFECTS_PER_BLOCK = 32
#: Cells from which the size of drawn counts is guessed, and what drawing may add.
_GUESSED_FROM, _MORE = 512, 1.25


class ScreenMixin(PredictionMixin, EffectMixin):
    """Screens of :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi.model.effects.EffectMixin` for effects and on
    :class:`~cfmvc_scvi.prediction.predict.PredictionMixin` for cells.
    """

    @single_precision
    def predict_screen(
        self,
        out: str | os.PathLike | None = None,
        perturbation: str | Sequence[str] | pd.DataFrame | None = None,
        *,
        return_type: Literal["effect", "mean", "counts", "lognorm", "latent"] = "effect",
        labels: str | Sequence[str] | None = None,
        dosage: float | str | None = None,
        batch: str | None = None,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        level: float = 0.95,
        n_samples: int = 1,
        n_steps: int | None = None,
        solver: str | None = None,
        batch_size: int | None = None,
        seed: int | None = None,
        shard: tuple[int, int] | None = None,
        show_progress: bool | None = None,
    ) -> AnnData | None:
        """Effects, or cells, of many conditions, in blocks on disk.

        Every finished block stays in the folder ``<out>.parts`` until all are there; then they are brought together at
        ``out`` and the folder is removed. A call that was interrupted, or killed, goes on where it was when it is made
        again, and the result is the same to the bit. Several processes can share the work: each is given a part, by
        ``shard``, and the one that finishes last brings the parts together. Blocks and result are checked to be of the
        same request and model. Size and free space are looked at first.

        Parameters
        ----------
        out
            Path of the result, ending in ``.h5ad`` or ``.zarr``. ``None`` keeps it in memory.
        perturbation, dosage, batch
            The conditions, as in :meth:`predict_perturbation`; ``perturbation=None`` is every one seen in training.
        return_type
            ``"effect"``: the mean effect on every gene with its interval, one row per condition and cell type, as
            :meth:`get_perturbation_effect` gives it; no cells are generated. Else cells, one row each, as
            :meth:`predict_perturbation` gives them: ``"mean"``, ``"counts"``, ``"lognorm"`` or ``"latent"``.
        labels
            Cell type, or several. ``None``: effects in every one that has control cells, and cells of all types. In a
            DataFrame of conditions the column ``labels`` goes before.
        adata, indices
            The cells to perturb, as in :meth:`predict_perturbation`; not for effects.
        level
            Probability of the intervals of effects, between 0 and 1.
        n_samples, n_steps, solver, batch_size, seed
            Of predicted cells, as in :meth:`predict_perturbation`; effects have no use for them.
        shard
            ``(i, n)``: predict part i of n, counted from 0; all parts get the same ``out`` and the same arguments.
            ``None`` predicts all that is missing.
        show_progress
            Show a bar with the time left; ``None`` does when there are several blocks.

        Returns
        -------
        AnnData, with ``out`` its values on disk; ``None`` while blocks of other shards are missing.

        Of ``"effect"``, (n_conditions * n_cell_types, n_genes): ``X`` the change of mean log1p of counts per 10,000,
        natural log, float32; layers ``expression`` (mean log1p of counts per 10,000 in the control cells of training,
        plus the effect), ``sd``, ``lower`` and ``upper`` (the standard error and the interval of the effect) and
        ``lfsr`` (local false sign rate). ``obs`` has the perturbation, the dose, the cell type, ``support``,
        ``support_distance``, ``n_support`` and, with vectors, ``support_reach``. Of cells, as
        :meth:`predict_perturbation`. ``uns["cfmvc"]`` is the call.

        Raises
        ------
        ValueError
            For unknown conditions and arguments out of range, and when what is at ``out`` or in ``<out>.parts`` belongs
            to another request or model; the message says what differs.
        FileExistsError
            When there is something at ``out`` that is no screen.
        OSError
            When the disk has no space for the result and its parts together. What is finished is kept.
        RuntimeError
            When the flow is not trained, or the training data are needed and not there.
        """
        self._require_flow("predict a screen")
        if return_type != "effect" and return_type not in UNITS:
            raise ValueError(unknown_choice("return_type", return_type, ["effect", *UNITS]))
        requests = self._requests(perturbation, dosage, batch)
        if return_type == "effect":
            if adata is not None or indices is not None:
                raise ValueError("Effects are of cell types, not of cells: leave `adata` and `indices` out.")
            screen: Screen = self._screen_of_effects(requests, labels, level)
        else:
            call = PredictionCall.of(
                return_type,
                n_samples=n_samples,
                solver=solver,
                n_steps=n_steps,
                batch_size=batch_size,
                seed=self._seed if seed is None else seed,
            )
            screen = self._screen_of_cells(requests, labels, adata, indices, call)
        return screen.run(out, shard, show_progress)

    # ---- effects ----------------------------------------------------------------------------------------------

    def _screen_of_effects(
        self, requests: list[Request], labels: str | Sequence[str] | None, level: float
    ) -> Screen[Sequence[Request]]:
        check_probabilities(level=level)
        if any(request.batch is not None for request in requests):
            raise ValueError("Effects are those of all batches together: leave `batch` out.")
        rows = self._in_cell_types(requests, self._codes_with_controls(labels))
        self._codes_with_controls([name for name in {row.labels for row in rows} if name is not None] or None)
        shape = (len(rows), len(self._var_names))
        identity = self._screen_identity(rows) | {"return_type": "effect", "level": f"{level:g}"}

        def output(path: Path | None) -> Output:
            described = self._describe(PredictionCall(), rows) | {"return_type": "effect", "units": EFFECT_UNITS}
            described |= {"level": level, "identity": identity}
            parts: Any = {"obs": self._effect_obs(rows), "var": self._gene_var(), "uns": {"cfmvc": described}}
            return make_output(path, **parts, n_latent=None, is_sparse=False, layers=EFFECT_LAYERS)

        def predict(block: Sequence[Request]) -> Iterator[Rows]:
            tables = [self._effect_row(row, level) for row in block]
            names = ("x", *EFFECT_LAYERS)
            arrays = {name: np.stack([table[name] for table in tables]).astype(np.float32) for name in names}
            yield arrays.pop("x"), None, arrays

        self._observed_effects()  # says what is missing before anything is written
        blocks = list(in_chunks(rows, _EFFECTS_PER_BLOCK))
        return Screen(blocks, predict, output, identity, shape, 4 * (1 + len(EFFECT_LAYERS)) * shape[0] * shape[1])

    def _effect_row(self, request: Request, level: float) -> dict[str, np.ndarray]:
        """Effect of a condition in one cell type, and its layers, (n_genes,) each."""
        code = self._code_of(request)
        mean, variance, freedom = self._effect_moments(request.condition, np.array([code]), np.ones(1))
        profile = self._calibration.state.profiles[code]
        table = effect_table(mean, np.sqrt(variance), -profile, freedom, level=level, min_change=0.0, fdr=0.05)
        row = {name: table[name].to_numpy() for name in ("sd", "lower", "upper", "lfsr")}
        return row | {"x": mean, "expression": profile + mean}

    def _effect_obs(self, rows: list[Request]) -> pd.DataFrame:
        """Annotations of effects, one row each."""
        keys, native = self.setup_keys, {}
        if not self._has_presence_matrix:
            native = self._native(CFMVC_KEYS.PERTURBATION_KEY)
        doses = [0.0 if row.dosage is None else row.dosage for row in rows]
        labels = [row.condition.label for row in rows]
        names = list(labels)
        columns: dict[str, Any] = {self._perturbation_column: pd.Categorical([native.get(n, n) for n in labels])}
        if keys.dosage_key is not None:
            is_text = any(isinstance(dose, str) for dose in doses)
            columns[keys.dosage_key] = [dose if isinstance(dose, str) else number_text(dose) for dose in doses]
            names = [f"{name}@{dose}" for name, dose in zip(names, columns[keys.dosage_key], strict=True)]
            columns[keys.dosage_key] = columns[keys.dosage_key] if is_text else doses
        if keys.labels_key is not None:
            columns[keys.labels_key] = pd.Categorical([row.labels for row in rows])
            names = [f"{name}_{row.labels}" for name, row in zip(names, rows, strict=True)]
        codes = [np.array([self._code_of(row)]) for row in rows]
        support = [str(self._support(row.condition, code)[0]) for row, code in zip(rows, codes, strict=True)]
        columns["support"] = pd.Categorical(support)
        columns["support_distance"] = [self._support_distance(row.condition) for row in rows]
        if self._calibration.state.reach is not None:
            columns["support_reach"] = [self._reach(row.condition) for row in rows]
            self._warn_of_little_reach(row.condition for row in rows)
        counted = [self._n_support(row.condition, code) for row, code in zip(rows, codes, strict=True)]
        if counted and counted[0] is not None:
            columns["n_support"] = np.concatenate(cast("list[np.ndarray]", counted))
        return pd.DataFrame(columns, index=make_index_unique(cast("pd.Index[str]", pd.Index(names, dtype=str))))

    def _code_of(self, request: Request) -> int:
        return 0 if request.labels is None else self.cell_types.index(request.labels)

    def _in_cell_types(self, requests: list[Request], codes: np.ndarray) -> list[Request]:
        """Every condition in every one of these cell types, but where it says its own."""
        if self.setup_keys.labels_key is None:
            return requests
        names = [self.cell_types[code] for code in codes]
        return [
            replace(request, labels=name)
            for request in requests
            for name in (names if request.labels is None else [request.labels])
        ]

    # ---- cells ------------------------------------------------------------------------------------------------

    def _screen_of_cells(
        self,
        requests: list[Request],
        labels: str | Sequence[str] | None,
        adata: AnnData | None,
        indices: Sequence[int] | None,
        call: PredictionCall,
    ) -> Screen[Request]:
        if labels is not None:
            requests = self._in_cell_types(requests, self._label_codes(labels))
        sources = self._sources(adata, indices, requests, call, "error")
        identity = self._screen_identity(requests) | self._identity_of_cells(sources, call)
        n_columns = self.module.n_latent if call.return_type == "latent" else len(self._var_names)
        shape = (call.draws * sum(sources[request.labels].n_cells for request in requests), n_columns)
        each = 4 * n_columns if call.return_type != "counts" else _bytes_of_counts(sources)
        copies = 1 if self._counts_layer(call.return_type) is None else 2

        def output(path: Path | None) -> Output:
            return self._make_output(path, requests, sources, call, identity)

        def predict(request: Request) -> Iterator[Rows]:
            for x, latent in self._predict_request(request, sources[request.labels], call):
                yield x, latent, {}

        n_bytes = int(shape[0] * (copies * each + 4 * self.module.n_latent))
        return Screen(requests, predict, output, identity, shape, n_bytes)

    # ---- what a screen depends on -----------------------------------------------------------------------------

    def _screen_identity(self, requests: list[Request]) -> dict[str, str]:
        """Model and conditions, as short texts."""
        state = replace(self._calibration.state, observed=None)  # made when it is first asked for
        plain, arrays = to_plain({"calibration": state.to_saved(), "doses": self.dose_response_})
        weights = {name: value.cpu().numpy() for name, value in self.module.state_dict().items()}
        model = _digest(json.dumps(plain, sort_keys=True), *sorted(weights), *weights.values(), *arrays.values())
        asked = [(r.condition.label, *r.condition.key, r.labels, r.batch) for r in requests]
        return {
            "model": model,
            "conditions": f"{len(requests)} of digest {_digest(asked)}",
            "version": version("cfmvc_scvi"),
        }

    def _identity_of_cells(self, sources: dict[str | None, SourceCells], call: PredictionCall) -> dict[str, str]:
        parts: list[Any] = []
        for source in sources.values():
            context = source.asked.context
            parts += [source.names, source.asked.library, context.labels.numpy(), context.batch.numpy()]
        return {
            "cells": f"{sum(source.n_cells for source in sources.values())} of digest {_digest(*parts)}",
            "return_type": call.return_type,
            "n_samples": str(call.n_samples),
            "solver": str(call.solver.key),
            "seed": str(call.seed),
            **({"batch_size": str(call.batch_size)} if isinstance(call.solver, Adaptive) else {}),
        }


def _bytes_of_counts(sources: dict[str | None, SourceCells]) -> float:
    """About the bytes of one cell's counts in CSR, guessed from the cells that are perturbed."""
    some = next(iter(sources.values())).cells
    n = min(len(some), _GUESSED_FROM)
    return _MORE * 8 * sparse.csr_matrix(some.counts[:n]).nnz / max(1, n)


def _digest(*values: Any) -> str:
    """Short checksum of arrays and of anything that says all of itself in text."""
    digest = hashlib.blake2b(digest_size=8)
    for value in values:
        if isinstance(value, np.ndarray):
            digest.update(repr((value.dtype.str, value.shape)).encode())
            digest.update(np.ascontiguousarray(value).data if value.size else b"")
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
