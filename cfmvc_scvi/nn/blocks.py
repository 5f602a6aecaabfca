"""Building blocks that the networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def mlp(n_in: int, n_hidden: int, n_layers: int, *, dropout: float = 0.0, norm: bool = True) -> nn.Sequential:
    """Hidden layers of a network: linear, layer norm, SiLU, dropout; ``n_layers`` times."""
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers.append(nn.Linear(n_in if i == 0 else n_hidden, n_hidden))
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


def side_by_side_linear(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Linear map of two inputs side by side, without a copy of them, nor a gradient by one that needs none.

    Parameters
    ----------
    first, second
        Inputs, shape (n, n_first) and (n, n_second).
    weight, bias
        Of the layer, shape (n_out, n_first + n_second) and (n_out,).

    Returns
    -------
    Shape (n, n_out): ``F.linear(torch.cat([first, second], dim=-1), weight, bias)``.
    """
    if first.dtype != weight.dtype or torch.is_autocast_enabled(first.device.type):
        parts = weight.split([first.shape[-1], second.shape[-1]], dim=1)
        return F.linear(first, parts[0], bias) + F.linear(second, parts[1])
    return _SideBySideLinear.apply(first, second, weight, bias)


class _SideBySideLinear(torch.autograd.Function):
    """See :func:`side_by_side_linear`; the gradient by the weights is written in place, each part by its product."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(first, second, weight)
        cut = first.shape[-1]
        return torch.addmm(bias, first, weight[:, :cut].T).addmm_(second, weight[:, cut:].T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        first, second, weight = ctx.saved_tensors
        cut = first.shape[-1]
        by_weight = torch.empty_like(weight)
        torch.mm(upstream.T, first, out=by_weight[:, :cut])
        torch.mm(upstream.T, second, out=by_weight[:, cut:])
        by_first = upstream @ weight[:, :cut] if ctx.needs_input_grad[0] else None
        by_second = upstream @ weight[:, cut:] if ctx.needs_input_grad[1] else None
        return by_first, by_second, by_weight, upstream.sum(dim=0)


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
        self.tables = nn.ModuleList(nn.Embedding(n, dim) for n in n_categories)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.1)
        self.n_out = dim * len(self.tables)

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings (n, n_out) of the codes (n, n_covariates)."""
        if not self.tables:
            return codes.new_zeros((len(codes), 0), dtype=torch.float32)
        return torch.cat([table(codes[:, i]) for i, table in enumerate(self.tables)], dim=-1)


class TimeEmbedding(nn.Module):
    r"""Fourier features of time, :math:`(\sin 2\pi f t, \cos 2\pi f t)` for integer and half frequencies, and t."""

    def __init__(self, n_frequencies: int = 8) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, n_frequencies + 1).float(), persistent=False)
        self.n_out = 2 * n_frequencies + 1

    def forward(self, t: Tensor) -> Tensor:
        """Features (n, n_out) of the times (n,)."""
        angle = t.unsqueeze(-1) * self.frequencies
        return torch.cat([t.unsqueeze(-1), angle.sin(), angle.cos()], dim=-1)
