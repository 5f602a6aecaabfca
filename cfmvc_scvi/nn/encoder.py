"""Encoder: counts and covariates to the posterior of the intrinsic and the technical latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cfmvc_scvi._constants import LOGVAR_BOUNDS
from cfmvc_scvi.nn.blocks import CovariateEmbedding, mlp, side_by_side_linear, zero_init


@dataclass(frozen=True)
class Posterior:
    """Mean and log-variance of both latents, each (n, n_latent) or (n, n_latent_technical)."""

    int_mean: Tensor
    int_logvar: Tensor
    tech_mean: Tensor
    tech_logvar: Tensor


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
        self.covariates = CovariateEmbedding(n_categories)
        self.hidden = mlp(n_input + self.covariates.n_out + n_continuous, n_hidden, n_layers, dropout=dropout)
        self.linear = nn.Linear(n_input, n_latent)
        self.batch_offset = nn.Embedding(n_categories[0], n_latent)
        nn.init.zeros_(self.batch_offset.weight)
        self.int_mean = zero_init(nn.Linear(n_hidden, n_latent))
        self.int_logvar = nn.Linear(n_hidden, n_latent)
        self.tech_mean = nn.Linear(n_hidden, n_latent_technical)
        self.tech_logvar = nn.Linear(n_hidden, n_latent_technical)

    def forward(self, x_lognorm: Tensor, categorical: Tensor, continuous: Tensor | None = None) -> Posterior:
        """Posterior of the cells.

        Parameters
        ----------
        x_lognorm
            log1p of counts per 10,000, shape (n, n_input).
        categorical
            Codes of batch, cell type and further covariates, shape (n, n_covariates), integer.
        continuous
            Continuous covariates, shape (n, n_continuous).
        """
        parts = [self.covariates(categorical)]
        if continuous is not None:
            parts.append(continuous)
        h = self._hidden(x_lognorm, torch.cat(parts, dim=-1))
        linear = self.linear(x_lognorm) - self.batch_offset(categorical[:, 0])
        return Posterior(
            int_mean=linear + self.int_mean(h),
            int_logvar=self.int_logvar(h).clamp(*LOGVAR_BOUNDS),
            tech_mean=self.tech_mean(h),
            tech_logvar=self.tech_logvar(h).clamp(*LOGVAR_BOUNDS),
        )

    def _hidden(self, x_lognorm: Tensor, covariates: Tensor) -> Tensor:
        """Hidden layers of genes and covariates side by side."""
        first, *rest = self.hidden
        h = side_by_side_linear(x_lognorm, covariates, first.weight, first.bias)
        for layer in rest:
            h = layer(h)
        return h
