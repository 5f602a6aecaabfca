"""Metrics of several fits as one history."""

from __future__ import annotations

from typing import cast

import pandas as pd


def merge_histories(
    earlier: dict[str, pd.DataFrame] | None, later: dict[str, pd.DataFrame] | None
) -> dict[str, pd.DataFrame]:
    """Metrics of two fits; one that both logged continues its index."""
    merged = dict(earlier or {})
    for key, frame in (later or {}).items():
        if key in merged:
            frame = frame.set_axis(range(len(merged[key]), len(merged[key]) + len(frame)))
            name = cast("str | None", merged[key].index.name)
            frame = pd.concat([merged[key], frame]).rename_axis(name)
        merged[key] = frame
    return merged
