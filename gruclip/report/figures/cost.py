"""Figure 2: what the projection costs beside the rest of an iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gruclip.errors import MissingRuns, UserError
from gruclip.report import style
from gruclip.report.reading import read_timing
from gruclip.report.sections import METHOD, METHOD_NAMES, Section, in_order, sections, setting
from gruclip.report.statistics import finished
from gruclip.report.timing import PHASES, later
from gruclip.rules import plural

#: Where the runs lie that are timed for this figure, one after another and with nothing beside them.
TIMED = "figure2"

GREYS = {"forward": "#E3E3E3", "backward": "#BDBDBD", "update": "#8A8A8A"}

#: Settings that change no time of an iteration.
_TIMELESS = (
    *METHOD,
    "optimizer.lr",
    "optimizer.algorithm",
    "schedule.name",
    "schedule.factor",
    "schedule.hold_epochs",
    "schedule.patience",
    "schedule.min_lr",
    "trainer.budget",
    "trainer.max_epochs",
    "trainer.short_epochs",
    "trainer.max_steps",
    "trainer.radius_every",
)


_REMEDY = "give --runs the folder of runs that do, or make them with: gruclip reproduce figure2"


def comparable(runs: pd.DataFrame) -> Section:
    """All of them; `UserError` where settings differ that change the time of an iteration."""
    parts = sections(runs, _TIMELESS)
    if len(parts) > 1:
        differing = ", ".join(parts[0].differing)
        raise UserError(f"figure 2: the runs differ in {differing}, so their times do not compare; {_REMEDY}")
    return parts[0]


def figure_2(runs: pd.DataFrame, out: Path, formats: Sequence[str]) -> list[Path]:
    """Seconds per epoch by method: forward, backward, update and clipping, the naive full SVD beside the rest; of the
    runs that were timed alone; the title says how many others there are.

    Raises `UserError` where all were timed in a stack, and where times do not compare (other data, model, ...).
    """
    runs = finished(runs)
    if runs.empty:
        raise MissingRuns("figure 2: no finished runs; make them with: gruclip reproduce figure2")
    read = {folder: read_timing(folder) for folder in runs["folder"]}
    stacked = {folder: most for folder, timing in read.items() if (most := timing["stack_size"].max()) > 1}
    if len(stacked) == len(runs):
        folder, most = next(iter(stacked.items()))
        raise MissingRuns(f"figure 2: {folder} was timed in a stack of {most:.0f} runs, not alone; {_REMEDY}")
    runs = runs[~runs["folder"].isin(stacked)]
    section = comparable(runs)
    machines = _machines(runs)
    if len(machines) > 1:
        raise UserError(f"figure 2: the runs were timed on different machines ({'; '.join(machines)}); {_REMEDY}")
    timings = [read[folder] for folder in runs["folder"]]
    if not any(map(len, timings)):
        raise UserError("figure 2: no run ended its first epoch, so none was timed")
    seconds = seconds_by_method(runs, timings)
    iterations = iterations_of_an_epoch(runs, timings)
    unit = "iteration" if iterations is None else "epoch"
    seconds[list(PHASES)] *= iterations or 1

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bars = seconds.to_dict("records")
        for place, bar in enumerate(bars):
            left = 0.0
            for phase in PHASES:
                colour = GREYS.get(phase, style.COLOURS[bar["optimizer.name"]])
                axes.barh(place, bar[phase], left=left, color=colour, height=0.62)
                left += bar[phase]
            axes.annotate(f"{left:.3g} ({bar['clipping'] / left:.1%})", (left, place), (2, 0),
                          textcoords="offset points", va="center")  # fmt: skip
        axes.set_yticks(range(len(bars)), [_label(bar) for bar in bars])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.5 * seconds[list(PHASES)].sum(axis="columns").max())
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(f"seconds per {unit} (and share of clipping)")
        colours = [style.COLOURS[name] for name in seconds["optimizer.name"].unique()]
        handles: list[Any] = [Patch(color=grey) for grey in GREYS.values()] + [
            tuple(Patch(color=colour) for colour in colours)
        ]
        figure.legend(handles, PHASES, loc="outside lower center", ncols=4, handlelength=1.4, columnspacing=1.0,
                      handler_map={tuple: HandlerTuple(ndivide=None, pad=0)})  # fmt: skip

    height = 0.9 + 0.32 * len(seconds)
    left_out = f"\nwithout {plural(len(stacked), 'run')} timed in a stack" if stacked else ""
    return style.save(draw, f"{section.model}\n{machines[0]}{left_out}", height, out / "figure_2", formats)


def _machines(runs: pd.DataFrame) -> list[str]:
    unknown = runs.loc[runs["machine"].isna(), "folder"]
    if len(unknown):
        raise UserError(
            f"figure 2: {unknown.iloc[0]}: has no environment.json, so nothing says on what it was timed; "
            "make its own runs with: gruclip reproduce figure2"
        )
    return sorted(runs["machine"].unique())


def seconds_by_method(runs: pd.DataFrame, timings: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Median seconds per iteration of each phase over the `later` epochs of all seeds, by method and algorithm."""
    settings = runs[[*METHOD, "optimizer.algorithm"]].to_dict("records")
    rows = []
    for method, timing in zip(settings, timings, strict=True):
        if pd.isna(method["optimizer.delta"]):
            method["optimizer.algorithm"] = "auto"  # of a projection that the method does not have
        if len(timing):  # else the run diverged in its first epoch
            counted = later(timing)
            rows.append(counted[list(PHASES)].div(counted["iterations"], axis="index").assign(**method))
    keys = [*METHOD, "optimizer.algorithm"]
    return in_order(pd.concat(rows).groupby(keys, dropna=False).median().reset_index())


def iterations_of_an_epoch(runs: pd.DataFrame, timings: Sequence[pd.DataFrame]) -> int | None:
    """Iterations in a whole epoch; None where every run was cut short in its first (the last is no whole one then)."""
    whole: list[int] = []
    for max_steps, timing in zip(runs["max_steps"], timings, strict=True):
        whole += timing["iterations"].tolist()[: None if pd.isna(max_steps) else -1]
    return max(whole, default=None)


def _label(bar: Mapping[str, Any]) -> str:
    algorithm = {"auto": "", "full": "naive full SVD"}.get(bar["optimizer.algorithm"], bar["optimizer.algorithm"])
    return f"{METHOD_NAMES[bar['optimizer.name']]}\n{', '.join(filter(None, [setting(bar), algorithm]))}"
