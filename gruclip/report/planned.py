"""Whether runs that are still to be trained could make a table or figure: what could not is refused before them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from gruclip.config import RunConfig
from gruclip.report.figures.cost import comparable
from gruclip.report.figures.explosion import compared, no_radius
from gruclip.report.rows import SUMMARY, frame, row
from gruclip.report.sections import rate_sweeps
from gruclip.report.tables import of_music, of_words


def check_planned(runs: Sequence[RunConfig], tables: Sequence[str], figures: Sequence[str]) -> None:
    """Raise `UserError`, as the table or figure itself would of the trained runs, by their settings alone."""
    planned = frame(
        row(run, SUMMARY, folder=Path(), identity="", data_sha256=f"{run.dataset.name} {run.dataset.root}")
        for run in runs
    )
    for check in (*(_OF_TABLES.get(name) for name in tables), *(_OF_FIGURES.get(name) for name in figures)):
        if check is not None:
            check(planned)


def _of_figure_1(runs: pd.DataFrame) -> None:
    shown = pd.concat([section.runs for section in compared(runs, runs["experiment"].iloc[0])])
    if bool((shown["max_steps"] < shown["trainer.radius_every"]).all()):
        raise no_radius(shown.iloc[0])


_OF_TABLES: dict[str, Callable[[pd.DataFrame], object]] = {"1": of_words, "2": of_music, "lr": rate_sweeps}
_OF_FIGURES: dict[str, Callable[[pd.DataFrame], object]] = {"1": _of_figure_1, "2": comparable, "lr": rate_sweeps}
