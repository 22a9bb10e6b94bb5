"""Small multiples: validation loss and gradient norm of all runs of one setting in one panel, as SVG polylines."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gruclip.errors import UserError
from gruclip.report import style
from gruclip.report.reading import read_epochs
from gruclip.report.rows import STATUSES


@dataclass(frozen=True)
class Panel:
    """The curves of the seeds of one setting: `setting` is its number in the column that `multiples` is given."""

    setting: int
    name: str
    statuses: list[tuple[str, int]]
    colour: str
    losses: list[str]
    norms: list[str]


def multiples(runs: pd.DataFrame, settings: pd.Series, missing: list[str]) -> tuple[list[Panel], str, str]:
    """A panel for each of the `settings` (a number for each run) of which there are curves, all on the same two axes,
    and what these span. Why there are no curves of a run goes into `missing`.

    The axes span what successful runs do after a quarter of their epochs, else what is there: in the steep beginning
    and in what fails no two settings can be told apart.
    """
    curves: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for place, folder in runs["folder"].items():
        try:
            epochs = read_epochs(folder)
        except UserError as error:
            missing.append(f"curves: {error}")
            continue
        curves[place] = np.array(epochs["valid_loss"]), np.array(epochs["grad_norm_max"])
    good = [place for place in curves if runs["status"][place] == "success"] or list(curves)
    ranges = [_range([curves[place][which] for place in good]) for which in (0, 1)]
    panels = []
    for number, mine in runs[runs.index.isin(curves)].groupby(settings, sort=False):
        losses, norms = ([_points(curves[place][which], ranges[which]) for place in mine.index] for which in (0, 1))
        counts = mine["status"].value_counts()
        panels.append(
            Panel(
                setting=int(number),
                name=re.sub(r",seed=\d+", "", Path(str(mine["folder"].iloc[0])).name),
                statuses=[(status, int(counts[status])) for status in STATUSES if status in counts],
                colour=style.COLOURS[mine["optimizer.name"].iloc[0]],
                losses=losses,
                norms=norms,
            )
        )
    return panels, "{:.3g} to {:.3g} nats".format(*ranges[0]), "{:.3g} to {:.3g}".format(*ranges[1])


def _range(curves: Sequence[np.ndarray]) -> tuple[float, float]:
    """What holds all but the largest hundredth of the positive values after the first quarter of the curves."""
    values = np.concatenate([*(curve[len(curve) // 4 :] for curve in curves), np.ones(0)])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return 1.0, 10.0
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    return low, max(high, 1.01 * low)


def _points(values: np.ndarray, limits: tuple[float, float]) -> str:
    """A curve in a box of 100 by 40, logarithmic; infinity at the upper edge, what was not measured left out."""
    low, high = (math.log(limit) for limit in limits)
    points = []
    for place, one in enumerate(values):
        if math.isnan(one) and place == 0:
            continue  # before training there is no gradient
        shown = high if not one > 0 or math.isinf(one) else min(max(math.log(one), low), high)
        points.append(f"{100 * place / max(len(values) - 1, 1):.1f},{39 - 38 * (shown - low) / (high - low):.1f}")
    return " ".join(points)
