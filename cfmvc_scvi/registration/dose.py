"""Dose-response curves: how much of its full effect a perturbation has at a dose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import minimize

#: Standard deviations of the priors of log(half / reference) and log(slope) around the centre of all perturbations.
_PRIOR_SD = np.array([1.5, 0.5])
#: Bounds of both, relative to nothing.
_BOUNDS = [(-7.0, 7.0), (np.log(0.2), np.log(6.0))]


@dataclass(frozen=True)
class HillCurve:
    r"""Response in units of that at the reference dose, :math:`R`.

    .. math:: r(x) = \frac{x^h}{x^h + e^h} \Big/ \frac{R^h}{R^h + e^h}

    (Hill, 1910): 0 at dose 0, 1 at the reference dose, rising, bounded; nearly straight where :math:`e` is far above
    the doses, and a step where :math:`h` is large.

    Attributes
    ----------
    reference
        :math:`R`, the highest dose of the perturbation in the data.
    half
        :math:`e`, the dose of half the largest response, in the unit of the doses.
    slope
        :math:`h`, the steepness.
    """

    reference: float
    half: float
    slope: float = 1.0

    def __call__(self, dose: float) -> float:
        """Response at a dose of at least 0."""
        return 0.0 if dose == 0 else float(self._share(dose) / self._share(self.reference))

    def _share(self, dose: float) -> float:
        return 1.0 / (1.0 + np.exp(self.slope * (np.log(self.half) - np.log(dose))))

    def to_dict(self) -> dict[str, float]:
        """Plain numbers that ``HillCurve(**saved)`` reads back."""
        return asdict(self)


@dataclass(frozen=True)
class DoseEffects:
    """Observed mean effects of one perturbation alone, one row per dose and context.

    Attributes
    ----------
    dose
        Doses above 0, shape (n,).
    context
        Index of the context, shape (n,).
    effect, variance
        Mean change of every gene and its sampling variance, shape (n, n_genes).
    """

    dose: np.ndarray
    context: np.ndarray
    effect: np.ndarray
    variance: np.ndarray

    @property
    def is_informative(self) -> bool:
        """Whether a context has two doses to compare."""
        return any(len(np.unique(self.dose[self.context == c])) > 1 for c in np.unique(self.context))


def fit_dose_response(effects: Mapping[str, DoseEffects], reference: Mapping[str, float]) -> dict[str, HillCurve]:
    r"""Fit a Hill curve per perturbation to its mean effects on all genes.

    The effect of a perturbation in a context is one profile times the response, :math:`y_{dcg} = r(d)\, b_{cg}` plus
    noise of the sampling variance, with Gaussian profiles whose variance, in that of their estimates, is fitted too.
    Integrated over the profiles, the log likelihood is :math:`\tfrac{G}{2} (m - 1 - \log m)` per context, where
    :math:`m` is the mean over the :math:`G` genes of the squared z-score of :math:`b_{cg}`: effects within the noise
    say next to nothing. It is maximised together with a Gaussian prior on the logarithms of both
    parameters. The prior is centred on the median of all perturbations with several doses, which perturbations with
    one dose take as it is. Without any, half the largest response is put at the reference dose, which says only
    that the curve bends.

    Parameters
    ----------
    effects
        Perturbation to its observed effects.
    reference
        Perturbation to its reference dose; the result has a curve for each.
    """
    informative = {name: data for name, data in effects.items() if data.is_informative}
    center, found = np.zeros(2), {}
    for _ in range(2):  # first around the neutral centre, then around their own median
        found = {name: _fit_curve(data, reference[name], center) for name, data in informative.items()}
        if found:
            center = np.median(list(found.values()), axis=0)
    curves = {}
    for name, dose in reference.items():
        log_half, log_slope = found.get(name, center)
        curves[name] = HillCurve(float(dose), float(dose * np.exp(log_half)), float(np.exp(log_slope)))
    return curves


def effects_of_doses(
    conditions: Sequence[tuple[tuple[str, ...], tuple[float, ...]]],
    context: np.ndarray,
    effect: np.ndarray,
    variance: np.ndarray,
) -> dict[str, DoseEffects]:
    """Effects of the populations that got one perturbation alone, by perturbation.

    Parameters
    ----------
    conditions
        Members and doses of every population.
    context
        Index of its context, shape (n,).
    effect, variance
        Its mean effect and the sampling variance, shape (n, n_genes).
    """
    rows: dict[str, list[int]] = {}
    for i, (members, _) in enumerate(conditions):
        if len(members) == 1:
            rows.setdefault(members[0], []).append(i)
    return {
        name: DoseEffects(np.array([conditions[i][1][0] for i in at]), context[at], effect[at], variance[at])
        for name, at in rows.items()
    }


def _fit_curve(data: DoseEffects, reference: float, center: np.ndarray) -> np.ndarray:
    """Log of half / reference and of the slope."""
    log_dose = np.log(data.dose / reference)
    weight = 1.0 / data.variance
    scale = _noise_scale(data, weight)

    def objective(values: np.ndarray) -> float:
        response = 1.0 / (1.0 + np.exp(np.exp(values[1]) * (values[0] - log_dose)))
        explained = 0.0
        for context in np.unique(data.context):
            rows = data.context == context
            r, w, y = response[rows, None], weight[rows], data.effect[rows]
            z2 = ((w * r * y).sum(axis=0) ** 2 / (w * r**2).sum(axis=0)).mean() / scale
            explained += y.shape[1] * (z2 - 1.0 - np.log(z2)) if z2 > 1.0 else 0.0
        return float(-0.5 * explained + 0.5 * (((values - center) / _PRIOR_SD) ** 2).sum())

    starts = [center, center + [1.5, 0.0], center - [1.5, 0.0]]
    lower, upper = np.array(_BOUNDS).T
    fits = [minimize(objective, np.clip(start, lower, upper), method="L-BFGS-B", bounds=_BOUNDS) for start in starts]
    return min(fits, key=lambda fit: fit.fun).x


def _noise_scale(data: DoseEffects, weight: np.ndarray) -> float:
    """Mean squared residual, in sampling variances, about the best profile of each context; at least 1.

    With more noise than the sampling variance says (a response that is not one profile times a number), the data
    count for less beside the prior.
    """
    residual, freedom = 0.0, 0
    for context in np.unique(data.context):
        rows = data.context == context
        if rows.sum() < 2:
            continue
        y = data.effect[rows] * np.sqrt(weight[rows])
        singular = np.linalg.svd(y, compute_uv=False)
        residual += (singular[1:] ** 2).sum()
        freedom += (rows.sum() - 1) * (y.shape[1] - 1)
    return max(residual / freedom, 1.0) if freedom else 1.0
