"""Gaussian process over conditions and contexts for the mean effect on every gene."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

#: Start values of the shared hyperparameters, on the log scale.
_START = {"length": 1.0, "common": 0.3, "context": 0.2, "slope": 0.05, "noise": 0.6, "pair": 0.1}
_BOUNDS = (-7.0, 4.0)
#: Numbers of one block of covariances held at a time (64 MB of float64).
_BLOCK = 8_000_000


@dataclass(frozen=True)
class MeanEffects:
    """Observed mean effects, one row per perturbed population.

    Attributes
    ----------
    effect
        Mean log1p CP10k of the population minus that of the controls of its context, shape (n, n_genes).
    variance
        Sampling variance of ``effect``, shape (n, n_genes).
    members
        Weighted vectors of the perturbations given together, shape (n, most members, n_features); rows of zeros
        where there are fewer.
    context
        Index of the context, shape (n,).
    freedom
        Degrees of freedom of ``variance``, shape (n, n_genes); ``None`` is infinitely many.
    """

    effect: np.ndarray
    variance: np.ndarray
    members: np.ndarray
    context: np.ndarray
    freedom: np.ndarray | None = None

    def shares(self) -> np.ndarray:
        r"""Share of every population in means over them, shape (n,).

        .. math:: w_i \propto \left(\bar a + \bar v_i\right)^{-2}

        with :math:`\bar v_i` the population's sampling variance and :math:`\bar a` the squared effect less that
        variance, both means over genes, :math:`\bar a` the median of all populations: about the weights of least
        variance for a mean of squares. Populations of few cells, whose squares are noise, count for little; where all
        are large, all count alike.
        """
        noise = self.variance.mean(axis=1)
        size = max(float(np.median((self.effect**2).mean(axis=1) - noise)), 1e-4)
        weights = (size + noise) ** -2.0
        return weights / weights.sum()


@dataclass
class EffectGP:
    r"""Mean effect of the perturbations :math:`p_1, p_2, \dots` given together in a context, for all genes at once.

    .. math::
        y_g = w_g(c) \cdot p + \sum_{k < l} p_k^\top W_g \, p_l, \qquad p = \sum_k p_k

    .. math::
        \operatorname{cov}\left[w_g(c) \cdot p, \, w_g(c') \cdot p'\right] = p \cdot p' \left[ a_g \left( s_0 + s_1
        e^{-d(c, c')^2 / 2 l} \right) + s_2 \, x_{cg} x_{c'g} \right]

    .. math::
        \operatorname{cov}\Big[\sum_{k < l} p_k^\top W_g \, p_l, \, \sum_{k < l} p_k'^\top W_g \, p_l'\Big] =
        \frac{a_g s_4}{4} \sum_{k \ne l} \sum_{m \ne n} (p_k \cdot p'_m)(p_l \cdot p'_n)

    with :math:`a_g` the gene's mean squared effect (:meth:`MeanEffects.shares`), :math:`d` the distance of the
    contexts' control profiles in units of its median, and :math:`x_{cg}` the centred control level of the gene. The
    first three terms are an effect common to all contexts, one that similar contexts share, and one that follows how
    strongly the gene is expressed already; a global slope on :math:`x`, in proportion to the length of :math:`p`, comes
    on top. The last is the interaction of perturbations given together, common to all contexts: a pair tells of pairs
    that share a member, or whose members have similar vectors. The observation noise is a multiple :math:`s_3` of the
    sampling variance, so a population of few cells counts for little. The hyperparameters are shared by all genes and
    maximise their summed marginal likelihood (Rasmussen and Williams, 2006, ch. 2 and 5).

    But for the slope and the interactions, the effect is linear in :math:`p`. It is zero for control, and defined
    for every perturbation that has a vector.

    Attributes
    ----------
    profiles
        Mean log1p CP10k of the controls of every context, shape (n_contexts, n_genes).
    """

    profiles: np.ndarray
    hyper: dict[str, float] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def fit(self, data: MeanEffects, n_hyper_genes: int = 1000) -> EffectGP:
        """Fit the hyperparameters, on the ``n_hyper_genes`` genes with the largest effects, and the weights."""
        x = self.profiles - self.profiles.mean(axis=0)
        amplitude = data.shares() @ data.effect**2 + 1e-4
        self.state = {
            "members": data.members.astype(np.float64),
            "p": data.members.sum(axis=1, dtype=np.float64),
            "context": data.context,
            "amplitude": amplitude,
            "x": x,
            "distance": _context_distance(self.profiles),
        }
        n = len(data.effect)
        genes = np.argsort(-amplitude)[: n_hyper_genes if n <= 60 else 100]
        self._fit_hyper(data, genes)
        weights = np.empty((data.effect.shape[1], n))
        size = max(1, min(500, _BLOCK // n**2))
        for block in np.array_split(np.arange(data.effect.shape[1]), max(1, data.effect.shape[1] // size)):
            weights[block] = self._solve(data, block)
        self.state["weights"] = weights
        return self

    def predict(self, members: np.ndarray, context: int | np.integer) -> np.ndarray:
        """Mean effect (n_genes,) in a context of the perturbations with these vectors, (n_members, n_features)."""
        state = self.state
        members = members.astype(np.float64)
        p = members.sum(axis=0)
        overlap = state["p"] @ p
        rows = state["context"]
        kernel = np.exp(-state["distance"][context, rows] / (2 * self.hyper["length"]))
        shared = self.hyper["common"] + self.hyper["context"] * kernel
        weights = state["weights"]
        x = state["x"]
        pairs = self.hyper["pair"] * pair_overlap(state["members"], members[None])[:, 0]
        smooth = state["amplitude"] * (weights @ (overlap * shared + pairs))
        level = self.hyper["slope"] * x[context] * np.einsum("gn,ng->g", weights * overlap, x[rows])
        return smooth + level + self.hyper["mean_slope"] * x[context] * _strength(p)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_dict` reads back."""
        return {"profiles": self.profiles, "hyper": dict(self.hyper), "state": dict(self.state)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> EffectGP:
        """Counterpart of :meth:`to_dict`."""
        return cls(**saved)

    # ---- fitting ------------------------------------------------------------------------------------------------

    def _fit_hyper(self, data: MeanEffects, genes: np.ndarray) -> None:
        terms = self._terms(data, genes)
        start = np.r_[np.log(list(_START.values())), -0.3]

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.tensor(values, dtype=torch.float64, requires_grad=True)
            loss = _negative_log_likelihood(theta, *terms)
            (gradient,) = torch.autograd.grad(loss, theta)
            return float(loss.detach()), gradient.numpy()

        bounds = [_BOUNDS] * len(_START) + [(-1.0, 0.5)]
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
        self.hyper = dict(zip(_START, np.exp(found.x[:-1]).tolist(), strict=True))
        self.hyper["mean_slope"] = float(found.x[-1])

    def _solve(self, data: MeanEffects, genes: np.ndarray) -> np.ndarray:
        theta = torch.tensor([*np.log([self.hyper[name] for name in _START]), self.hyper["mean_slope"]])
        covariance, residual = _covariance(theta.double(), *self._terms(data, genes))
        factor = torch.linalg.cholesky(covariance)
        return torch.cholesky_solve(residual.unsqueeze(-1), factor).squeeze(-1).numpy()

    def _terms(self, data: MeanEffects, genes: np.ndarray) -> tuple[Tensor, ...]:
        state = self.state
        rows = state["context"]
        x = state["x"][np.ix_(rows, genes)].T
        arrays = (
            state["p"] @ state["p"].T,
            pair_overlap(state["members"], state["members"]),
            state["distance"][np.ix_(rows, rows)],
            x,
            x * np.array([_strength(p) for p in state["p"]]),
            state["amplitude"][genes],
            data.effect[:, genes].T,
            data.variance[:, genes].T,
        )
        return tuple(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)) for array in arrays)


def pair_overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    r"""Inner products of the pairs within conditions, shape (n, m); zero where either has a single member.

    .. math:: \tfrac{1}{4} \sum_{k \ne l} \sum_{m \ne n} (p_k \cdot p'_m)(p_l \cdot p'_n)

    Parameters
    ----------
    first, second
        Vectors of the members, shapes (n, n_members, n_features) and (m, n_members', n_features).
    """
    products = np.einsum("iaf,jbf->ijab", first, second, optimize=True)
    total = products.sum(axis=(2, 3)) ** 2
    same_first = (products.sum(axis=3) ** 2).sum(axis=2)
    same_second = (products.sum(axis=2) ** 2).sum(axis=2)
    return 0.25 * (total - same_first - same_second + (products**2).sum(axis=(2, 3)))


def _strength(p: np.ndarray) -> float:
    """How much of a perturbation there is: the length of its vector, 0 for control."""
    return float(np.linalg.norm(p))


def _context_distance(profiles: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of the contexts, divided by their median."""
    squared = ((profiles[:, None] - profiles[None]) ** 2).sum(axis=-1)
    off_diagonal = squared[np.triu_indices(len(profiles), 1)]
    return squared / (np.median(off_diagonal) or 1.0) if len(off_diagonal) else squared


def _covariance(
    theta: Tensor,
    overlap: Tensor,
    pairs: Tensor,
    distance: Tensor,
    x: Tensor,
    x_strength: Tensor,
    amplitude: Tensor,
    effect: Tensor,
    variance: Tensor,
) -> tuple[Tensor, Tensor]:
    """Covariance (n_genes, n, n) of the observed effects and their residuals (n_genes, n) from the mean."""
    length, common, context, slope, noise, pair = theta[:6].exp()
    shared = common + context * torch.exp(-distance / (2 * length))
    smooth = amplitude[:, None, None] * (overlap * shared + pair * pairs)
    covariance = smooth + overlap * (slope * x[:, :, None] * x[:, None, :])
    covariance = covariance + torch.diag_embed(noise * variance + 1e-6)
    return covariance, effect - theta[6] * x_strength


def _negative_log_likelihood(theta: Tensor, *terms: Tensor) -> Tensor:
    covariance, residual = _covariance(theta, *terms)
    factor = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return (0.5 * z.square().sum(dim=-1) + log_det).mean()
