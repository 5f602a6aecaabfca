"""Populations of the training cells: mean and spread of every gene, beside the controls of the same context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cfmvc_scvi.calibration.moments import group_moments
from cfmvc_scvi.calibration.process import MeanEffects
from cfmvc_scvi.calibration.ridge import VectorRidge
from cfmvc_scvi.calibration.samples import Between, SampledPopulation, Values, between_samples, sampled_effect
from cfmvc_scvi.calibration.sampling_variance import moved_variance, shrink_variance, variance_trend
from cfmvc_scvi.cells.latents import LatentCache
from cfmvc_scvi.cells.strata import matched_strata, rows_by_group, strata
from cfmvc_scvi.cells.table import CellTable
from cfmvc_scvi.registration.members import Members

#: Variance of a mean that no number of cells takes away.
_FLOOR = 1e-4
#: Ridge on the change of variances with a perturbation, in roots of cells.
_RIDGE = 3.0
#: Genes whose changes of variance are laid out at a time.
_SOME_GENES = 500


@dataclass(frozen=True)
class Populations:
    """Control and perturbed populations of the training cells, and their moments of log1p CP10k.

    Attributes
    ----------
    control
        Rows of the control cells of every cell type; all control cells where a type has none.
    mean0, spread0
        Mean and variance over those cells, shape (n_labels, n_genes).
    mean1, spread1
        The same of every perturbed population, shape (n, n_genes).
    effect, variance
        Mean change of every perturbed population against its matched controls, and its sampling variance, (n, n_genes).
    n_cells, label, condition
        Cells, cell type and index of the condition of every perturbed population.
    freedom
        Degrees of freedom of ``variance``, (n, n_genes), where that is estimated between samples; else ``None``.
    """

    control: list[np.ndarray]
    mean0: np.ndarray
    spread0: np.ndarray
    mean1: np.ndarray
    spread1: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    n_cells: np.ndarray
    label: np.ndarray
    condition: np.ndarray
    freedom: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def of(cls, cache: LatentCache, rows: np.ndarray, n_labels: int) -> Populations:
        """Populations of any size, from one cell on, in the cell types that have control cells.

        The controls of a population are all of its cell type. Where the two are spread differently over batches and
        further categorical covariates (:mod:`~cfmvc_scvi.cells.strata`), they are those of the same strata, weighted as
        the population's cells are spread over them. The sampling variance is from a variance over cells that is
        shrunken towards that of the controls (:mod:`~cfmvc_scvi.calibration.sampling_variance`). With samples, effects
        are means over them and the variance is that between them (:mod:`~cfmvc_scvi.calibration.samples`).
        """
        labels = cache.cells.context.labels.numpy()
        groups = rows_by_group(cache.condition, labels, rows)
        none = rows[:0]
        everyone = rows[cache.condition[rows] == 0]
        own = [groups.get((0, label), none) for label in range(n_labels)]
        control = [cells if len(cells) else everyone for cells in own]
        controls = MatchedControls(cache.cells, own, control)
        found = [(*key, cells) for key, cells in groups.items() if key[0] and len(own[key[1]])]
        shape = len(found), cache.cells.counts.shape[1]
        mean, spread, effect, variance = (np.empty(shape, dtype=np.float32) for _ in range(4))
        over_cells = None if cache.cells.sample is None else np.empty(shape, dtype=np.float32)
        every_moment = Moments.of_groups(cache.cells, [cells for *_, cells in found])
        for i, ((_, label, cells), here) in enumerate(zip(found, every_moment, strict=True)):
            shrunken = here.shrunken(controls.prior(label, here))
            mean0, variance0 = controls.mean(cells, label)
            mean[i], spread[i], effect[i] = here.mean, here.spread, here.mean - mean0
            variance[i] = shrunken / here.n + variance0 + _FLOOR
            if over_cells is not None:
                over_cells[i] = shrunken
        condition, label = (np.array([group[k] for group in found], dtype=int) for k in range(2))
        n_cells = np.array([len(cells) for *_, cells in found], dtype=int)
        every = cls(control, controls.level, controls.spread, mean, spread, effect, variance, n_cells, label, condition)
        if over_cells is None or not found:
            return every
        codes = sorted(set(label.tolist()))
        rows_of = [*(own[code] for code in codes), *(cells for *_, cells in found)]
        samples = list(_by_sample(cache.cells, rows_of, [*controls.shrunken[codes], *over_cells]))
        return every._over_samples(dict(zip(codes, samples, strict=False)), samples[len(codes) :])

    def _over_samples(self, control: dict[int, BySample], perturbed: list[BySample]) -> Populations:
        """The same populations with effects over samples; ``control`` by cell type, ``perturbed`` by population."""
        control = {int(c): samples for c, samples in control.items()}
        sampled = [_sampled(p, control[int(c)]) for p, c in zip(perturbed, self.label, strict=True)]
        singles = {c: _stacked(list(samples.values())) for c, samples in control.items()}
        groups = {c: [s for s, label in zip(sampled, self.label, strict=True) if label == c] for c in control}
        n_genes = self.effect.shape[1]
        paired = _between({c: [s.paired for s in group] for c, group in groups.items()}, n_genes)
        single = _between({c: [singles[c], *(s.single for s in group)] for c, group in groups.items()}, n_genes)
        found = [sampled_effect(s, singles[c], paired[c], single[c]) for s, c in zip(sampled, self.label, strict=True)]
        effect, variance, freedom = (
            np.stack([getattr(f, name) for f in found]) for name in ("effect", "variance", "freedom")
        )
        freedom = freedom if np.isfinite(freedom).any() else None
        return replace(self, effect=effect, variance=variance + _FLOOR, freedom=freedom)

    def observed(self, members: Members) -> MeanEffects:
        """The populations as the process reads them, with the perturbations of each."""
        return MeanEffects(self.effect, self.variance, members, self.label, self.freedom)

    def spread_effect(self, members: Members) -> np.ndarray:
        """Change of every gene's variance per unit of the perturbation vector, (n_features, n_genes), by ridge.

        Populations weigh as the root of their cells less one: the spread of a single cell says nothing.

        Parameters
        ----------
        members
            Perturbations of every population.
        """
        ridge = VectorRidge(members, np.sqrt(self.n_cells - 1), _RIDGE)
        out = np.empty((members.n_features, self.effect.shape[1]), dtype=np.float32)
        for start in range(0, out.shape[1], _SOME_GENES):
            genes = slice(start, start + _SOME_GENES)
            change = self.spread1[:, genes] - self.spread0[:, genes][self.label]
            out[:, genes] = ridge.coefficients(change)
        return out


#: Mean of every gene in each sample, and its variance from cells.
BySample = dict[int, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Moments:
    """Mean and variance of every gene over some cells, and the number of cells."""

    mean: np.ndarray
    spread: np.ndarray
    n: int

    @classmethod
    def of_groups(cls, cells: CellTable, groups: Sequence[np.ndarray]) -> Iterator[Moments]:
        """Moments over the cells at the rows of each group."""
        for rows, found in zip(groups, group_moments(cells, groups), strict=True):
            yield cls(*found, len(rows))

    def shrunken(self, prior: np.ndarray) -> np.ndarray:
        """Variance over cells, shrunken towards a prior."""
        return shrink_variance(self.n * self.spread, self.n - 1, prior)


def _by_sample(cells: CellTable, populations: list[np.ndarray], spreads: Sequence[np.ndarray]) -> Iterator[BySample]:
    """Means in each sample of every population, with variances from cells that vary by its ``spread``."""
    assert cells.sample is not None  # a sample key is registered
    samples = [cells.sample[rows] for rows in populations]
    parts = [
        {int(code): rows[sample == code] for code in np.unique(sample)}
        for rows, sample in zip(populations, samples, strict=True)
    ]
    moments = group_moments(cells, [part for of_one in parts for part in of_one.values()])
    for of_one, spread in zip(parts, spreads, strict=True):
        yield {s: (next(moments)[0], spread / len(part) + _FLOOR) for s, part in of_one.items()}


def _sampled(perturbed: BySample, control: BySample) -> SampledPopulation:
    """Samples with controls, as differences, and those without."""
    n_genes = len(next(iter(perturbed.values()))[0])
    both = [s for s in perturbed if s in control]
    paired = [(perturbed[s][0] - control[s][0], perturbed[s][1] + control[s][1]) for s in both]
    single = [value for s, value in perturbed.items() if s not in control]
    return SampledPopulation(_stacked(paired, n_genes), _stacked(single, n_genes))


def _stacked(values: list[tuple[np.ndarray, np.ndarray]], n_genes: int = 0) -> Values:
    if not values:
        return np.zeros((0, n_genes)), np.zeros((0, n_genes))
    return np.stack([mean for mean, _ in values]), np.stack([variance for _, variance in values])


def _between(groups: dict[int, list[Values]], n_genes: int) -> dict[int, Between]:
    """Variance between samples in every cell type; the mean of the others where one has too few."""
    found = {label: between_samples(group) for label, group in groups.items()}
    known = [between for between in found.values() if between is not None]
    typical = Between.mean(known) if known else Between.none(n_genes)
    return {label: typical if between is None else between for label, between in found.items()}


class MatchedControls:
    """Controls of every cell type: their variances, and the mean of those that a population is compared with.

    Parameters
    ----------
    cells
        All cells.
    own
        Rows of the control cells of every cell type.
    control
        The same, or those that stand for them where there are none.

    Attributes
    ----------
    level, spread
        Mean and variance over the controls of every cell type, shape (n_labels, n_genes).
    shrunken
        The variance, shrunken towards that within all cell types.
    """

    def __init__(self, cells: CellTable, own: list[np.ndarray], control: list[np.ndarray]) -> None:
        self._cells, self._own = cells, own
        self._code = strata(cells.context)
        self._pooled = list(Moments.of_groups(cells, control))
        self._moments: dict[int, dict[int, Moments]] = {}
        self.level = np.stack([moments.mean for moments in self._pooled])
        self.spread = np.stack([moments.spread for moments in self._pooled])
        self.shrunken = self._shrunken()
        self._trends = [variance_trend(*values) for values in zip(self.level, self.shrunken, strict=True)]

    def _shrunken(self) -> np.ndarray:
        sizes = np.array([moments.n for moments in self._pooled], dtype=float)
        within = sizes @ self.spread / max(float((sizes - 1).sum()), 1.0)
        level = sizes @ self.level / sizes.sum()
        trend = variance_trend(level, within)
        priors = [moved_variance(moments.mean, moments.n, level, within, trend) for moments in self._pooled]
        return np.stack([moments.shrunken(prior) for moments, prior in zip(self._pooled, priors, strict=True)])

    def prior(self, label: int, moments: Moments) -> np.ndarray:
        """Prior variance over the cells of a perturbed population of a type, (n_genes,)."""
        return moved_variance(moments.mean, moments.n, self.level[label], self.shrunken[label], self._trends[label])

    def mean(self, rows: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean of the matched controls of the cells ``rows`` of a type, and its sampling variance, (n_genes,) both."""
        groups = matched_strata(self._code[rows], self._code[self._own[label]])
        parts = [(self._in_stratum(label, stratum), here.sum()) for stratum, here in groups.items()]
        rest = len(rows) - sum(n for _, n in parts)
        if rest:
            parts.append((self._pooled[label], rest))
        weights = [n / len(rows) for _, n in parts]
        mean = sum(w * moments.mean for w, (moments, _) in zip(weights, parts, strict=True))
        prior = self.shrunken[label]
        variance = sum(w**2 * m.shrunken(prior) / m.n for w, (m, _) in zip(weights, parts, strict=True))
        return np.asarray(mean), np.asarray(variance)

    def _in_stratum(self, label: int, stratum: int) -> Moments:
        if label not in self._moments:
            codes = self._code[self._own[label]]
            groups = {int(code): self._own[label][codes == code] for code in np.unique(codes)}
            found = Moments.of_groups(self._cells, list(groups.values()))
            self._moments[label] = dict(zip(groups, found, strict=True))
        return self._moments[label][stratum]
