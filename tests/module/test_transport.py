"""Transport: control comes back, constant fields move every cell alike, times and sources agree."""

from __future__ import annotations

import pytest
import torch

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.flow import get_solver
from cfmvc_scvi.module import CFMVCModule

N, N_GENES, N_BATCH, N_LABELS, N_PERTURBATION = 12, 20, 2, 3, 4
SOLVERS = ("euler", "midpoint", "rk4", "adaptive")


def make(**kwargs) -> CFMVCModule:
    torch.manual_seed(0)
    defaults = {"n_latent": 5, "n_latent_technical": 3, "n_hidden": 16, "n_basis": 4, "n_hidden_flow": 16}
    return CFMVCModule(N_GENES, N_BATCH, N_LABELS, N_PERTURBATION, **(defaults | kwargs))


def randomised(scale: float = 0.1, **kwargs) -> CFMVCModule:
    """A module none of whose weights is at its start."""
    module = make(**kwargs).eval()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=scale)
    module.flow_center.normal_()
    module.flow_scale.fill_(1.7)
    return module


def cells() -> tuple[torch.Tensor, torch.Tensor, FlowContext]:
    """Latents, perturbation vectors and contexts."""
    torch.manual_seed(2)
    codes = torch.stack([torch.randint(0, N_BATCH, (N,)), torch.randint(0, N_LABELS, (N,))], dim=1)
    return torch.randn(N, 5), torch.randn(N, N_PERTURBATION), FlowContext(*codes.T)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("flow_source", ["control", "noise"])
@pytest.mark.parametrize("labels", [False, True])
def test_control_comes_back_to_the_bit(flow_source, solver, labels):
    module = randomised(flow_source=flow_source, labels_in_effect=labels, labels_in_context=labels)
    z, p, context = cells()
    assert torch.equal(module.transport(z, torch.zeros_like(p), context, get_solver(solver)), z)
    assert (module.transport(z, p, context, get_solver(solver)) - z).abs().min(dim=0).values.max() > 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("flow_source", ["control", "noise"])
def test_control_among_perturbed_cells_comes_back_to_the_bit(flow_source, solver):
    module = randomised(0.3, flow_source=flow_source)
    z, p, context = cells()
    p[::2] = 0
    moved = module.transport(z, p, context, get_solver(solver))
    assert torch.equal(moved[::2], z[::2])
    assert not torch.isclose(moved[1::2], z[1::2]).any()


def test_constant_effect_moves_every_cell_by_it():
    """Before training the field is the constant alpha u, so the cell moves by it in the latent's own units."""
    module = make()
    module.flow_scale.fill_(2.5)
    z, p, context = cells()
    step = 2.5 * module.coefficients(p, context.labels) @ module.flow_field.direction
    for solver in SOLVERS:
        torch.testing.assert_close(module.transport(z, p, context, get_solver(solver)), z + step, rtol=1e-4, atol=1e-4)


def test_transport_leaves_no_graph():
    module = randomised()
    z, p, context = cells()
    assert not module.transport(z, p, context, get_solver("euler")).requires_grad


def test_push_forward_and_transport_agree_on_the_source():
    """From the cell itself, the end point of the flow less that of the base flow is what transport adds."""
    module = randomised()
    z, p, context = cells()
    solver, start = get_solver("rk4"), module.standardize(z)
    ends = [module.push_forward(start, v, context, solver) for v in (p, torch.zeros_like(p))]
    torch.testing.assert_close(module.transport(z, p, context, solver), z + ends[0] - ends[1], rtol=1e-4, atol=1e-5)


def test_noise_source_goes_back_to_the_noise_of_the_cell():
    """A cell that the base flow makes from some noise becomes what the perturbed flow makes from it."""
    module = randomised(flow_source="noise")
    noise, p, context = cells()
    solver = get_solver("rk4", 40)
    z, expected = (module.push_forward(noise, v, context, solver) for v in (torch.zeros_like(p), p))
    torch.testing.assert_close(module.transport(z, p, context, solver), expected, rtol=1e-4, atol=1e-4)
    module.flow_source = "control"
    assert not torch.allclose(module.transport(z, p, context, solver), expected, rtol=1e-3, atol=1e-3)


def test_standardisation_round_trip():
    module = randomised()
    z = cells()[0]
    torch.testing.assert_close(module.unstandardize(module.standardize(z)), z)
    assert not torch.allclose(module.standardize(z), z)


# ---- displacement -------------------------------------------------------------------------------------------------


def constant_field() -> CFMVCModule:
    """Before training the field is the constant alpha u, everywhere and at all times."""
    module = make()
    module.flow_scale.fill_(2.5)
    return module


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("flow_source", ["control", "noise"])
@pytest.mark.parametrize("until", [0.3, 1.0])
def test_no_effect_no_displacement(solver, flow_source, until):
    module = randomised(flow_source=flow_source)
    z, _, context = cells()
    base = module.base_flow(z, context, get_solver(solver))
    moved = module.displacement(torch.zeros(N, 4), base, get_solver(solver), until)
    assert not moved.any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_times_of_a_constant_field_add_up(solver):
    module, solver = constant_field(), get_solver(solver)
    z, _, context = cells()
    alpha, base = torch.randn(N, 4), module.base_flow(z, context, solver)
    parts = [module.displacement(alpha, base, solver, until) for until in (0.25, 0.75, 1.0)]
    assert parts[2].abs().min() > 1e-4
    torch.testing.assert_close(parts[0] + parts[1], parts[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts[1], 3 * parts[0], rtol=1e-4, atol=1e-4)


def test_effects_of_a_constant_field_add_up():
    module, solver = constant_field(), get_solver("midpoint", 4)
    z, _, context = cells()
    one, other, base = torch.randn(N, 4), torch.randn(N, 4), module.base_flow(z, context, solver)
    parts = [module.displacement(alpha, base, solver) for alpha in (one, other, one + other)]
    torch.testing.assert_close(parts[0] + parts[1], parts[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts[0], 2.5 * one @ module.flow_field.direction, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("until", [0.0, 0.5, 1.0])
def test_displacement_is_in_units_of_the_latent(until):
    """The same field seen through units twice as large moves cells twice as far."""
    module, solver = constant_field(), get_solver("euler", 3)
    z, p, context = cells()
    once = module.transport(z, p, context, solver, until=until) - z
    module.flow_scale.mul_(2)
    twice = module.transport(z, p, context, solver, until=until) - z
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-5)
    assert once.any() == (until > 0)
