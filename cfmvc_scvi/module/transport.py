"""Where the flow takes latents: the part of the module that integrates the velocity field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.flow import Solver
from cfmvc_scvi.flow.solver import Velocity
from cfmvc_scvi.nn import FlowField


@dataclass(frozen=True)
class BaseFlow:
    """Solution of the flow without a perturbation.

    Attributes
    ----------
    start, end
        Standardised points at t = 0 and t = 1, shape (n, n_latent).
    context
        Context vectors, shape (n, n_context).
    """

    start: Float[Tensor, "n n_latent"]
    end: Float[Tensor, "n n_latent"]
    context: Float[Tensor, "n n_context"]


class TransportMixin:
    """Transport of :class:`~cfmvc_scvi.CFMVCModule`, which has the networks that are named here."""

    flow_field: FlowField
    flow_source: str
    flow_center: Tensor
    flow_scale: Tensor

    if TYPE_CHECKING:

        def encode_context(self, context: FlowContext) -> Tensor: ...  # noqa: D102

        def coefficients(self, p: Tensor, labels: Tensor) -> Tensor: ...  # noqa: D102

    def standardize(self, z: Tensor) -> Tensor:
        """Latents in the flow's units: centred, with one common scale."""
        return (z - self.flow_center) / self.flow_scale

    def unstandardize(self, z: Tensor) -> Tensor:
        """Inverse of :meth:`standardize`."""
        return z * self.flow_scale + self.flow_center

    @torch.no_grad()
    def base_flow(self, z: Float[Tensor, "n n_latent"], context: FlowContext, solver: Solver) -> BaseFlow:
        """Start of the latents ``z`` (n, n_latent) and where the base flow takes it: what all perturbations share.

        The start is the cell itself (``flow_source="control"``) or the noise that the base flow takes to it
        (``"noise"``).
        """
        start = self.standardize(z)
        encoded = self.encode_context(context)
        none = start.new_zeros(len(start), self.flow_field.n_basis)
        if self.flow_source == "noise":
            start = solver.integrate(self._field(encoded, none), start, 1.0, 0.0)
        return BaseFlow(start, solver.integrate(self._field(encoded, none), start), encoded)

    @torch.no_grad()
    def displacement(
        self, alpha: Float[Tensor, "n n_basis"], base: BaseFlow, solver: Solver, until: float = 1.0
    ) -> Float[Tensor, "n n_latent"]:
        r"""How far the perturbation moves latents, :math:`\phi_t(z_0; \alpha) - \phi_t(z_0; 0)`, in latent units.

        :math:`\phi_t` is the solution of :math:`dz/dt = v` at time t from the starting points of ``base``.

        Parameters
        ----------
        alpha
            Effect coefficients, shape (n, n_basis).
        base
            Base flow of the latents.
        solver
            Integrator, as it was for ``base``.
        until
            Time t of the flow, above 0.
        """
        moved = solver.integrate(self._field(base.context, alpha), base.start, 0.0, until)
        still = base.end
        if until != 1.0:
            still = solver.integrate(self._field(base.context, torch.zeros_like(alpha)), base.start, 0.0, until)
        return (moved - still) * self.flow_scale

    @torch.no_grad()
    def transport(
        self,
        z: Float[Tensor, "n n_latent"],
        p: Float[Tensor, "n n_perturbation"],
        context: FlowContext,
        solver: Solver,
        base: BaseFlow | None = None,
        until: float = 1.0,
    ) -> Float[Tensor, "n n_latent"]:
        r"""Latents (n, n_latent) moved to where the perturbation takes them.

        The cell moves by the difference of two solutions from one starting point: with the perturbation and
        without. With :math:`p = 0` both solutions are the same numbers and the latent comes back unchanged, whatever
        the solver. ``base`` is that of :meth:`base_flow` for the same arguments, where it is known already; ``until``
        is the time of the flow, 0 for control, 1 for perturbed.
        """
        if until == 0.0:
            return z
        base = self.base_flow(z, context, solver) if base is None else base
        moved = z + self.displacement(self.coefficients(p, context.labels), base, solver, until)
        is_control = (p == 0).all(dim=-1, keepdim=True)  # the adaptive steps depend on all cells of the call
        return torch.where(is_control, z, moved)

    @torch.no_grad()
    def push_forward(
        self,
        start: Float[Tensor, "n n_latent"],
        p: Float[Tensor, "n n_perturbation"],
        context: FlowContext,
        solver: Solver,
    ) -> Float[Tensor, "n n_latent"]:
        """Latents reached from points of the flow's source distribution (standardised), shape (n, n_latent)."""
        alpha = self.coefficients(p, context.labels)
        end = solver.integrate(self._field(self.encode_context(context), alpha), start)
        return self.unstandardize(end)

    def _field(self, encoded: Tensor, alpha: Tensor) -> Velocity:
        """Velocity field of cells with these context vectors and effect coefficients, in the flow's units."""
        if len(alpha) and bool((alpha == alpha[:1]).all()):
            return self.flow_field.field(encoded, alpha[0])

        def velocity(z: Tensor, t: float) -> Tensor:
            times = torch.full((len(z),), t, dtype=z.dtype, device=z.device)
            return self.flow_field(z, times, encoded, alpha).total

        return velocity
