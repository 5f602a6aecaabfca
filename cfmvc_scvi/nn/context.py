"""Context of the flow and the adapter from a perturbation to its effect coefficients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cfmvc_scvi.nn.blocks import CovariateEmbedding


class ContextEncoder(nn.Module):
    """Batch, cell type, further covariates and, where there is one, spatial position, as one vector.

    Parameters
    ----------
    n_categories
        Levels of each categorical covariate in the context.
    n_continuous
        Continuous covariates.
    n_spatial
        Spatial coordinates per cell; 0 for data without positions.
    """

    def __init__(
        self,
        n_categories: Sequence[int],
        n_continuous: int = 0,
        n_spatial: int = 0,
        *,
        n_spatial_out: int = 16,
    ) -> None:
        super().__init__()
        self.covariates = CovariateEmbedding(n_categories)
        self.spatial = (
            nn.Sequential(nn.Linear(n_spatial, 32), nn.SiLU(), nn.Linear(32, n_spatial_out)) if n_spatial else None
        )
        self.n_out = self.covariates.n_out + n_continuous + (n_spatial_out if n_spatial else 0)

    def forward(
        self,
        codes: Sequence[Int[Tensor, " n"]],
        continuous: Float[Tensor, "n n_continuous"] | None,
        spatial: Float[Tensor, "n n_spatial"] | None,
    ) -> Float[Tensor, "n n_out"]:
        """Context (n, n_out) of codes (n,) per covariate; ``spatial`` holds standardised coordinates (n, n_spatial)."""
        parts = [self.covariates(codes)]
        if continuous is not None:
            parts.append(continuous)
        if self.spatial is not None:
            parts.append(self.spatial(spatial))
        return torch.cat(parts, dim=-1)


class PerturbationAdapter(nn.Module):
    r"""Effect coefficients :math:`\alpha(p, c)` with :math:`\alpha(0, c) = 0` exactly.

    .. math:: \alpha(p, c) = A \, \phi(G_c \odot \phi(B p)), \qquad G_c = 1 + g_c

    No layer has a bias and :math:`\phi = \tanh` maps 0 to 0, so a zero vector passes every layer as zeros whatever the
    cell type. The cell type enters only as a factor on hidden units. The factors start at one; a
    cell type without perturbed cells gets no gradient and keeps them, the effect common to all types.

    Parameters
    ----------
    n_perturbation
        Length of the perturbation vector p.
    n_labels
        Cell types; 0 leaves the cell type out of the coefficients.
    """

    def __init__(self, n_perturbation: int, n_labels: int, n_basis: int, *, n_hidden: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(n_perturbation, n_hidden, bias=False)
        self.last = nn.Linear(n_hidden, n_basis, bias=False)
        self.gate = nn.Embedding(n_labels, n_hidden) if n_labels else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)

    def forward(self, p: Float[Tensor, "n n_perturbation"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n n_basis"]:
        """Coefficients (n, n_basis) of the perturbation vectors (n, n_perturbation) in cell types (n,)."""
        h = torch.tanh(self.first(p))
        if self.gate is not None:
            h = h * (1.0 + self.gate(labels))
        return self.last(torch.tanh(h))
