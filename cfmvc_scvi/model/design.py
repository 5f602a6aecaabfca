"""Design of the next experiment: which conditions would make the effects of others better known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._base import ConditionKey, single_precision
from cfmvc_scvi.calibration.design import choose_experiments
from cfmvc_scvi.calibration.process import MeanEffects
from cfmvc_scvi.calibration.process_error import effect_error
from cfmvc_scvi.calibration.process_query import Conditions
from cfmvc_scvi.model.screen import ScreenMixin
from cfmvc_scvi.prediction.request import Request
from cfmvc_scvi.registration.members import Members

#: Numbers of the covariances of all conditions and genes that are held (2 GB).
_MOST_NUMBERS = 250_000_000


class DesignMixin(ScreenMixin):
    """Design of experiments by :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi.model.screen.ScreenMixin` for conditions in cell types and their support.
    """

    @single_precision
    def suggest_experiments(
        self,
        candidates: str | Sequence[str] | pd.DataFrame,
        n: int = 5,
        *,
        targets: str | Sequence[str] | pd.DataFrame | None = None,
        labels: str | Sequence[str] | None = None,
        dosage: float | str | None = None,
        n_cells: int | None = None,
        n_genes: int = 200,
    ) -> pd.DataFrame:
        r"""Which conditions to measure next, to know the mean effects of some targets best.

        The Gaussian process over the training populations knows how far its mean effects may be off, and which of its
        errors go together (:func:`~cfmvc_scvi.calibration.process_error.effect_error`). What a measurement would leave
        of them follows in closed form, before it is made (:mod:`~cfmvc_scvi.calibration.design`). Greedily, the
        candidate is taken that reduces the variance of the targets most, then the best one beside it, and so on.

        A condition is worth measuring where much is unknown about it and about others that share its perturbations,
        its cell type or, with vectors, its features. What is not taken into account: what it costs, that the
        hyperparameters of the process are estimates, and what the networks know.

        Parameters
        ----------
        candidates
            Conditions that could be measured, as in :meth:`predict_perturbation`; in a DataFrame the column ``labels``
            says in which cell type. Perturbations that were never measured need a vector
            (``perturbation_embedding_key``); without vectors candidates are combinations, doses and cell types.
        n
            Number of experiments.
        targets
            Conditions whose effects are to be known, in the same way; ``None`` is the candidates.
        labels
            Cell type, or several, of candidates and targets that do not say theirs; ``None`` is every one with control
            cells.
        dosage
            Dose of conditions that do not say theirs.
        n_cells
            Cells that each condition will be measured with. ``None``: as precisely as a typical population of
            training, the median over these. With samples (``sample_key``) precision is not one of cells, so leave it
            out.
        n_genes
            Genes that count: those with the largest effects in training.

        Returns
        -------
        DataFrame, one row per experiment in the order in which they are best made: ``perturbation``, ``dosage`` and
        ``labels`` (where the model has them), ``support`` and ``n_support`` as in :meth:`predict_perturbation`, ``sd``
        (standard error of this condition's own effect as things are), ``sd_targets`` (of the targets after this
        experiment and those before it) and ``explained`` (share of the targets' variance that these take away).
        Standard errors are roots of mean variances over genes, in units of :meth:`get_perturbation_effect`. The first
        three columns are conditions as :meth:`predict_perturbation` takes them. ``attrs`` has ``sd_targets`` as things
        are, ``n_targets``, ``genes`` and the units.

        Where perturbations have vectors, variances are those beside the change that all genes share, since shares sum
        to one (:class:`~cfmvc_scvi.calibration.composition.Composition`).

        Raises
        ------
        ValueError
            For unknown conditions and cell types, ``n_cells`` with samples, numbers out of range, and more candidates
            and targets than fit in memory.
        RuntimeError
            When the flow is not trained, or the training data are needed and not there.

        Examples
        --------
        >>> pairs = ["+".join(pair) for pair in itertools.combinations(singles, 2)]
        >>> plan = model.suggest_experiments(pairs, n=8, n_cells=100)
        >>> plan[["perturbation", "labels", "sd", "sd_targets", "explained"]]
        """
        self._require_flow("suggest experiments")
        whole_number("n", n)
        whole_number("n_genes", n_genes)
        self._check_n_cells(n_cells)
        self._observed_effects()  # says what is missing first
        asked = [self._in_places(candidates, labels, dosage)]
        asked += [asked[0] if targets is None else self._in_places(targets, labels, dosage)]
        places = {place: i for i, place in enumerate(dict.fromkeys(place for part in asked for place in part))}
        requests = {place: request for part in asked for place, request in part.items()}
        _check_size(len(places), n_genes)
        genes = self._strongest_genes(n_genes)
        queries = self._queries([requests[place] for place in places])
        observed = self._observed_effects()
        process = self._calibration.state.process
        assert process is not None  # else there are no observed effects
        error = effect_error(process, observed.effects, queries, observed.misfit, genes)
        covariance = error.process + error.noise
        of_candidates, of_targets = (np.array([places[place] for place in part]) for part in asked)
        noise = max(process.hyper["noise"], 1.0) * self._sampling_variance(queries, n_cells)[:, genes].T
        design = choose_experiments(covariance, noise, of_candidates, of_targets, n)
        own = np.sqrt(np.einsum("gjj->gj", covariance).mean(axis=0))
        every = [requests[place] for place in places]
        table = self._table_of_experiments([every[i] for i in design.chosen])
        table["sd"] = own[design.chosen]
        table["sd_targets"] = np.sqrt(np.maximum(design.variance[1:], 0.0))
        table["explained"] = 1.0 - design.variance[1:] / max(design.variance[0], 1e-12)
        table.attrs = {
            "sd_targets": float(np.sqrt(design.variance[0])),
            "n_targets": len(of_targets),
            "n_cells": "a typical population of training" if n_cells is None else n_cells,
            "genes": [str(name) for name in np.asarray(self._var_names)[genes]],
            "units": "change of mean log1p of counts per 10,000 (natural log)",
        }
        return table

    # ---- parts ------------------------------------------------------------------------------------------------

    def _check_n_cells(self, n_cells: int | None) -> None:
        if n_cells is None:
            return
        whole_number("n_cells", n_cells)
        if self.setup_keys.sample_key is not None:
            raise ValueError(
                f"The model has samples (adata.obs[{self.setup_keys.sample_key!r}]), and how well an effect is known "
                "depends on their number more than on that of cells: leave `n_cells` out, for experiments as precise "
                "as those of training."
            )

    def _in_places(
        self,
        perturbation: str | Sequence[str] | pd.DataFrame,
        labels: str | Sequence[str] | None,
        dosage: float | str | None,
    ) -> dict[tuple[ConditionKey, int], Request]:
        """Conditions that were asked for, in each cell type once; control is known and left out."""
        requests = self._requests(perturbation, dosage, None)
        if any(request.batch is not None for request in requests):
            raise ValueError("Effects are those of all batches together: leave the column of batches out.")
        rows = self._in_cell_types(requests, self._codes_with_controls(labels))
        self._codes_with_controls([name for name in {row.labels for row in rows} if name is not None] or None)
        found = {(row.condition.key, self._code_of(row)): row for row in rows if not row.condition.is_control}
        if not found:
            raise ValueError("There is no condition but control, whose effect is known to be zero: name perturbations.")
        return found

    def _queries(self, requests: list[Request]) -> Conditions:
        members = self.vocabulary.encode_members([request.condition for request in requests])
        return Conditions(members, np.array([self._code_of(request) for request in requests]))

    def _strongest_genes(self, n_genes: int) -> np.ndarray:
        """Genes with the largest effects over the training populations, in their order."""
        amplitude = self._observed_effects().effects.amplitudes[1][: len(self._var_names)]
        return np.sort(np.argsort(-amplitude, kind="stable")[:n_genes])

    def _sampling_variance(self, queries: Conditions, n_cells: int | None) -> np.ndarray:
        """Sampling variance that effects of these conditions would have, (k, n_genes), as the process takes them."""
        state, observed = self._calibration.state, self._observed_effects()
        if n_cells is None:
            typical = np.median(observed.effects.variance, axis=0)
            return np.broadcast_to(typical, (len(queries.context), len(typical))).astype(np.float64)
        n_control = np.maximum(observed.n_control[queries.context], 1)[:, None]
        variance = state.variance[queries.context].astype(np.float64) * (1.0 / n_cells + 1.0 / n_control)
        if state.composition is None:
            return variance
        members = Members.of_dense(queries.members)
        effects = MeanEffects(np.zeros_like(variance), variance, members, queries.context)
        return state.composition.split(effects).variance.astype(np.float64)

    def _table_of_experiments(self, requests: list[Request]) -> pd.DataFrame:
        keys, rows = self.setup_keys, []
        for request in requests:
            code = np.array([self._code_of(request)])
            row = {"perturbation": request.condition.label}
            row |= {} if keys.dosage_key is None else {"dosage": request.dosage}
            row |= {} if keys.labels_key is None else {"labels": request.labels}
            counted = self._n_support(request.condition, code)
            support = str(self._support(request.condition, code)[0])
            rows.append(row | {"support": support, "n_support": None if counted is None else int(counted[0])})
        return pd.DataFrame(rows)


def _check_size(n_conditions: int, n_genes: int) -> None:
    if n_conditions**2 * n_genes > _MOST_NUMBERS:
        fits = _MOST_NUMBERS // n_conditions**2
        remedy = f"pass `n_genes={fits}` or less, or name" if fits >= 20 else "name"
        raise ValueError(
            f"Candidates and targets are {n_conditions} conditions, whose covariances over {n_genes} genes do not fit "
            f"in memory: {remedy} fewer candidates, targets or cell types (`labels`)."
        )
