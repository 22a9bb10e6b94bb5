"""Where a sweep stands, here or on a shared file system: what is finished, trained, waiting, left; for how long.

Read from the run folders, the sweeps' records, the owners' signs of life and collected files; nothing is written.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.report import collected, folders
from gruclip.report.reading import read_seconds
from gruclip.report.rows import Row, merged
from gruclip.report.timing import condensed
from gruclip.runs.ownership import living_owner
from gruclip.runs.records import FINISHED, read_config
from gruclip.runs.sweeps import sweeps
from gruclip.training.display import clock

#: Of steps.csv and epochs.csv this much is read from the end, which holds the last line.
_TAIL = 4096

#: Finished runs whose times are read for what the waiting ones will take.
SAMPLE = 200


@dataclass(frozen=True)
class Training:
    """A run that a process is training: where it stands, the loss in nats of its last validation, seconds left."""

    name: str
    epoch: int
    step: int
    valid_loss: float | None
    seconds_left: float | None
    host: str
    pid: int
    job: str | None = None  #: of SLURM


@dataclass
class Status:
    """The runs of one place by their state; `unfinished` ones are begun and nobody trains them."""

    place: Path
    finished: Counter[str] = field(default_factory=Counter)
    training: list[Training] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  #: of a sweep that runs
    not_begun: list[str] = field(default_factory=list)  #: of a sweep that was stopped before it came to them
    unfinished: list[tuple[str, int]] = field(default_factory=list)  #: with their epochs
    unreadable: list[str] = field(default_factory=list)
    seconds_left: float | None = None  #: until all that is trained or waits is done

    @property
    def total(self) -> int:
        begun = self.finished.total() + len(self.training) + len(self.unfinished)
        return begun + len(self.waiting) + len(self.not_begun)


def status(place: Path) -> Status:
    """The status of all runs below `place`, an output_dir, an experiment's folder in it, or a folder of collected runs.

    Raises `UserError` where there is no such folder.
    """
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give an output_dir, e.g. outputs")
    result = Status(place)
    rows = folders.read(place, result.unreadable)
    files = [path for path in sorted(place.glob("*.csv")) if collected.looks_collected(path)]
    rows = merged([*rows, *(run for path in files for run, _ in collected.read(path))])
    finished: list[Row] = []
    for row in rows:
        if row["status"] in FINISHED:
            result.finished[row["status"]] += 1
            finished.append(row)
            continue
        folder = Path(row["folder"])
        owner = living_owner(folder)
        if owner is None:
            result.unfinished.append((os.path.relpath(folder, place), int(_last(folder / "epochs.csv", "epoch") or 0)))
        else:
            result.training.append(_training(folder, place, owner))
    _add_planned(result, {os.path.realpath(row["folder"]) for row in rows})
    if result.training:
        some = finished[:: 1 + len(finished) // SAMPLE]
        result.seconds_left = _seconds_left(
            result, [took for row in some if (took := read_seconds(row["folder"])) is not None]
        )
    return result


def _add_planned(result: Status, known: set[str]) -> None:
    """Runs that a sweep has not come to yet, from the records in `place` and, for an experiment's folder, above it."""
    inside = Path(os.path.realpath(result.place))
    waits: dict[str, bool] = {}
    for root in (result.place, result.place.parent):
        for sweep in sweeps(root):
            runs = sweep.is_running() is not False
            for folder in (Path(os.path.realpath(root / run)) for run in sweep.runs):
                if str(folder) not in known and folder.is_relative_to(inside) and not (folder / "config.yaml").exists():
                    name = os.path.relpath(folder, inside)
                    waits[name] = waits.get(name, False) or runs
    for name, waiting in sorted(waits.items()):
        (result.waiting if waiting else result.not_begun).append(name)


def _training(folder: Path, place: Path, owner: dict[str, Any]) -> Training:
    config, _ = read_config(folder)
    epoch, step = int(_last(folder / "epochs.csv", "epoch") or 0), int(_last(folder / "steps.csv", "step") or 0)
    loss = _last(folder / "epochs.csv", "valid_loss")
    left, job = _left(config, folder, epoch, step), owner["job"] and owner["job"]["id"]
    return Training(os.path.relpath(folder, place), epoch, step, loss, left, owner["host"], owner["pid"], job)


def _left(config: RunConfig, folder: Path, epoch: int, step: int) -> float | None:
    """Seconds to the run's end at the pace of its epochs so far; None where its end or its pace is not known."""
    if not epoch:
        return None  # it may have begun just now, with no timing.csv yet
    times = condensed(folder / "timing.csv")
    total, iterations = times["seconds"], times.get("timing.iterations")
    if not total or not iterations:
        return None
    steps = config.total_steps(int(iterations))
    return None if steps is None else max(0.0, total / (epoch * iterations) * (steps - step))


def _last(path: Path, column: str) -> float | None:
    """The value of a column in the last whole line of a CSV file; None where there is none."""
    try:
        with path.open("rb") as file:
            names = file.readline().decode().strip().split(",")
            start = file.tell()
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - _TAIL))
            lines = file.read().decode(errors="replace").split("\n")[:-1]
        return float(lines[-1].split(",")[names.index(column)]) if lines else None
    except (OSError, ValueError, IndexError):
        return None


def _seconds_left(result: Status, taken: Sequence[float]) -> float | None:
    """Until everything that is trained or waits is done, by as many runs side by side as there are now."""
    mean = sum(taken) / len(taken) if taken else math.nan
    left = [mean if run.seconds_left is None else run.seconds_left for run in result.training]
    waiting = len(result.waiting) * mean if result.waiting else 0.0
    seconds = max((math.fsum(left) + waiting) / len(left), *left)
    return None if math.isnan(seconds) else seconds


def text(found: Status) -> str:
    """The status in words, a line a run of those that are not finished."""
    kinds = [f"{found.finished[kind]} {kind}" for kind in FINISHED if found.finished[kind]]
    done = found.finished.total()
    lines = [f"{found.place}: {done} of {found.total} runs finished" + (f" ({', '.join(kinds)})" if kinds else "")]
    if found.seconds_left is not None:
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + found.seconds_left))
        lines[0] += f"; all done in {clock(found.seconds_left)}, at {end}"
    if found.training:
        lines.append(f"\n{len(found.training)} in training")
        cells = [["epoch", "iteration", "validation", "left", "host", "run"], *map(_cells, found.training)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    for runs, heading in (
        (found.waiting, "waiting"),
        (found.not_begun, "not begun, and their sweep does not run"),
    ):
        if runs:
            lines += [f"\n{len(runs)} {heading}", *(f"  {run}" for run in runs)]
    if found.unfinished:
        lines.append(f"\n{len(found.unfinished)} unfinished and not in training; the same command continues them")
        lines += [f"  {run} (epoch {epoch})" for run, epoch in found.unfinished]
    if found.unreadable:
        lines += [f"\n{len(found.unreadable)} that cannot be read", *(f"  {message}" for message in found.unreadable)]
    return "\n".join(lines)


def _cells(run: Training) -> list[str]:
    loss = "" if run.valid_loss is None else f"{run.valid_loss:.4f}"
    left = "" if run.seconds_left is None else clock(run.seconds_left)
    host = f"{run.host}:{run.pid}" + (f" job {run.job}" if run.job else "")
    return [str(run.epoch), str(run.step), loss, left, host, run.name]
