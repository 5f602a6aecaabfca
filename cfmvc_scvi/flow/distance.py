"""Differentiable distances between two samples, for training; the reported metrics are in ``metrics``."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def energy_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    r"""Energy distance :math:`2 E\lVert X-Y \rVert - E\lVert X-X' \rVert - E\lVert Y-Y' \rVert`, Euclidean norm.

    U-statistic: self pairs are left out, so the expectation is 0 for two samples of one distribution
    (Szekely and Rizzo, 2013).

    Parameters
    ----------
    x, y
        Samples, shapes (n, d) and (m, d), at least two points each.

    Returns
    -------
    Scalar with gradients to both samples.
    """
    if len(x) < 2 or len(y) < 2:
        raise ValueError(f"The energy distance needs two points in each sample, not {len(x)} and {len(y)}.")
    return 2.0 * torch.cdist(x, y).mean() - _mean_within(x) - _mean_within(y)


def _mean_within(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    return 2.0 * torch.pdist(x).sum() / (len(x) * (len(x) - 1))
