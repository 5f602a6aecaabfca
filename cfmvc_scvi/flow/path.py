"""Probability paths between a source and a target point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PathSample:
    """A point on the path and the velocity there.

    Attributes
    ----------
    x_t
        Points at time ``t``, shape (n, d).
    velocity
        Conditional velocity d x_t / dt, shape (n, d).
    t
        Times in [0, 1], shape (n,).
    """

    x_t: Float[Tensor, "n d"]
    velocity: Float[Tensor, "n d"]
    t: Float[Tensor, " n"]


class LinearPath:
    r"""Straight line between paired points, :math:`x_t = (1 - t) x_0 + t x_1`.

    The conditional velocity is :math:`x_1 - x_0` at every time. The regression of that velocity on
    :math:`(x_t, t)` is the marginal velocity field that flow matching learns (Lipman et al., ICLR 2023;
    Tong et al., TMLR 2024).
    """

    def sample(self, x0: Float[Tensor, "n d"], x1: Float[Tensor, "n d"], t: Float[Tensor, " n"]) -> PathSample:
        """Point and velocity at time ``t`` (shape (n,)) of the pairs ``x0``, ``x1`` (shape (n, d))."""
        weight = t.unsqueeze(-1)
        return PathSample(x_t=torch.lerp(x0, x1, weight), velocity=x1 - x0, t=t)
