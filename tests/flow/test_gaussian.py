"""Learned flows between Gaussians against the closed forms."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.flow import RK4, OTCoupling
from cfmvc_scvi.module import CFMVCModule

pytestmark = pytest.mark.slow

Draw = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Gaussians:
    """x0 ~ N(m0, S0), x1 ~ N(m1, S1), and what is known about the flow between them."""

    m0: np.ndarray
    s0: np.ndarray
    m1: np.ndarray
    s1: np.ndarray

    @property
    def monge(self) -> np.ndarray:
        """Matrix of the optimal transport map."""
        root = np.real(sqrtm(self.s0))
        return np.linalg.inv(root) @ np.real(sqrtm(root @ self.s1 @ root)) @ np.linalg.inv(root)

    def velocity(self, x: np.ndarray, t: np.ndarray, coupling: str) -> np.ndarray:
        """Optimal velocity v*(x, t), shape (n, d)."""
        identity, a = np.eye(len(self.m0)), self.monge
        out = np.empty_like(x)
        for i, (point, time) in enumerate(zip(x, t, strict=True)):
            if coupling == "ot":
                slope = (a - identity) @ np.linalg.inv((1 - time) * identity + time * a)
            else:
                spread = (1 - time) ** 2 * self.s0 + time**2 * self.s1
                slope = (time * self.s1 - (1 - time) * self.s0) @ np.linalg.inv(spread)
            out[i] = self.m1 - self.m0 + slope @ (point - (1 - time) * self.m0 - time * self.m1)
        return out

    def floor(self) -> float:
        """Smallest loss under the independent coupling: mean over t of tr[S0 + S1 - C S_t^-1 C']."""
        times = (np.arange(4000) + 0.5) / 4000
        values = []
        for t in times:
            c = t * self.s1 - (1 - t) * self.s0
            spread = (1 - t) ** 2 * self.s0 + t**2 * self.s1
            values.append(np.trace(self.s0 + self.s1 - c @ np.linalg.inv(spread) @ c.T))
        return float(np.mean(values))

    def independent(self, n: int) -> tuple[Tensor, Tensor]:
        return _normal(self.m0, self.s0, n), _normal(self.m1, self.s1, n)

    def optimal(self, n: int) -> tuple[Tensor, Tensor]:
        """Pairs of the optimal transport map itself."""
        z0 = _normal(self.m0, self.s0, n)
        return z0, _tensor(self.m1) + (z0 - _tensor(self.m0)) @ _tensor(self.monge).T

    def sampled_ot(self, n_pool: int) -> Draw:
        """Pairs that the package's coupling makes of two samples."""
        z0, z1 = self.independent(n_pool)
        z0 = z0[torch.as_tensor(OTCoupling().pair(z0.numpy(), z1.numpy(), np.random.default_rng(0)))]

        def draw(n: int) -> tuple[Tensor, Tensor]:
            rows = torch.randint(n_pool, (n,))
            return z0[rows], z1[rows]

        return draw


PLANE = Gaussians(
    np.array([-1.0, 0.5]),
    np.array([[2.0, 0.6], [0.6, 1.0]]),
    np.array([1.0, 2.0]),
    np.array([[0.5, -0.3], [-0.3, 1.5]]),
)
LINE = Gaussians(np.array([0.0]), np.array([[1.0]]), np.array([2.0]), np.array([[0.25]]))


@dataclass(frozen=True)
class Figures:
    """How a trained field compares with the truth."""

    velocity: float
    loss: float
    mean: float
    covariance: float


def train(draw: Draw, n_latent: int, n_steps: int = 1200, n: int = 512) -> CFMVCModule:
    """A small module whose flow is trained on the pairs, as stage 2 does."""
    torch.manual_seed(0)
    module = CFMVCModule(4, n_latent=n_latent, n_hidden=8, n_hidden_flow=64, n_basis=4)
    optimiser = torch.optim.AdamW([w for part in module.flow_parts for w in part.parameters()], lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
    context, p = condition(n)
    for _ in range(n_steps):
        optimiser.zero_grad()
        module.flow_loss(*draw(n), torch.rand(n), context, p).backward()
        optimiser.step()
        schedule.step()
    return module


@torch.no_grad()
def compare(module: CFMVCModule, truth: Gaussians, draw: Draw, coupling: str, n: int = 8000) -> Figures:
    """Relative L2 error of the velocity on fresh points, the loss there, and the errors of the end points."""
    torch.manual_seed(1)
    context, p = condition(n)
    z0, z1 = draw(n)
    t = torch.rand(n)
    x = torch.lerp(z0, z1, t[:, None])
    learned = module.velocity(x, t, context, p).total.double().numpy()
    best = truth.velocity(x.double().numpy(), t.numpy(), coupling)
    loss = np.mean([float(module.flow_loss(*draw(n), torch.rand(n), context, p)) for _ in range(20)])
    start = truth.independent(40_000)[0]
    end = module.push_forward(start, condition(len(start))[1], condition(len(start))[0], RK4(20)).double().numpy()
    return Figures(
        velocity=float(np.sqrt(((learned - best) ** 2).sum() / (best**2).sum())),
        loss=float(loss),
        mean=float(np.abs(end.mean(axis=0) - truth.m1).max()),
        covariance=float(np.abs(np.cov(end.T) - truth.s1).max()),
    )


def condition(n: int) -> tuple[FlowContext, Tensor]:
    return FlowContext(*torch.zeros(2, n, dtype=torch.long)), torch.ones(n, 1)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def _normal(mean: np.ndarray, covariance: np.ndarray, n: int) -> Tensor:
    return _tensor(mean) + torch.randn(n, len(mean)) @ _tensor(np.linalg.cholesky(covariance)).T


def test_closed_forms_agree_with_each_other():
    """Floors and velocities of the reference itself, so that a slip there does not pass for a truth."""
    assert LINE.floor() == pytest.approx(0.5 * np.pi / 2, rel=1e-4)
    assert PLANE.floor() == pytest.approx(3.221327, rel=1e-4)
    np.testing.assert_allclose(PLANE.monge @ PLANE.s0 @ PLANE.monge.T, PLANE.s1, atol=1e-10)
    torch.manual_seed(0)
    for coupling, draw in (("independent", PLANE.independent), ("ot", PLANE.optimal)):
        z0, z1 = (z.double().numpy() for z in draw(100_000))
        x, velocity = 0.6 * z0 + 0.4 * z1, z1 - z0
        best = PLANE.velocity(x, np.full(len(x), 0.4), coupling)
        design = np.c_[np.ones(len(x)), x]
        np.testing.assert_allclose(design.T @ (velocity - best) / len(x), 0.0, atol=0.05)


@pytest.mark.parametrize("truth", [LINE, PLANE], ids=["1d", "2d"])
def test_independent_coupling(truth):
    """The loss ends at its floor, never below; the velocity is the marginal one."""
    figures = compare(train(truth.independent, len(truth.m0)), truth, truth.independent, "independent")
    floor = truth.floor()
    print(f"independent {len(truth.m0)}-D: floor {floor:.4f}, {figures}")
    assert figures.velocity < 0.04, figures
    assert 0.98 * floor < figures.loss < 1.02 * floor, (floor, figures)
    assert figures.mean < 0.06, figures
    assert figures.covariance < 0.1, figures


@pytest.mark.parametrize("truth", [LINE, PLANE], ids=["1d", "2d"])
def test_optimal_pairs(truth):
    """Pairs on the transport map: straight paths, so nothing of the loss is left."""
    figures = compare(train(truth.optimal, len(truth.m0)), truth, truth.optimal, "ot")
    print(f"optimal {len(truth.m0)}-D: floor 0, {figures}")
    assert figures.velocity < 0.015, figures
    assert figures.loss < 1e-3, figures
    assert figures.mean < 0.03, figures
    assert figures.covariance < 0.06, figures


@pytest.mark.parametrize("truth", [LINE, PLANE], ids=["1d", "2d"])
def test_pairs_of_the_coupling(truth):
    """Pairs that OTCoupling makes of two samples: the optimal velocity, up to the chunks' size."""
    torch.manual_seed(2)
    draw = truth.sampled_ot(8192)
    figures = compare(train(draw, len(truth.m0)), truth, draw, "ot")
    print(f"OTCoupling {len(truth.m0)}-D: {figures}")
    assert figures.velocity < 0.04, figures
    assert figures.loss < 0.05 * truth.floor(), figures
    assert figures.mean < 0.08, figures
    assert figures.covariance < 0.12, figures


def test_couplings_are_told_apart():
    """The thresholds above tell one optimal velocity from the other."""
    torch.manual_seed(0)
    z0, z1 = PLANE.independent(2000)
    t = np.random.default_rng(0).random(2000)
    x = (1 - t[:, None]) * z0.double().numpy() + t[:, None] * z1.double().numpy()
    ot, independent = (PLANE.velocity(x, t, coupling) for coupling in ("ot", "independent"))
    assert np.sqrt(((ot - independent) ** 2).sum() / (ot**2).sum()) > 0.3
