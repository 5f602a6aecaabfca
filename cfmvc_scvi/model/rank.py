"""Search backwards: which perturbation brings these cells nearest to those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi.utils import track

from cfmvc_scvi._arguments import whole_number
from cfmvc_scvi._base import single_precision
from cfmvc_scvi.metrics._resampled import ResampledEnergy
from cfmvc_scvi.model.aim import AimMixin, Target, lognorm_of
from cfmvc_scvi.model.effects import EffectMixin, check_probabilities
from cfmvc_scvi.prediction.request import PredictionCall, Request, default_solver
from cfmvc_scvi.prediction.sources import SourceCells
from cfmvc_scvi.registration.vocabulary import Condition

#: Least standard deviation of a gene when differences are compared between genes.
_LEAST_SD = 0.05


@dataclass(frozen=True)
class Comparison:
    """Distances to the target cells.

    Attributes
    ----------
    genes
        Genes on which cells are compared.
    on_genes, in_latent
        Distances on these genes and in the intrinsic latent.
    """

    genes: np.ndarray
    on_genes: ResampledEnergy
    in_latent: ResampledEnergy


class RankingMixin(AimMixin, EffectMixin):
    """Ranking of perturbations by :class:`~cfmvc_scvi.CFMVC`.

    Relies on :class:`~cfmvc_scvi.model.effects.EffectMixin` for mean effects and on
    :class:`~cfmvc_scvi.model.aim.AimMixin` for cells.
    """

    @single_precision
    def rank_perturbations(
        self,
        source: AnnData | Sequence[int] | np.ndarray | None = None,
        target: AnnData | Sequence[int] | np.ndarray | pd.Series | None = None,
        *,
        perturbations: str | Sequence[str] | pd.DataFrame | None = None,
        pairs: bool = False,
        dosage: float | str | None = None,
        labels: str | Sequence[str] | None = None,
        n_best: int = 20,
        n_cells: int = 300,
        n_genes: int = 100,
        n_resamples: int = 200,
        level: float = 0.95,
        seed: int | None = None,
        show_progress: bool | None = None,
    ) -> pd.DataFrame:
        r"""Which perturbation, pair or dose brings some cells nearest to others.

        In two steps. First every candidate by its mean effect alone, the one that predictions are calibrated to
        (:meth:`get_perturbation_effect`), against the wanted change of the mean from source to target: milliseconds
        each, so thousands are no matter. Then, of the ``n_best`` nearest by that, the cells: the source cells as they
        would look under the candidate, and their energy distance to the target cells, in the intrinsic latent and on
        genes. These are ranked by the energy distance on genes and stand before the others, which stay in the order of
        the first step. A row for control says how far the source is as it is.

        Parameters
        ----------
        source
            Cells to start from: an AnnData, or rows of the registered data (numbers, a mask, names). ``None`` takes
            the registered control cells of the target's cell types, in its batches where these have some.
        target
            Cells to arrive at: an AnnData, or rows of the registered data; or a mean profile of log1p of counts per
            10,000, a Series by gene or an array of floating-point numbers (n_genes,). A mean profile has no cells, so
            there is the first step alone.
        perturbations, dosage
            Candidates, as in :meth:`predict_perturbation`; ``None`` is every condition of training. Cell types and
            batches in a DataFrame of them are refused: ``labels`` and ``source`` say which cells.
        pairs
            Take all pairs of these perturbations (``None``: of all single ones of training) as candidates too.
        labels
            Cell type, or several, that source and target are narrowed to.
        n_best
            Candidates whose cells are predicted.
        n_cells
            Most cells of source and of target that are compared; of more, a random sample.
        n_genes
            Genes on which cells are compared: those that change most, beside their standard deviation over the source
            cells, from source to target or under one of the best candidates. Genes that only a candidate moves speak
            against it, so they belong to these.
        n_resamples, level
            Bootstrap resamples of source and target cells, and probability of the interval from them.
        seed
            Of all samples; ``None`` is that of ``scvi.settings``, or 0.
        show_progress
            Show a bar; ``None`` does from 100 candidates on.

        Returns
        -------
        DataFrame, one row per candidate and one for control, best first:

        - ``perturbation``, ``dosage`` (where the model has doses);
        - ``rank``: 1 is nearest;
        - ``support``, ``n_support``: what the candidate rests on, as in :meth:`predict_perturbation`, the least of the
          source's cell types, and training cells over all of them;
        - ``energy_genes``, ``energy_latent``: energy distance to the target after the perturbation, in log1p of counts
          per 10,000 and in units of the latent; NaN where no cells were predicted. Below about 0 nothing is left to
          explain;
        - ``lower``, ``upper``: interval of ``energy_genes``, and ``probability_best``, how often the candidate is the
          nearest of those compared, over resamples of the cells; equals share it. They cover that cells are few, and
          nothing of the model's own error;
        - ``effect_sd``: that error, as the root of the mean variance of the candidate's mean effect on the compared
          genes (:meth:`get_perturbation_effect`);
        - ``mean_distance``, ``cosine``: root mean square difference over all genes between mean effect and wanted
          change, and the cosine between the two; ``rank_mean`` is the ranking by the first alone.

        ``attrs`` has ``n_source``, ``n_target``, ``n_target_trained`` (target cells that were trained on, known by
        name), ``genes`` (those compared) and the units.

        Warns
        -----
        UserWarning
            Where target cells were trained on, or source and target differ in their mix of cell types.

        Raises
        ------
        ValueError
            Without a target, for unknown candidates or cell types, missing genes, fewer than 2 cells on either side,
            and numbers out of range.
        RuntimeError
            When the flow is not trained, or the training data are needed and not there.

        Examples
        --------
        >>> doubles = adata.obs["perturbation"] == "CEBPA+KLF1"
        >>> table = model.rank_perturbations(target=adata[doubles], pairs=True)
        >>> table.head(3)[["perturbation", "rank", "support", "energy_genes", "probability_best"]]
        """
        self._require_flow("rank perturbations")
        check_probabilities(level=level)
        for argument, value, least in (
            ("n_best", n_best, 1),
            ("n_cells", n_cells, 2),
            ("n_genes", n_genes, 1),
            ("n_resamples", n_resamples, 1),
        ):
            whole_number(argument, value, least)
        seed = self._seed if seed is None else seed
        requests = self._candidates(perturbations, pairs, dosage)
        codes = None if labels is None else self._label_codes(labels)
        rng = np.random.default_rng(seed)
        aim = self._read_target(target, codes, n_cells, rng)
        call = PredictionCall.of("lognorm", seed=seed)
        start = self._read_source(source, aim, codes, n_cells, rng, requests, call)
        many = len(requests) >= 100 if show_progress is None else show_progress
        table, effects, best = self._by_mean_effect(requests, start, aim, n_best, many)
        genes = np.zeros(0, dtype=int)
        if aim.cells is not None:
            genes = _compared_genes(start, aim, effects[best], n_genes)
            compare = Comparison(
                genes=genes,
                on_genes=ResampledEnergy(lognorm_of(aim.cells)[:, genes], start.n_cells, n_resamples, seed),
                in_latent=ResampledEnergy(self._encode(aim.cells).mean.numpy(), start.n_cells, 1, seed),
            )
            table = table.join(self._by_cells(requests, best, effects, start, compare, level, call))
            order = np.lexsort([table["mean_distance"], table["energy_genes"].fillna(np.inf)])
        else:
            order = np.argsort(table["mean_distance"].to_numpy(), kind="stable")
        table = table.iloc[order].reset_index(drop=True)
        table.insert(1 + ("dosage" in table), "rank", np.arange(1, len(table) + 1))
        table.attrs = {
            "n_source": start.n_cells,
            "n_target": 0 if aim.cells is None else len(aim.cells),
            "n_target_trained": aim.n_trained,
            "genes": [str(name) for name in np.asarray(self._var_names)[genes]],
            "units": "log1p of counts per 10,000 (natural log)",
            "level": level,
        }
        return table

    # ---- what is asked ----------------------------------------------------------------------------------------

    def _candidates(
        self, perturbations: str | Sequence[str] | pd.DataFrame | None, pairs: bool, dosage: float | str | None
    ) -> list[Request]:
        """Candidates, control first, each condition once."""
        requests = self._requests(perturbations, dosage, None)
        if any(request.labels is not None or request.batch is not None for request in requests):
            raise ValueError(
                "Candidates are conditions alone: leave the columns of cell types and batches out of `perturbations`; "
                "`labels` and `source` say which cells are perturbed."
            )
        if pairs:
            requests = [*requests, *self._pairs(requests, perturbations is None)]
        control = Condition(self.vocabulary.control_label)
        every = [Request(control), *(request for request in requests if not request.condition.is_control)]
        if len(every) == 1:
            raise ValueError("There is no candidate but control: name perturbations.")
        return list({request.condition.key: request for request in reversed(every)}.values())[::-1]

    def _pairs(self, requests: list[Request], of_members: bool) -> list[Request]:
        """All pairs of the single perturbations among requests; ``of_members``: of all that they are made of."""
        delimiter = self.vocabulary.combination_delimiter
        if delimiter is None:
            raise ValueError(
                "The model was set up without `combination_delimiter`, so it knows no pairs: set it up with one, as "
                "`combination_delimiter='+'`, or leave `pairs` out."
            )
        if self.setup_keys.dosage_key is not None:
            raise ValueError(
                "Pairs have a dose for each member: list them with their doses in `perturbations`, a DataFrame with "
                "the columns `perturbation` and `dosage`, in place of `pairs=True`."
            )
        singles = [one.condition.members for one in requests if of_members or len(one.condition.members) == 1]
        names = sorted({name for members in singles for name in members})
        return self._requests([delimiter.join(pair) for pair in combinations(names, 2)], None, None)

    # ---- the two steps ----------------------------------------------------------------------------------------

    def _by_mean_effect(
        self, requests: list[Request], start: SourceCells, aim: Target, n_best: int, show_progress: bool
    ) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        """Every candidate by its mean effect; these (n, n_genes); and the places of the nearest, control first."""
        codes, weights = _shares(start)
        wanted = aim.mean - lognorm_of(start.asked).mean(axis=0)
        rows, effects = [], np.zeros((len(requests), len(wanted)), dtype=np.float32)
        for i, request in enumerate(track(requests, description="Mean effects", disable=not show_progress)):
            condition = request.condition
            if not condition.is_control:
                effects[i] = weights @ self._calibration.mean_effects(condition, codes, default_solver())
            support = self._support(condition, start.codes, start.perturbed)
            counted = self._n_support(condition, codes)
            row: dict[str, Any] = {"perturbation": condition.label, "dosage": request.dosage}
            row["support"] = str(support.categories[int(support.codes.max())])
            row["n_support"] = None if counted is None else int(counted.sum())
            rows.append(row)
        table = pd.DataFrame(rows).drop(columns=[] if self.setup_keys.dosage_key is not None else ["dosage"])
        apart = np.array([np.sqrt(((effect - wanted) ** 2).mean()) for effect in effects])
        size = np.linalg.norm(effects, axis=1) * np.linalg.norm(wanted)
        table["mean_distance"] = apart
        table["cosine"] = np.divide(effects @ wanted, size, out=np.full(len(size), np.nan), where=size > 0)
        table["rank_mean"] = table["mean_distance"].rank(method="first").astype(int)
        return table, effects, np.r_[0, 1 + np.argsort(apart[1:], kind="stable")[:n_best]]

    def _by_cells(
        self,
        requests: list[Request],
        best: np.ndarray,
        effects: np.ndarray,
        start: SourceCells,
        compare: Comparison,
        level: float,
        call: PredictionCall,
    ) -> pd.DataFrame:
        """Energy distances of the cells under some of the candidates, by their place among the requests."""
        rows, resampled = {}, []
        for i in map(int, best):
            parts = [(x[:, compare.genes], z) for x, z in self._predict_request(requests[i], start, call)]
            levels, latents = (np.concatenate(values) for values in zip(*parts, strict=True))
            energy = compare.on_genes.distances(levels)
            lower, upper = np.quantile(energy[1:], [0.5 - level / 2, 0.5 + level / 2])
            sd = self._effect_sd(requests[i].condition, start, effects[i])[compare.genes]
            rows[i] = {"energy_genes": energy[0], "energy_latent": compare.in_latent.distances(latents)[0]}
            rows[i] |= {"lower": lower, "upper": upper, "effect_sd": float(np.sqrt((sd**2).mean()))}
            resampled.append(energy[1:])
        table = pd.DataFrame.from_dict(rows, orient="index")
        nearest = np.stack(resampled) == np.min(resampled, axis=0)
        table.insert(4, "probability_best", (nearest / nearest.sum(axis=0)).mean(axis=1))  # ties are shared
        return table

    def _effect_sd(self, condition: Condition, start: SourceCells, effect: np.ndarray) -> np.ndarray:
        """Standard error (n_genes,) of a mean effect, NaN where there is no process to tell."""
        if condition.is_control:
            return np.zeros(len(effect))
        if self._calibration.state.process is None:
            return np.full(len(effect), np.nan)
        self._observed_effects()
        variance, _ = self._effect_variance(condition, *_shares(start), effect)
        return np.sqrt(variance)


def _compared_genes(start: SourceCells, aim: Target, effects: np.ndarray, n_genes: int) -> np.ndarray:
    """Genes that change most from source to target, or under a candidate, beside their spread over source cells."""
    before = lognorm_of(start.asked)
    changes = np.vstack([aim.mean - before.mean(axis=0), effects])
    largest = np.abs(changes).max(axis=0) / np.maximum(before.std(axis=0), _LEAST_SD)
    return np.sort(np.argsort(-largest, kind="stable")[:n_genes])


def _shares(start: SourceCells) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the cell types of the source cells, and their shares."""
    codes, counts = np.unique(start.codes, return_counts=True)
    return codes, counts / counts.sum()
