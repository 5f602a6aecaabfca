"""Building blocks that the networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def mlp(n_in: int | None, n_hidden: int, n_layers: int, *, dropout: float = 0.0, norm: bool = True) -> nn.Sequential:
    """Hidden layers of a network: linear, layer norm, SiLU, dropout; ``n_layers`` times.

    Without ``n_in`` the first linear map is not among them.
    """
    layers: list[nn.Module] = []
    for i in range(n_layers):
        width = n_in if i == 0 else n_hidden
        if width is not None:
            layers.append(nn.Linear(width, n_hidden))
        if norm:
            layers.append(nn.LayerNorm(n_hidden))
        layers.append(nn.SiLU())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def zero_init(layer: nn.Linear, rows: slice = slice(None)) -> nn.Linear:
    """Set a linear layer, or some of its outputs, to zero, so that the path it closes starts out silent."""
    with torch.no_grad():
        layer.weight[rows] = 0.0
        if layer.bias is not None:
            layer.bias[rows] = 0.0
    return layer


class CovariateEmbedding(nn.Module):
    """One embedding per categorical covariate, concatenated.

    Parameters
    ----------
    n_categories
        Number of levels of each covariate.
    dim
        Length of each embedding.
    """

    def __init__(self, n_categories: Sequence[int], dim: int = 8) -> None:
        super().__init__()
        tables = [nn.Embedding(n, dim) for n in n_categories]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self.tables = nn.ModuleList(tables)
        self.n_out = dim * len(self.tables)

    def forward(self, codes: Sequence[Int[Tensor, " n"]]) -> Float[Tensor, "n n_out"]:
        """Embeddings (n, n_out) of the codes, one tensor (n,) per covariate."""
        return torch.cat([table(code) for table, code in zip(self.tables, codes, strict=True)], dim=-1)


class TimeEmbedding(nn.Module):
    r"""Fourier features of time, :math:`(\sin 2\pi f t, \cos 2\pi f t)` for integer and half frequencies, and t."""

    frequencies: Tensor

    def __init__(self, n_frequencies: int = 8) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, n_frequencies + 1).float(), persistent=False)
        self.n_out = 2 * n_frequencies + 1

    def forward(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n n_out"]:
        """Features (n, n_out) of the times (n,)."""
        angle = t.unsqueeze(-1) * self.frequencies
        return torch.cat([t.unsqueeze(-1), angle.sin(), angle.cos()], dim=-1)
