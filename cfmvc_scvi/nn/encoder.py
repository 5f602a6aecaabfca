"""Encoder: counts and covariates to the posterior of the intrinsic and the technical latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cfmvc_scvi._constants import LOGVAR_BOUNDS
from cfmvc_scvi._sparse import SparseRows
from cfmvc_scvi.nn.blocks import CovariateEmbedding, mlp, zero_init
from cfmvc_scvi.nn.gene_linear import GeneLinear


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance of both latents side by side, intrinsic first; each (n, n_latent + n_latent_technical)."""

    mean: Float[Tensor, "n n_both"]
    logvar: Float[Tensor, "n n_both"]
    n_latent: int

    @property
    def intrinsic(self) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the intrinsic latent, each (n, n_latent)."""
        return self.mean[:, : self.n_latent], self.logvar[:, : self.n_latent]

    @property
    def technical(self) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the technical latent, each (n, n_latent_technical)."""
        return self.mean[:, self.n_latent :], self.logvar[:, self.n_latent :]


class Encoder(nn.Module):
    r"""Posterior of :math:`z_{int}` and :math:`z_{tech}`.

    Input is log1p of counts per 10,000 with embeddings of batch, cell type and further covariates. The mean
    of :math:`z_{int}` is a linear map of the expression, corrected by one offset per batch, plus a network
    that starts at zero: the latent holds the leading components of the data from the first step on and
    departs from them only where the likelihood asks for it.

    Parameters
    ----------
    n_input
        Genes.
    n_categories
        Levels of each categorical covariate; the first is batch, the second cell type.
    n_continuous
        Continuous covariates.
    """

    def __init__(
        self,
        n_input: int,
        n_latent: int,
        n_latent_technical: int,
        n_categories: Sequence[int],
        n_continuous: int = 0,
        *,
        n_hidden: int = 256,
        n_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.covariates = CovariateEmbedding(n_categories)
        #: Columns: the first hidden layer, then the linear map.
        self.genes = GeneLinear(n_input, n_hidden + n_latent)
        self.beside_genes = nn.Linear(self.covariates.n_out + n_continuous, n_hidden, bias=False)
        nn.init.uniform_(self.beside_genes.weight, -(n_input**-0.5), n_input**-0.5)
        self.hidden = mlp(None, n_hidden, n_layers, dropout=dropout)
        self.batch_offset = nn.Embedding(n_categories[0], n_latent)
        nn.init.zeros_(self.batch_offset.weight)
        #: Effect of every batch on the expression, taken off before the genes are weighted.
        self.gene_offset: Tensor
        self.register_buffer("gene_offset", torch.zeros(n_categories[0], n_input))
        #: Rows: means of the intrinsic and of the technical latent, then their log-variances.
        self.heads = nn.Linear(n_hidden, 2 * (n_latent + n_latent_technical))
        zero_init(self.heads, rows=slice(n_latent))

    @property
    def linear_weight(self) -> Tensor:
        """Linear map from the expression to the mean of the intrinsic latent, shape (n_input, n_latent)."""
        return self.genes.weight[:, self.n_hidden :]

    @property
    def linear_bias(self) -> Tensor:
        """Bias of the linear map, shape (n_latent,)."""
        return self.genes.bias[self.n_hidden :]

    def forward(
        self,
        x_lognorm: Float[Tensor, "n n_input"] | SparseRows,
        codes: Sequence[Int[Tensor, " n"]],
        continuous: Float[Tensor, "n n_continuous"] | None = None,
    ) -> Posterior:
        """Posterior of the cells.

        Parameters
        ----------
        x_lognorm
            log1p of counts per 10,000, shape (n, n_input).
        codes
            Codes of batch, cell type and every further covariate, each (n,), integer.
        continuous
            Continuous covariates, shape (n, n_continuous).
        """
        parts = [self.covariates(codes)]
        if continuous is not None:
            parts.append(continuous)
        n_latent = self.batch_offset.embedding_dim
        weighted = self.genes(x_lognorm)
        if len(self.gene_offset) > 1:
            weighted = weighted - (self.gene_offset @ self.genes.weight).index_select(0, codes[0])
        from_genes, linear = weighted.split([self.n_hidden, n_latent], dim=-1)
        h = self.hidden(torch.addmm(from_genes, torch.cat(parts, dim=-1), self.beside_genes.weight.T))
        linear = linear - self.batch_offset(codes[0])
        mean, logvar = self.heads(h).chunk(2, dim=-1)
        mean = mean + F.pad(linear, (0, mean.shape[-1] - n_latent))
        return Posterior(mean, logvar.clamp(*LOGVAR_BOUNDS), n_latent)
