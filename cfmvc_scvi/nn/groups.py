r"""Speed device of stage 2: cells that share their effect coefficients are mapped together.

The effect of a perturbation is linear in the last hidden layer h of the velocity field's trunk,

.. math:: \sum_k \alpha_k (u_k + c_k + B_k h) = \Big( \sum_k \alpha_k B_k \Big) h + \sum_k \alpha_k (u_k + c_k) ,

and a batch has few different :math:`\alpha`. The plain way (:meth:`~cfmvc_scvi.nn.FlowField.forward`) multiplies every
h by all K maps, n · K · n_latent · n_hidden products, and sums then. Here the maps are summed first, once a group, and
every h meets one map: (n_groups · K + n_groups · width) · n_latent · n_hidden products, where width is the size of the
largest group, because a batched product takes groups of one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """Cells of a batch, by what they share.

    Attributes
    ----------
    group
        Group of every cell, shape (n,), integer.
    sizes
        Cells of every group, shape (n_groups,), none of them 0.
    width
        The largest of them.
    """

    group: Tensor
    sizes: Tensor
    width: int

    @classmethod
    def of(cls, codes: Tensor) -> Groups:
        """Groups of the cells with equal codes (n,)."""
        _, group, sizes = torch.unique(codes, return_inverse=True, return_counts=True)
        return cls(group, sizes, int(sizes.max()))

    def worth_it(self, n_basis: int) -> bool:
        """Whether the products of the effects are at most half of those of the plain way."""
        return 2 * len(self.sizes) * (self.width + n_basis) <= len(self.group) * n_basis

    @property
    def members(self) -> Tensor:
        """One cell of every group, shape (n_groups,)."""
        cells = torch.arange(len(self.group), device=self.group.device)
        return torch.empty_like(self.sizes).scatter_(0, self.group, cells)

    def affine(self, h: Tensor, maps: Tensor, offsets: Tensor) -> Tensor:
        """Every cell's ``h`` (n, n_in) by the map (n_groups, n_out, n_in) and offset (n_groups, n_out) of its group.

        The cells are laid out group after group, each group filled up with zeros to the width; the place of a cell is
        the start of its group, plus how many of its group come before it.
        """
        order = torch.argsort(self.group)
        first = self.sizes.cumsum(dim=0) - self.sizes  # of every group, in this order
        place = torch.empty_like(order)
        place[order] = torch.arange(len(h), device=h.device) + (self.group * self.width - first[self.group])[order]
        padded = h.new_zeros(len(maps) * self.width, h.shape[-1]).index_copy(0, place, h)
        padded = padded.view(len(maps), self.width, -1)
        out = torch.baddbmm(offsets.unsqueeze(1), padded, maps.transpose(1, 2))
        return out.view(-1, out.shape[-1]).index_select(0, place)
