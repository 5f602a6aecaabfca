"""The velocity field: a base field and basis fields weighted by the perturbation's coefficients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cfmvc_scvi.nn.blocks import TimeEmbedding, mlp, zero_init
from cfmvc_scvi.nn.groups import Groups


@dataclass(frozen=True)
class VelocityParts:
    """Velocity of the base field and of the perturbation's effect, each (n, n_latent)."""

    base: Float[Tensor, "n n_latent"]
    effect: Float[Tensor, "n n_latent"]

    @property
    def total(self) -> Tensor:
        """Base plus effect."""
        return self.base + self.effect


class FlowField(nn.Module):
    r"""Varying-coefficient velocity field.

    .. math:: v(z, t) = v_{base}(z, t, c) + \sum_{k=1}^{K} \alpha_k \, \left[ u_k + b_k(z, t, c) \right]

    with the coefficients :math:`\alpha` from the perturbation adapter. Every basis field is a constant direction
    :math:`u_k` plus a part that varies over the latent space and starts at zero.

    Parameters
    ----------
    n_latent
        Dimension of the intrinsic latent.
    n_context
        Length of the context vector; 0 for none.
    n_basis
        Basis fields, K.
    """

    def __init__(
        self, n_latent: int, n_context: int, *, n_basis: int = 16, n_hidden: int = 128, n_layers: int = 2
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.n_basis = n_basis
        self.time = TimeEmbedding()
        self.trunk = mlp(n_latent + self.time.n_out + n_context, n_hidden, n_layers, norm=False)
        for layer in self.trunk:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        self.base_head = zero_init(nn.Linear(n_hidden, n_latent))
        self.basis_head = zero_init(nn.Linear(n_hidden, n_basis * n_latent))
        self.direction = nn.Parameter(torch.randn(n_basis, n_latent) / n_basis**0.5)

    def forward(
        self,
        z: Float[Tensor, "n n_latent"],
        t: Float[Tensor, " n"],
        context: Float[Tensor, "n n_context"],
        alpha: Float[Tensor, "n n_basis"],
    ) -> VelocityParts:
        """Velocity of the cells.

        Parameters
        ----------
        z
            Points, shape (n, n_latent).
        t
            Times, shape (n,).
        context
            Context vectors, shape (n, n_context).
        alpha
            Effect coefficients, shape (n, n_basis); zeros give the base field alone.
        """
        h = self._trunk(z, t, context)
        effect = torch.einsum("nk,nkd->nd", alpha, self._basis(h))
        return VelocityParts(base=self.base_head(h), effect=effect)

    def forward_grouped(
        self,
        z: Float[Tensor, "n n_latent"],
        t: Float[Tensor, " n"],
        context: Float[Tensor, "n n_context"],
        alpha: Float[Tensor, "n_groups n_basis"],
        groups: Groups,
    ) -> VelocityParts:
        """The same for cells that share few vectors of coefficients, with less work (:mod:`cfmvc_scvi.nn.groups`).

        Parameters
        ----------
        alpha
            Effect coefficients of the groups, shape (n_groups, n_basis).
        groups
            Groups of the cells.
        """
        h = self._trunk(z, t, context)
        maps = (alpha @ self.basis_head.weight.view(self.n_basis, -1)).view(len(alpha), self.n_latent, -1)
        offsets = alpha @ (self.direction + self.basis_head.bias.view(self.n_basis, -1))
        return VelocityParts(base=self.base_head(h), effect=groups.affine(h, maps, offsets))

    def field(
        self, context: Float[Tensor, "n n_context"], alpha: Float[Tensor, " n_basis"]
    ) -> Callable[[Tensor, float], Tensor]:
        """Velocity of cells that share their coefficients, for an integrator.

        What does not change along the way is worked out once: the part of the context in the first layer, and the
        sum of the basis fields, which with the base field is one linear map of the last hidden layer.

        Parameters
        ----------
        context
            Context vectors of the cells, shape (n, n_context).
        alpha
            Coefficients of all cells, shape (n_basis,); zeros give the base field alone.

        Returns
        -------
        Function of the cells' points (n, n_latent) and of a time, which returns their velocities (n, n_latent).
        """
        first, *rest = self.trunk
        first = cast(nn.Linear, first)
        by_point, by_time, by_context = first.weight.split([self.n_latent, self.time.n_out, context.shape[-1]], dim=1)
        fixed = F.linear(context, by_context, first.bias)
        total = (alpha @ self.basis_head.weight.view(self.n_basis, -1)).view_as(self.base_head.weight)
        total = total + self.base_head.weight
        offset = alpha @ (self.direction + self.basis_head.bias.view(self.n_basis, -1)) + self.base_head.bias

        def velocity(z: Tensor, t: float) -> Tensor:
            features = self.time(torch.tensor(t, dtype=first.weight.dtype, device=z.device))
            h = torch.addmm(fixed + by_time @ features, z, by_point.T)
            for layer in rest:
                h = layer(h)
            return F.linear(h, total, offset)

        return velocity

    def basis(
        self, z: Float[Tensor, "n n_latent"], t: Float[Tensor, " n"], context: Float[Tensor, "n n_context"]
    ) -> Float[Tensor, "n n_basis n_latent"]:
        """Basis fields at the points, shape (n, n_basis, n_latent)."""
        return self._basis(self._trunk(z, t, context))

    def _trunk(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.trunk(torch.cat([z, self.time(t).to(z.dtype), context], dim=-1))

    def _basis(self, h: Tensor) -> Tensor:
        return self.direction + self.basis_head(h).view(-1, self.n_basis, self.n_latent)
