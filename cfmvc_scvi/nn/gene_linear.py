"""Speed device of stage 1: the first layer as sums over the genes that a cell expresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cfmvc_scvi._sparse import SparseRows


class GeneLinear(nn.Module):
    """Linear map of expression, with one row of weights per gene.

    On the CPU a cell whose genes are mostly zero is a short sum of the rows of the others, weighted by their expression
    (:func:`torch.nn.functional.embedding_bag`), and the gradient by the weights is such a sum over the cells of a gene.

    Parameters
    ----------
    n_genes
        Genes.
    n_out
        Outputs.
    """

    #: Up to this share of values above zero training takes the sums, beyond it the dense products.
    SPARSE_BELOW = 0.12

    def __init__(self, n_genes: int, n_out: int) -> None:
        super().__init__()
        bound = n_genes**-0.5
        self.weight = nn.Parameter(torch.empty(n_genes, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor | SparseRows) -> Tensor:
        """Outputs (n, n_out) of the expression (n, n_genes)."""
        if isinstance(x, SparseRows):
            on_cpu = x.values.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
            # outside training always, so that a cell's outputs do not depend on those beside it
            if on_cpu and (not self.training or x.density <= self.SPARSE_BELOW):
                return _SparseLinear.apply(x, self.weight, self.bias)
            x = x.dense()
        return torch.addmm(self.bias, x, self.weight)


class _SparseLinear(torch.autograd.Function):
    """``x @ weight + bias`` of sparse rows x (n, n_genes), which need no gradient.

    With G the gradient by the output, (n, n_out), that by the weight is ``x.T @ G``: again a product of sparse rows,
    those of the transposed matrix, a gene after the other.
    """

    @staticmethod
    def forward(ctx: Any, x: SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.x = x
        return x.product(weight.detach()) + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, ctx.x.transposed.product(upstream.contiguous()), upstream.sum(dim=0)
