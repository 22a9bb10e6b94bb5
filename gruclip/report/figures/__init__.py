"""Figures of runs: data frame in, files out.

`explosion` draws Figure 1, `cost` Figure 2, `rates` the learning rates, `piano_roll` a tune; start with `explosion`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gruclip.errors import UserError
from gruclip.report import style
from gruclip.report.figures.cost import figure_2
from gruclip.report.figures.explosion import figure_1
from gruclip.report.figures.rates import figure_lr

FIGURES: dict[str, Callable[[pd.DataFrame, Path, Sequence[str]], list[Path]]] = {
    "1": figure_1,
    "2": figure_2,
    "lr": figure_lr,
}


def figure(which: str, runs: pd.DataFrame, out: Path, formats: Sequence[str] = tuple(style.FORMATS)) -> list[Path]:
    """Figure `which` ("1", "2", "lr") of the frame that `reading.read_runs` makes, written into the folder `out`.

    Returns the files. Raises `UserError` for an unknown figure or format, and where `runs` lacks what it shows.
    """
    if which not in FIGURES:
        raise UserError(f"figure {which}: no such figure; there are {', '.join(FIGURES)}")
    return FIGURES[which](runs.reset_index(drop=True), Path(out), formats)
