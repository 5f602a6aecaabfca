"""Settings of the optimisers of both plans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


def fused(parameters: Iterable[nn.Parameter], precision: str | int) -> dict[str, Any]:
    """Settings of an optimiser whose step is one kernel, on devices that have it.

    Not in mixed precision, where Lightning refuses to clip the gradients of a fused optimiser.

    Parameters
    ----------
    parameters
        What the optimiser moves.
    precision
        Precision of Lightning's trainer.
    """
    possible = {p.device.type for p in parameters} <= {"cpu", "cuda"} and "16" not in str(precision)
    return {"fused": True} if possible else {}
