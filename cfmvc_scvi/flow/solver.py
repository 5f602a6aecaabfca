"""Integrators of dz/dt = v(z, t): methods with fixed steps, and torchdiffeq's adaptive ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, cast

import torch
from jaxtyping import Float
from torch import Tensor

from cfmvc_scvi._messages import unknown_choice

#: A velocity field: points (n, d) and a scalar time to velocities (n, d).
Velocity = Callable[[Tensor, float], Tensor]


class Solver(ABC):
    """Integrates a velocity field from ``t0`` to ``t1``, in either direction."""

    #: Order of the global error in the step width; ``None`` where the step adapts to a tolerance.
    order: int | None

    @property
    def key(self) -> tuple[str, int | None]:
        """What identifies the method and its steps."""
        return type(self).__name__, getattr(self, "n_steps", None)

    @abstractmethod
    def integrate(
        self, velocity: Velocity, z: Float[Tensor, "n d"], t0: float = 0.0, t1: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """Solution at ``t1`` of the points ``z`` (n, d) at ``t0``.

        Raises
        ------
        FloatingPointError
            When the velocity or the solution is not finite; the message says at which time and for how many
            cells. Nothing is masked or replaced.
        """


class FixedStepSolver(Solver):
    """Base of the explicit methods with ``n_steps`` equal steps."""

    def __init__(self, n_steps: int = 10) -> None:
        if n_steps < 1:
            raise ValueError(f"`n_steps` is {n_steps}; a solver needs at least 1 step.")
        self.n_steps = n_steps

    def integrate(
        self, velocity: Velocity, z: Float[Tensor, "n d"], t0: float = 0.0, t1: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """See :meth:`Solver.integrate`."""
        width = (t1 - t0) / self.n_steps
        earlier: list[Tensor] = []
        for step in range(self.n_steps):
            t = t0 + step * width
            increment = self.increment(velocity, z, t, width, earlier)
            earlier = [increment, *earlier[:1]]
            z = torch.add(z, increment, alpha=width)
            check_finite(z, t + width, f"step {step + 1} of {self.n_steps}")
        return z

    @abstractmethod
    def increment(
        self,
        velocity: Velocity,
        z: Float[Tensor, "n d"],
        t: float,
        width: float,
        earlier: Sequence[Float[Tensor, "n d"]] = (),
    ) -> Float[Tensor, "n d"]:
        """Average velocity of one step of ``width`` from ``(z, t)``; ``earlier``: of the two before, last first."""


class Euler(FixedStepSolver):
    """First order: the velocity at the start of the step."""

    order = 1

    def increment(
        self,
        velocity: Velocity,
        z: Float[Tensor, "n d"],
        t: float,
        width: float,
        earlier: Sequence[Float[Tensor, "n d"]] = (),
    ) -> Float[Tensor, "n d"]:
        """See :meth:`FixedStepSolver.increment`."""
        return velocity(z, t)


class Midpoint(FixedStepSolver):
    r"""Second order: the velocity in the middle of the step.

    The point in the middle is extrapolated from the velocities :math:`f` of the two steps before, in a line to the
    middle of the half step, :math:`z_{i + 1/2} = z_i + \frac{h}{2} \left( \frac{7}{4} f_{i - 1} - \frac{3}{4} f_{i - 2}
    \right)`, so that a step takes one evaluation of the field; only the first one takes two.
    """

    order = 2

    def increment(
        self,
        velocity: Velocity,
        z: Float[Tensor, "n d"],
        t: float,
        width: float,
        earlier: Sequence[Float[Tensor, "n d"]] = (),
    ) -> Float[Tensor, "n d"]:
        """See :meth:`FixedStepSolver.increment`."""
        match len(earlier):
            case 0:
                slope = velocity(z, t)
            case 1:
                slope = earlier[0]
            case _:
                slope = torch.lerp(earlier[1], earlier[0], 1.75)
        return velocity(torch.add(z, slope, alpha=0.5 * width), t + 0.5 * width)


class RK4(FixedStepSolver):
    """Fourth order: the classical Runge-Kutta method."""

    order = 4

    def increment(
        self,
        velocity: Velocity,
        z: Float[Tensor, "n d"],
        t: float,
        width: float,
        earlier: Sequence[Float[Tensor, "n d"]] = (),
    ) -> Float[Tensor, "n d"]:
        """See :meth:`FixedStepSolver.increment`."""
        k1 = velocity(z, t)
        k2 = velocity(z + 0.5 * width * k1, t + 0.5 * width)
        k3 = velocity(z + 0.5 * width * k2, t + 0.5 * width)
        k4 = velocity(z + width * k3, t + width)
        return (k1 + 2.0 * k2 + 2.0 * k3 + k4) / 6.0


class Adaptive(Solver):
    """Dormand-Prince 5(4) of torchdiffeq with error control.

    Each cell is integrated on its own step sequence only if it is alone in the call: torchdiffeq controls
    the error of the whole batch, so results agree across batch sizes to the tolerance, not to the bit.
    """

    order = None

    def __init__(self, n_steps: int | None = None, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
        if n_steps is not None:
            raise ValueError("The adaptive solver chooses its own steps: leave `n_steps` at None.")
        self.rtol = rtol
        self.atol = atol

    def integrate(
        self, velocity: Velocity, z: Float[Tensor, "n d"], t0: float = 0.0, t1: float = 1.0
    ) -> Float[Tensor, "n d"]:
        """See :meth:`Solver.integrate`."""
        from torchdiffeq import odeint

        def checked(t: Tensor, y: Tensor) -> Tensor:
            out = velocity(y, float(t))
            check_finite(out, float(t), "a velocity in the adaptive solver")
            return out

        times = torch.tensor([t0, t1], dtype=z.dtype, device=z.device)
        path = odeint(checked, z, times, rtol=self.rtol, atol=self.atol, method="dopri5")
        end = cast(Tensor, path)[-1]  # a tuple of tensors for a tuple of points alone
        check_finite(end, t1, "the adaptive solver")
        return end


def check_finite(z: Tensor, t: float, where: str) -> None:
    """Raise when any coordinate of ``z`` is not finite."""
    finite = torch.isfinite(z)
    if bool(finite.all()):
        return
    n_bad = int((~finite).any(dim=-1).sum())
    raise FloatingPointError(
        f"The flow left the finite numbers at t={t:.3f} ({where}): {n_bad} of {len(z)} cells. "
        "The usual cause is a flow that diverged in training: train it again with a lower learning rate, "
        "or integrate with more steps."
    )


SOLVERS: Final[dict[str, Callable[..., Solver]]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "rk4": RK4,
    "adaptive": Adaptive,
}


def get_solver(name: str, n_steps: int | None = None) -> Solver:
    """Solver of that name: ``"euler"``, ``"midpoint"``, ``"rk4"`` or ``"adaptive"``."""
    if name not in SOLVERS:
        raise ValueError(unknown_choice("solver", name, sorted(SOLVERS)))
    return SOLVERS[name]() if n_steps is None else SOLVERS[name](n_steps)
