"""Decoder: both latents to the share of every gene in a cell's library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cfmvc_scvi._types import at_least_float32
from cfmvc_scvi.nn.blocks import mlp


class Decoder(nn.Module):
    r"""Log of the share of every gene in a cell's library.

    .. math:: \log \rho = \operatorname{logsoftmax}(b + W z + f(z) + o_s), \qquad z = z_{int} \oplus z_{tech}

    The map is linear in :math:`z` on the log scale, plus a network :math:`f` that starts at zero: an effect
    learned in one cell type carries over to another one along the linear part. What a batch :math:`s` does to all
    cells alike needs no latent: it is an offset :math:`o_s` per gene, and the offsets sum to zero over the batches.
    With ``panel=True`` one more share with a fixed logit of zero stands for the transcripts outside the panel, so
    that the shares of the measured genes sum to less than one.

    Parameters
    ----------
    n_layers
        Hidden layers of :math:`f`; 0 leaves the linear map alone.
    n_batch
        Batches with an offset; of a single one it is zero.
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
        n_batch: int = 1,
    ) -> None:
        super().__init__()
        n_in = n_latent + n_latent_technical
        self.panel = panel
        self.n_in = n_in
        self.hidden = mlp(n_in, n_hidden, n_layers, dropout=dropout) if n_layers > 0 else None
        self.n_offsets = n_batch if n_batch > 1 else 0
        #: Columns: the latents, whose map is linear, the last hidden layer, then the batches.
        self.output = nn.Linear(n_in + (n_hidden if n_layers > 0 else 0) + self.n_offsets, n_output)
        with torch.no_grad():
            self.output.weight[:, n_in:] = 0.0

    def forward(
        self,
        z_int: Float[Tensor, "*n n_latent"],
        z_tech: Float[Tensor, "*n n_technical"],
        batch: Int[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*n n_output"]:
        """Log share of every gene, shape (n, n_output), float32, in the batches (n,); ``None`` is their average."""
        return self._normalized(F.log_softmax, z_int, z_tech, batch)

    def share(
        self,
        z_int: Float[Tensor, "*n n_latent"],
        z_tech: Float[Tensor, "*n n_technical"],
        batch: Int[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*n n_output"]:
        """Share of every gene, shape (n, n_output), float32."""
        return self._normalized(F.softmax, z_int, z_tech, batch)

    def _normalized(
        self, function: Callable[..., Tensor], z_int: Tensor, z_tech: Tensor, batch: Tensor | None
    ) -> Tensor:
        logits = at_least_float32(self.logits(z_int, z_tech, batch))
        if not self.panel:
            return function(logits, dim=-1)
        rest = logits.new_zeros((*logits.shape[:-1], 1))
        return function(torch.cat([logits, rest], dim=-1), dim=-1)[..., :-1]

    def logits(
        self,
        z_int: Float[Tensor, "*n n_latent"],
        z_tech: Float[Tensor, "*n n_technical"],
        batch: Int[Tensor, "*batch"] | None = None,
    ) -> Float[Tensor, "*n n_output"]:
        """Logits of the shares, shape (n, n_output), in the precision of the matrix products."""
        return self.output(self.features(torch.cat([z_int, z_tech], dim=-1), batch))

    def features(
        self, z: Float[Tensor, "*n n_both"], batch: Int[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*n n_features"]:
        """Input of :attr:`output`, from both latents side by side (n, n_latent + n_latent_technical).

        A batch is one-hot less its mean over the batches, so that what the offsets have in common drops out.
        """
        parts = [z] if self.hidden is None else [z, self.hidden(z)]
        if self.n_offsets:
            if batch is None:
                code = z.new_zeros(self.n_offsets)
            else:
                code = F.one_hot(batch, self.n_offsets).to(z.dtype) - 1.0 / self.n_offsets
            parts.append(code.expand(*z.shape[:-1], -1))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else z

    @property
    def linear_weight(self) -> Tensor:
        """Linear map from the latents to the logits, shape (n_output, n_latent + n_latent_technical)."""
        return self.output.weight[:, : self.n_in]

    @property
    def offset_weight(self) -> Tensor:
        """Offsets of the logits before their mean is taken off, shape (n_output, n_batch); none of a single batch."""
        return self.output.weight[:, self.output.in_features - self.n_offsets :]
