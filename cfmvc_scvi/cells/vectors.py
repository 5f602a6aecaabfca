"""Perturbation vectors of a batch of cells, from members: no array of conditions by features."""

from __future__ import annotations

import torch
from torch import Tensor

from cfmvc_scvi.registration.members import Members


class ConditionVectors:
    """Vectors of conditions, laid out for those that are asked for.

    Parameters
    ----------
    members
        Perturbations given together, by condition.
    device
        Where the vectors are laid out.
    """

    def __init__(self, members: Members, device: torch.device | str) -> None:
        self._index = torch.from_numpy(members.index).long().clamp(min=0).to(device)
        self._weight = torch.from_numpy(members.weight).to(device)
        self._table = None if members.table is None else torch.from_numpy(members.table).to(device)
        self._n_features = members.n_features

    def rows(self, condition: Tensor) -> Tensor:
        """Vectors of the conditions with these indices (n,), shape (n, n_features), float32."""
        index, weight = self._index.index_select(0, condition), self._weight.index_select(0, condition)
        if self._table is None:
            return weight.new_zeros(len(index), self._n_features).scatter_add_(1, index, weight)
        out = weight.new_zeros(len(index), self._n_features)
        for row, factor in zip(index.unbind(1), weight.unbind(1), strict=True):
            out += factor[:, None] * self._table.index_select(0, row)
        return out
