"""Building blocks that the networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cfmvc_scvi._sparse import SparseRows


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


class GeneLinear(nn.Module):
    """Linear map of expression, with one row of weights per gene.

    On the CPU a cell whose genes are mostly zero is a short sum of the rows of the others, weighted by their expression
    (:func:`torch.nn.functional.embedding_bag`), and the gradient by the weights is such a sum over the cells of a gene.
    Where the cells come in shares of the genes, every thread sums those of its share.

    Parameters
    ----------
    n_genes
        Genes.
    n_out
        Outputs.
    """

    #: Up to this share of values above zero training takes the sums, beyond it the dense products.
    SPARSE_BELOW = 0.3

    def __init__(self, n_genes: int, n_out: int) -> None:
        super().__init__()
        bound = n_genes**-0.5
        self.weight = nn.Parameter(torch.empty(n_genes, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor | SparseRows) -> Tensor:
        """Outputs (n, n_out) of the expression (n, n_genes)."""
        if isinstance(x, SparseRows):
            on_cpu = x.by_row.values.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
            # outside training always, so that a cell's outputs do not depend on those beside it
            if on_cpu and (not self.training or x.density <= self.SPARSE_BELOW):
                return _WeightedRows.apply(x, self.weight, self.bias)
            x = x.dense()
        return torch.addmm(self.bias, x, self.weight)


class _WeightedRows(torch.autograd.Function):
    """Product of sparse rows (n, n_columns) with a dense matrix (n_columns, n_out), plus a bias (n_out,)."""

    @staticmethod
    def forward(ctx: Any, x: SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.x = x
        of_shares = x.by_row.bags.weighted_sums(weight.detach())
        return reduce(torch.add, of_shares.view(x.shares, len(x), -1).unbind()) + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.x.by_column.weighted_sums(upstream.contiguous()), upstream.sum(dim=0)


def rows_of(table: nn.Embedding, codes: Tensor) -> Tensor:
    """Rows of an embedding, shape (n, dim), of the codes (n,).

    On the CPU without :func:`torch.nn.functional.embedding`, whose backward pass starts all threads for a few levels.
    """
    return table.weight.index_select(0, codes) if codes.device.type == "cpu" else table(codes)


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

    def forward(self, codes: Sequence[Tensor]) -> Tensor:
        """Embeddings (n, n_out) of the codes, one tensor (n,) per covariate."""
        return torch.cat(
            [rows_of(cast(nn.Embedding, table), code) for table, code in zip(self.tables, codes, strict=True)], dim=-1
        )


class TimeEmbedding(nn.Module):
    r"""Fourier features of time, :math:`(\sin 2\pi f t, \cos 2\pi f t)` for integer and half frequencies, and t."""

    frequencies: Tensor

    def __init__(self, n_frequencies: int = 8) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, n_frequencies + 1).float(), persistent=False)
        self.n_out = 2 * n_frequencies + 1

    def forward(self, t: Tensor) -> Tensor:
        """Features (n, n_out) of the times (n,)."""
        angle = t.unsqueeze(-1) * self.frequencies
        return torch.cat([t.unsqueeze(-1), angle.sin(), angle.cos()], dim=-1)
