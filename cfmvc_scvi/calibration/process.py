"""Gaussian process over conditions and contexts for the mean effect on every gene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize

from cfmvc_scvi.calibration.blocks import blocks_by_size, pieces, sample_components
from cfmvc_scvi.calibration.covariance import (
    JITTER,
    START,
    Geometry,
    Terms,
    as_theta,
    covariance,
    negative_log_likelihood,
    solve,
)
from cfmvc_scvi.calibration.weight_space import WeightSpace, solve_weight_space
from cfmvc_scvi.registration.members import Members, pair_overlap

_BOUNDS = (-7.0, 4.0)
#: Numbers of one block of covariances held at a time (64 MB of float64).
BLOCK = 8_000_000
#: Populations that hyperparameters and misfit are found from; of more, a sample.
SAMPLE = 300
#: Populations of one component up to which its covariance is laid out in any case.
DENSE = 600


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
        Weighted vectors of the perturbations given together, of n conditions.
    context
        Index of the context, shape (n,).
    freedom
        Degrees of freedom of ``variance``, shape (n, n_genes); ``None`` is infinitely many.
    """

    effect: np.ndarray
    variance: np.ndarray
    members: Members
    context: np.ndarray
    freedom: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> MeanEffects:
        """The populations at these rows."""
        effect, variance, context = (values[rows] for values in (self.effect, self.variance, self.context))
        freedom = None if self.freedom is None else self.freedom[rows]
        members = self.members.take(rows)
        return replace(self, effect=effect, variance=variance, members=members, context=context, freedom=freedom)

    def at_genes(self, genes: np.ndarray) -> MeanEffects:
        """The same populations with these genes alone."""
        freedom = None if self.freedom is None else self.freedom[:, genes]
        return replace(self, effect=self.effect[:, genes], variance=self.variance[:, genes], freedom=freedom)

    def to_saved(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_saved` reads back."""
        own = {name: getattr(self, name) for name in ("effect", "variance", "context", "freedom")}
        return own | {"members": self.members.to_saved()}

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> MeanEffects:
        """Counterpart of :meth:`to_saved`."""
        return cls(**{**saved, "members": Members.from_saved(saved["members"])})

    @cached_property
    def component(self) -> np.ndarray:
        """A number for each group of populations that tell of each other, shape (n,); others are independent."""
        return self.members.components()

    @cached_property
    def amplitudes(self) -> np.ndarray:
        """Mean squared effect, and the same less its sampling variance, not negative, of every gene; (2, n_genes)."""
        shares = self.shares()
        squared = _weighted_sum(shares, self.effect, squared=True)
        return np.stack([squared, np.maximum(squared - _weighted_sum(shares, self.variance), 0.0)])

    def shares(self) -> np.ndarray:
        r"""Share of every population in means over them, shape (n,).

        .. math:: w_i \propto \left(\bar a + \bar v_i\right)^{-2}

        with :math:`\bar v_i` the population's sampling variance and :math:`\bar a` the squared effect less that
        variance, both means over genes, :math:`\bar a` the median of all populations: about the weights of least
        variance for a mean of squares. Populations of few cells, whose squares are noise, count for little; where all
        are large, all count alike.
        """
        noise = self.variance.mean(axis=1, dtype=np.float64)
        squares = np.concatenate([(part.astype(np.float64) ** 2).mean(axis=1) for part in _parts(self.effect)])
        size = max(float(np.median(squares - noise)), 1e-4)
        weights = (size + noise) ** -2.0
        return weights / weights.sum()


def _parts(values: np.ndarray) -> list[np.ndarray]:
    """Some rows at a time, whose copies are small."""
    return np.array_split(values, max(1, values.size // BLOCK))


def _weighted_sum(weights: np.ndarray, values: np.ndarray, *, squared: bool = False) -> np.ndarray:
    """Weighted sum of the rows, or of their squares, shape (n_genes,), float64."""
    out = np.zeros(values.shape[1])
    for some in np.array_split(np.arange(len(values)), max(1, values.size // BLOCK)):
        part = values[some].astype(np.float64)
        out += weights[some] @ (part**2 if squared else part)
    return out


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

    Populations whose vectors have no feature in common, directly or by way of others, are independent: each component
    of populations is solved for itself, so perturbations with unit vectors take time and memory in proportion to their
    number. A component of more than 600 populations with few features, such as many combinations of few members, is
    solved in the space of weights (:mod:`~cfmvc_scvi.calibration.weight_space`), with the same result. Other components
    are solved as a whole, gene by gene, which takes the square of their populations in memory and the cube in time.
    With more than 300 populations the hyperparameters are those of a random sample of about that many, drawn with all
    populations that they share a component with, and of 100 genes.

    Attributes
    ----------
    profiles
        Mean log1p CP10k of the controls of every context, shape (n_contexts, n_genes).
    hyper
        Hyperparameters.
    state
        Arrays of the fit; ``weights`` (n, n_genes) are float32 where there are more than 600 populations.
    members
        Perturbations of the populations.
    """

    profiles: np.ndarray
    hyper: dict[str, float] = field(default_factory=dict)
    state: dict[str, np.ndarray] = field(default_factory=dict)
    members: Members | None = None

    def fit(self, data: MeanEffects, n_hyper_genes: int = 1000) -> EffectGP:
        """Fit the hyperparameters, on the ``n_hyper_genes`` genes with the largest effects, and the weights."""
        amplitude = data.amplitudes[0] + 1e-4
        self.members = data.members.compact()
        self.state = {
            "context": data.context,
            "amplitude": amplitude,
            "x": self.profiles - self.profiles.mean(axis=0),
            "distance": _context_distance(self.profiles),
        }
        genes = np.argsort(-amplitude)[: n_hyper_genes if len(data.effect) <= 60 else 100]
        self._fit_hyper(data.take(sample_components(data.component, SAMPLE)), genes)
        self.state["weights"] = self._solve(data)
        return self

    def predict(self, members: np.ndarray, context: int | np.integer) -> np.ndarray:
        """Mean effect (n_genes,) in a context of the perturbations with these vectors, (n_members, n_features)."""
        assert self.members is not None  # of a fitted process
        state, hyper = self.state, self.hyper
        products = self.members.products(members)
        overlap, pairs = products.sum(axis=(1, 2)), pair_overlap(products)
        rows = np.flatnonzero((overlap != 0) | (pairs != 0))
        overlap, pairs, weights, place = overlap[rows], pairs[rows], state["weights"][rows], state["context"][rows]
        near = np.exp(-state["distance"][context, place] / (2 * hyper["length"]))
        shared = hyper["common"] + hyper["context"] * near
        smooth = state["amplitude"] * ((overlap * shared + hyper["pair"] * pairs) @ weights)
        shape = (len(state["x"]), len(rows))
        by_context = sparse.csr_matrix((overlap, (place, np.arange(len(rows)))), shape=shape) @ weights
        level = hyper["slope"] * state["x"][context] * (by_context * state["x"]).sum(axis=0)
        strength = float(np.linalg.norm(members.sum(axis=0, dtype=np.float64)))
        return smooth + level + hyper["mean_slope"] * state["x"][context] * strength

    def at_genes(self, genes: np.ndarray) -> EffectGP:
        """The fitted process of these genes alone."""
        state = {name: self.state[name] for name in ("context", "distance")}
        state |= {name: self.state[name][..., genes] for name in ("amplitude", "x", "weights")}
        return replace(self, profiles=self.profiles[:, genes], state=state)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers that :meth:`from_dict` reads back."""
        members = None if self.members is None else self.members.to_saved()
        return {"profiles": self.profiles, "hyper": dict(self.hyper), "state": dict(self.state), "members": members}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> EffectGP:
        """Counterpart of :meth:`to_dict`."""
        state = dict(saved["state"])
        if "members" in state:  # vectors laid out, and weights by gene
            members = Members.from_saved(state.pop("members"))
            state = {name: value for name, value in state.items() if name != "p"} | {"weights": state["weights"].T}
        else:
            members = None if saved["members"] is None else Members.from_saved(saved["members"])
        return cls(saved["profiles"], saved["hyper"], state, members)

    def geometry(self, data: MeanEffects, blocks: np.ndarray) -> Geometry:
        """What the covariances of all genes in blocks of populations, rows (n_blocks, size), have in common."""
        (overlap, pairs), context = data.members.block_overlaps(blocks), data.context[blocks]
        return Geometry(
            overlap=torch.from_numpy(overlap),
            pairs=torch.from_numpy(pairs),
            distance=torch.from_numpy(self.state["distance"][context[:, :, None], context[:, None, :]]),
            length=torch.from_numpy(data.members.take(blocks.ravel()).length().reshape(blocks.shape)),
        )

    def terms(self, data: MeanEffects, geometry: Geometry, genes: np.ndarray | slice, blocks: np.ndarray) -> Terms:
        """What the covariance of some genes in these blocks is made of."""
        x = torch.from_numpy(np.ascontiguousarray(self.state["x"][:, genes].T[:, data.context[blocks]]))
        effect, variance = (
            torch.from_numpy(values[:, genes][blocks.ravel()].T.astype(np.float64).reshape(x.shape))
            for values in (data.effect, data.variance)
        )
        amplitude = torch.from_numpy(self.state["amplitude"][genes])
        return Terms(*geometry[:3], x, x * geometry.length, amplitude, effect, variance)

    # ---- fitting ------------------------------------------------------------------------------------------------

    def _fit_hyper(self, data: MeanEffects, genes: np.ndarray) -> None:
        parts = []
        for size in blocks_by_size(data.component):
            for blocks, slices in pieces(size, len(genes), BLOCK):
                geometry = self.geometry(data, blocks)
                for here in slices:
                    share = len(genes[here]) / len(genes)
                    parts.append((share, self.terms(data, geometry, genes[here], blocks)))
        start = np.r_[np.log(list(START.values())), -0.3]

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            total, gradient = 0.0, np.zeros_like(values)
            for share, terms in parts:
                theta = torch.tensor(values, dtype=torch.float64, requires_grad=True)
                loss = share * negative_log_likelihood(theta, *terms)
                total += float(loss.detach())
                gradient += torch.autograd.grad(loss, theta)[0].numpy()
            return total, gradient

        bounds = [_BOUNDS] * len(START) + [(-1.0, 0.5)]
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
        self.hyper = dict(zip(START, np.exp(found.x[:-1]).tolist(), strict=True))
        self.hyper["mean_slope"] = float(found.x[-1])

    def _solve(self, data: MeanEffects) -> np.ndarray:
        """Weights (n, n_genes) of the populations in predictions."""
        n, n_genes = data.effect.shape
        weights = np.empty((n, n_genes), dtype=np.float64 if n <= DENSE else np.float32)
        theta = as_theta(self.hyper)
        for blocks in blocks_by_size(data.component):
            if blocks.shape[1] > DENSE and WeightSpace.serves(data.members, data.context, blocks[0]):
                for rows in blocks:
                    weights[rows] = self._solve_weight_space(data.take(rows))
                continue
            for some, slices in pieces(blocks, n_genes, BLOCK // 4):
                geometry = self.geometry(data, some)
                for genes in slices:
                    matrix, residual = covariance(theta, *self.terms(data, geometry, genes, some))
                    weights[some.ravel(), genes] = solve(matrix, residual).flatten(1).T.numpy()
        return weights

    def _solve_weight_space(self, data: MeanEffects) -> np.ndarray:
        space, state = WeightSpace.of(data.members, data.context), self.state
        length, out = data.members.length(), np.empty(data.effect.shape)
        for gene in range(data.effect.shape[1]):
            x = state["x"][:, gene]
            residual = data.effect[:, gene] - self.hyper["mean_slope"] * x[data.context] * length
            features = space.features(self.hyper, state["distance"], state["amplitude"][gene], x)
            noise = self.hyper["noise"] * data.variance[:, gene].astype(np.float64) + JITTER
            noise += space.alone(self.hyper, state["amplitude"][gene])
            solved = solve_weight_space(features, torch.from_numpy(noise), torch.from_numpy(residual)[:, None])
            out[:, gene] = solved[:, 0].numpy()
        return out


def _context_distance(profiles: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of the contexts, divided by their median."""
    squared = ((profiles[:, None] - profiles[None]) ** 2).sum(axis=-1)
    off_diagonal = squared[np.triu_indices(len(profiles), 1)]
    return squared / (np.median(off_diagonal) or 1.0) if len(off_diagonal) else squared
