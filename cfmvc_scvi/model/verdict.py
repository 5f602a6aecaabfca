"""Verdict on a prediction: what all scores together say against the simple baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from cfmvc_scvi.metrics import METRICS

#: Rows of a table of scores that are no baselines.
_CEILING = "split-half ceiling"
#: Intervals that hold this much less than they should are said to be too narrow.
_TOLERANCE = 0.1
#: Scores nearer than this share of their size count for neither side.
_TIE = 1e-3


@dataclass(frozen=True)
class Verdict:
    """What the scores of one condition say.

    Attributes
    ----------
    level
        ``"ahead"``: better than every baseline by most metrics, and behind none by any error. ``"mixed"``: better than
        every baseline by most metrics, behind one by some. ``"behind"``: some baseline is better by at least as many
        metrics.
    wins, losses
        Metrics by which the prediction is better and worse, by baseline.
    worse_by
        Names of the metrics by which it is worse, by baseline.
    coverage
        Share of genes in the 95 % intervals; NaN where there are none.
    """

    level: Literal["ahead", "mixed", "behind"]
    wins: dict[str, int]
    losses: dict[str, int]
    worse_by: dict[str, list[str]]
    coverage: float = float("nan")

    @property
    def too_narrow(self) -> bool:
        """Whether the 95 % intervals hold fewer than 85 % of the genes."""
        return bool(self.coverage < 0.95 - _TOLERANCE)

    def text(self) -> str:
        """The verdict in one or two sentences."""
        told = {
            "ahead": "Better than every simple baseline.",
            "mixed": "Better than the simple baselines by most scores, but not by all.",
            "behind": "Do not rely on it: a simple baseline does as well or better.",
        }[self.level]
        parts = [told]
        for name, metrics in self.worse_by.items():
            if metrics:
                n = self.wins[name] + self.losses[name]
                parts.append(f"{name} is better by {len(metrics)} of {n} scores ({', '.join(metrics)}).")
        if self.too_narrow:
            parts.append(f"The 95 % intervals hold {self.coverage:.0%} of the genes: they are too narrow here.")
        return " ".join(parts)


def judge(table: pd.DataFrame, prediction: str, coverage: float = float("nan")) -> Verdict:
    """Verdict from a table of :func:`cfmvc_scvi.metrics.evaluate`.

    Every metric counts once, in its own direction; ratios whose right value is 1 by their distance from it. Scores
    that are undefined, or equal to a thousandth, count for neither side.

    Parameters
    ----------
    table
        Scores, with the predictions and baselines as rows.
    prediction
        Row that is judged; the others but for the ceiling are the baselines.
    coverage
        Share of genes in their 95 % intervals.
    """
    raw = table["raw"]
    baselines = [name for name in raw.index if name not in (prediction, _CEILING)]
    wins, losses, worse_by = {}, {}, {}
    for name in baselines:
        ahead, behind = [], []
        for column in raw.columns:
            metric = METRICS[column]
            ours, theirs = metric.comparable(raw.loc[[prediction, name], column].to_numpy(dtype=float))
            gain = metric.sign * (ours - theirs)
            if np.isfinite(gain) and abs(gain) > _TIE * max(abs(ours), abs(theirs)):
                (ahead if gain > 0 else behind).append(column)
        wins[name], losses[name], worse_by[name] = len(ahead), len(behind), behind
    errors = [column for names in worse_by.values() for column in names if METRICS[column].better == "lower"]
    if any(losses[name] and losses[name] >= wins[name] for name in baselines):
        level: Literal["ahead", "mixed", "behind"] = "behind"
    else:
        level = "mixed" if errors else "ahead"
    return Verdict(level, wins, losses, worse_by, coverage)
