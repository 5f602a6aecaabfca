"""Solvers: order of convergence, tolerance, reversibility and what they refuse."""

import math

import numpy as np
import pytest
import torch

from cfmvc_scvi.flow import RK4, Adaptive, Euler, Midpoint, get_solver

FIXED = {"euler": (Euler, 0.9), "midpoint": (Midpoint, 1.9), "rk4": (RK4, 3.8)}
STEPS = (20, 40, 80, 160)


def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
    """Nonlinear in z and dependent on t: z' = z^2 cos(t), so z(t) = z0 / (1 - z0 sin t)."""
    return z.square() * math.cos(t)


def solution(z0: torch.Tensor, t: float) -> torch.Tensor:
    return z0 / (1.0 - z0 * math.sin(t))


def start() -> torch.Tensor:
    return torch.tensor([[0.3, -0.8], [0.6, 0.1], [-1.5, 0.5]], dtype=torch.float64)


def error(solver) -> float:
    return float((solver.integrate(velocity, start()) - solution(start(), 1.0)).abs().max())


def observed_order(method: type) -> tuple[float, list[float]]:
    """Slope of log error against log step width."""
    errors = [error(method(n)) for n in STEPS]
    return -float(np.polyfit(np.log(STEPS), np.log(errors), 1)[0]), errors


@pytest.mark.parametrize("name", FIXED)
def test_global_error_falls_with_the_order(name):
    method, least = FIXED[name]
    order, errors = observed_order(method)
    print(f"{name}: observed order {order:.3f}, errors {[f'{e:.2e}' for e in errors]}")
    assert order >= least, f"order {order:.3f}, errors {errors}"
    assert order < method.order + 1.0, "the test field is too easy to tell the orders apart"


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
def test_adaptive_meets_its_tolerance(tolerance):
    """The tolerance is on the root mean square of a local error, which this field then stretches fourfold."""
    reached = error(Adaptive(rtol=tolerance, atol=tolerance))
    print(f"adaptive at {tolerance:.0e}: error {reached:.2e}")
    assert reached < 25 * tolerance, f"error {reached:.2e} at tolerance {tolerance:.0e}"


def test_adaptive_error_falls_with_the_tolerance():
    assert error(Adaptive(rtol=1e-8, atol=1e-8)) < 1e-2 * error(Adaptive(rtol=1e-3, atol=1e-3))


@pytest.mark.parametrize("solver", [Euler(50), Midpoint(50), RK4(50), Adaptive()], ids=lambda s: type(s).__name__)
def test_there_and_back_returns_the_input(solver):
    forward = error(solver)
    there = solver.integrate(velocity, start(), 0.0, 1.0)
    back = solver.integrate(velocity, there, 1.0, 0.0)
    assert not torch.allclose(there, start(), atol=1e-2)
    distance = float((back - start()).abs().max())
    assert distance <= 10 * forward, f"round trip {distance:.2e}, error of one way {forward:.2e}"


@pytest.mark.parametrize("name", [*FIXED, "adaptive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_input_are_kept(name, dtype):
    z = start().to(dtype)
    copy = z.clone()
    out = get_solver(name).integrate(velocity, z)
    assert out.shape == z.shape
    assert out.dtype == dtype
    assert torch.equal(z, copy)


@pytest.mark.parametrize("name", FIXED)
def test_cells_do_not_see_each_other(name):
    """A fixed-step solver gives a cell the same result alone and in company."""
    together = get_solver(name).integrate(velocity, start())
    alone = torch.cat([get_solver(name).integrate(velocity, row[None]) for row in start()])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*FIXED, "adaptive"])
def test_velocity_that_is_not_finite_raises(name, bad):
    def broken(z: torch.Tensor, t: float) -> torch.Tensor:
        out = -z
        if t > 0.45:
            out[1] = bad
        return out

    with pytest.raises(FloatingPointError, match=r"t=0\.\d{3} .*1 of 3 cells"):
        get_solver(name).integrate(broken, torch.ones(3, 2))


@pytest.mark.parametrize("name", [*FIXED, "adaptive"])
def test_start_that_is_not_finite_raises(name):
    z = torch.ones(4, 2)
    z[2:] = math.nan
    with pytest.raises(FloatingPointError, match="2 of 4 cells"):
        get_solver(name).integrate(lambda z, t: -z, z)


@pytest.mark.parametrize("n_steps", [0, -3])
@pytest.mark.parametrize("name", FIXED)
def test_too_few_steps_are_refused(name, n_steps):
    with pytest.raises(ValueError, match=f"`n_steps` is {n_steps}; .*at least 1"):
        get_solver(name, n_steps)


def test_unknown_solver_names_the_choices():
    with pytest.raises(ValueError, match=r"'heun'.*'adaptive', 'euler', 'midpoint', 'rk4'"):
        get_solver("heun")


def test_adaptive_refuses_a_number_of_steps():
    with pytest.raises(ValueError, match="leave `n_steps` at None"):
        get_solver("adaptive", 10)


def test_get_solver_passes_the_number_of_steps():
    assert get_solver("rk4", 7).n_steps == 7
    assert isinstance(get_solver("rk4"), RK4)
