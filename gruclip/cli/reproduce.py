"""``gruclip reproduce``: a sweep, then the tables and figures of what it trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gruclip.cli.commands import draw
from gruclip.cli.training import planned_runs, train

STACKED = "hydra/launcher=stacked"


@dataclass(frozen=True)
class Reproduction:
    sweep: str
    experiment: str = "ptb"
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    launcher: tuple[str, ...] = (STACKED,)


REPRODUCTIONS = {
    "table1": Reproduction("table1", tables=("1",)),
    "table2": Reproduction("table2", "nottingham", tables=("2",)),
    "figure1": Reproduction("figure1", figures=("1",)),
    # Times are taken of runs alone, one after another.
    "figure2": Reproduction("figure2", figures=("2",), launcher=()),
    "lr": Reproduction("learning_rate", tables=("lr",), figures=("lr",)),
    "cells": Reproduction("cells", tables=("cells",)),
    "quickstart": Reproduction("quickstart", "demo", tables=("1",), figures=("1", "2")),
}


def reproduce(which: str, overrides: Sequence[str]) -> int:
    """Train the runs of a sweep that are not finished, then print its tables and draw its figures."""
    plan = REPRODUCTIONS[which]
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    arguments = [
        *([] if "experiment" in typed else [f"+experiment={plan.experiment}"]),
        *([] if "hydra/launcher" in typed else plan.launcher),
        f"+sweep={plan.sweep}",
        *overrides,
    ]
    places = dict.fromkeys((run.output_dir, run.experiment) for run in planned_runs(arguments))
    train(["--multirun", *arguments])

    from gruclip.report.collect import read_runs
    from gruclip.report.tables import table

    for output_dir, experiment in places:
        runs = read_runs(Path(output_dir), experiment)
        for name in plan.tables:
            print(f"\n{table(name, runs, 'md')}\n")
        for name in plan.figures:
            draw(name, Path(output_dir), experiment, Path(output_dir) / experiment, ["png", "pdf", "svg"])
    return 0
