"""Decoder: both latents to the share of every gene in a cell's library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfmvc_scvi._types import at_least_float32
from cfmvc_scvi.nn.blocks import mlp


class Decoder(nn.Module):
    r"""Log of the share of every gene in a cell's library.

    .. math:: \log \rho = \operatorname{logsoftmax}(b + W z + f(z)), \qquad z = z_{int} \oplus z_{tech}

    The map is linear in :math:`z` on the log scale, plus a network :math:`f` that starts at zero: an effect
    learned in one cell type carries over to another one along the linear part. With ``panel=True`` one more
    share with a fixed logit of zero stands for the transcripts outside the panel, so that the shares of the
    measured genes sum to less than one.

    Parameters
    ----------
    n_layers
        Hidden layers of :math:`f`; 0 leaves the linear map alone.
    """

    def __init__(
        self,
        n_latent: int,
        n_latent_technical: int,
        n_output: int,
        *,
        n_hidden: int = 256,
        n_layers: int = 1,
        dropout: float = 0.0,
        panel: bool = False,
    ) -> None:
        super().__init__()
        n_in = n_latent + n_latent_technical
        self.panel = panel
        self.n_in = n_in
        self.hidden = mlp(n_in, n_hidden, n_layers, dropout=dropout) if n_layers > 0 else None
        #: Columns: the latents, whose map is linear, then the last hidden layer.
        self.output = nn.Linear(n_in + n_hidden if n_layers > 0 else n_in, n_output)
        with torch.no_grad():
            self.output.weight[:, n_in:] = 0.0

    def forward(self, z_int: Tensor, z_tech: Tensor) -> Tensor:
        """Log share of every gene, shape (n, n_output), float32."""
        return self._normalized(F.log_softmax, z_int, z_tech)

    def share(self, z_int: Tensor, z_tech: Tensor) -> Tensor:
        """Share of every gene, shape (n, n_output), float32."""
        return self._normalized(F.softmax, z_int, z_tech)

    def _normalized(self, function: Callable[..., Tensor], z_int: Tensor, z_tech: Tensor) -> Tensor:
        logits = at_least_float32(self.logits(z_int, z_tech))
        if not self.panel:
            return function(logits, dim=-1)
        rest = logits.new_zeros((*logits.shape[:-1], 1))
        return function(torch.cat([logits, rest], dim=-1), dim=-1)[..., :-1]

    def logits(self, z_int: Tensor, z_tech: Tensor) -> Tensor:
        """Logits of the shares, shape (n, n_output), in the precision of the matrix products."""
        return self.output(self.features(torch.cat([z_int, z_tech], dim=-1)))

    def features(self, z: Tensor) -> Tensor:
        """Input of :attr:`output`, from both latents side by side (n, n_latent + n_latent_technical)."""
        return z if self.hidden is None else torch.cat([z, self.hidden(z)], dim=-1)

    @property
    def linear_weight(self) -> Tensor:
        """Linear map from the latents to the logits, shape (n_output, n_latent + n_latent_technical)."""
        return self.output.weight[:, : self.n_in]
