"""``gruclip reproduce``: a sweep, then the tables and figures of what it trained."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gruclip.choices import WORD_DATASETS
from gruclip.cli.commands import draw
from gruclip.cli.training import planned_runs, train
from gruclip.config import RunConfig
from gruclip.errors import UserError

OUTPUTS = "outputs"


@dataclass(frozen=True)
class Part:
    """A sweep, and the tables and figures that its runs make."""

    sweep: str
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    launcher: str = "stacked"
    folder: str = ""  #: below output_dir, for runs that must not be among others


# Computation times are taken of runs alone, one after another.
TIMES = Part("figure2", figures=("2",), launcher="basic", folder="figure2")

#: For each name the experiment where none is typed, and what is done.
REPRODUCTIONS = {
    "table1": ("ptb", [Part("table1", tables=("1",))]),
    "table2": ("nottingham", [Part("table2", tables=("2",))]),
    "figure1": ("ptb", [Part("figure1", figures=("1",))]),
    "figure2": ("ptb", [TIMES]),
    "lr": ("ptb", [Part("learning_rate", tables=("lr",), figures=("lr",))]),
    "cells": ("ptb", [Part("cells", tables=("cells",))]),
    "quickstart": ("demo", [Part("quickstart", tables=("1",), figures=("1",)), TIMES]),
}


def reproduce(options: Namespace) -> int:
    """``gruclip reproduce``: train the runs that are not finished, then print their tables and draw their figures."""
    # A sweep that has no entry is somebody's own, and has a table of the kind of its data.
    experiment, parts = REPRODUCTIONS.get(options.which, ("demo", [Part(options.which)]))
    commands = [_arguments(part, experiment, options.overrides) for part in parts]
    # All sweeps are planned before the first is trained, and asked whether they can make what is to be made of them, so
    # that what is wrong is told at once.
    planned = [planned_runs(command) for command in commands]
    from gruclip.report.planned import check_planned
    from gruclip.report.reading import read_runs
    from gruclip.report.tables import table

    if options.which not in REPRODUCTIONS:
        parts = [replace(parts[0], tables=("1" if planned[0][0].dataset.name in WORD_DATASETS else "2",))]
    places = [_by_place(runs) for runs in planned]
    for part, place in zip(parts, places, strict=True):
        for runs in place.values():
            check_planned(runs, part.tables, part.figures)
    for command in commands:
        train(["--multirun", *command])
    for part, place in zip(parts, places, strict=True):
        for output_dir, name in place:
            for table_name in part.tables:
                print(f"\n{table(table_name, read_runs(output_dir, name), 'md')}\n")
            for figure_name in part.figures:
                draw(figure_name, output_dir, name, output_dir / name)
    return 0


def _by_place(runs: Sequence[RunConfig]) -> dict[tuple[Path, str], list[RunConfig]]:
    """The runs by output_dir and experiment: those that a table is of."""
    places: dict[tuple[Path, str], list[RunConfig]] = {}
    for run in runs:
        places.setdefault((Path(run.output_dir), run.experiment), []).append(run)
    return places


def _arguments(part: Part, experiment: str, overrides: Sequence[str]) -> list[str]:
    """What one would type for ``gruclip train -m`` to train the runs of `part`."""
    typed = {name.lstrip("+"): value for name, _, value in (override.partition("=") for override in overrides)}
    if "sweep" in typed:
        raise UserError(
            f"sweep={typed['sweep']}: this trains the sweep {part.sweep}; gruclip reproduce NAME trains NAME"
        )
    if part is TIMES and typed.get("hydra/launcher") == "stacked":
        raise UserError("hydra/launcher=stacked: Figure 2 shows times of runs alone; leave it out")
    arguments = [f"+sweep={part.sweep}", *overrides]
    if "experiment" not in typed:
        arguments.append(f"+experiment={experiment}")
    if "hydra/launcher" not in typed:
        arguments.append(f"hydra/launcher={part.launcher}")
    if part.folder:
        arguments.append(f"output_dir={_below(typed.get('output_dir', OUTPUTS), part.folder)}")
    return arguments


def _below(places: str, folder: str) -> str:
    """A folder in each of the places that were typed, within quotation marks where they are; no name stays none."""
    quote = places[-1:] if places[-1:] in ("'", '"') else ""
    each = [places.removesuffix(quote)] if quote else places.split(",")
    return ",".join(f"{place}/{folder}{quote}" if place.strip("'\" ") else f"{place}{quote}" for place in each)
