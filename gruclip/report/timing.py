"""A run's times: timing.csv, and the few numbers of it that a collected file keeps."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from gruclip.errors import UserError

#: The parts of an epoch in timing.csv, of which the phases are those of an iteration that Figure 2 shows.
PARTS = ("data", "forward", "backward", "update", "clipping", "metrics", "evaluation")
PHASES = ("forward", "backward", "update", "clipping")

#: Seconds of the whole training, in all and by part, and epochs timed.
WHOLE_TIMES = ("seconds", *(f"seconds.{part}" for part in PARTS), "timing.epochs")

#: Where an epoch was timed: iterations of the longest and of the last one, runs in the stack, and of each phase the
#: median over the epochs, without the `FIRST`, of the seconds of an iteration.
EPOCH_TIMES = (
    "timing.iterations",
    "timing.last_iterations",
    "timing.stack_size",
    *(f"iteration.{phase}" for phase in PHASES),
)

TIMING = (*WHOLE_TIMES, *EPOCH_TIMES)

#: Epochs in which iterations are not what they are in training: few values pass the limit yet, and memory is new.
FIRST = 1


def later(timing: pd.DataFrame) -> pd.DataFrame:
    """The epochs that tell what an iteration costs: without the `FIRST`, where there are others."""
    return timing[FIRST:] if len(timing) > FIRST else timing


def read_timing(path: Path) -> pd.DataFrame:
    """timing.csv: seconds per epoch and phase, iterations and stack size, a row for each epoch that ended."""
    try:
        timing = pd.read_csv(path)
        return timing.astype(dict.fromkeys((*PARTS, "iterations", "stack_size"), float))
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); move the folder away to run it anew") from error


def condensed(path: Path) -> dict[str, float | None]:
    """`TIMING` of a run's timing.csv; read without pandas, which takes milliseconds to begin, for thousands of runs."""
    try:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file, strict=True))
        columns = {name: [float(line[name]) for line in lines] for name in (*PARTS, "iterations", "stack_size")}
        if not all(1 <= number < math.inf for name in ("iterations", "stack_size") for number in columns[name]):
            raise ValueError("an epoch without iterations or runs")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); move the folder away to run it anew") from error
    totals = {part: math.fsum(columns[part]) for part in PARTS}
    values: dict[str, float | None] = {"seconds": round(math.fsum(totals.values()), 6)}
    values |= {f"seconds.{part}": round(total, 6) for part, total in totals.items()}
    values["timing.epochs"] = len(lines)
    if not lines:
        return values
    iterations = columns["iterations"]
    values["timing.iterations"], values["timing.last_iterations"] = int(max(iterations)), int(iterations[-1])
    values["timing.stack_size"] = int(max(columns["stack_size"]))
    for phase in PHASES:
        seconds = [taken / count for taken, count in zip(columns[phase], iterations, strict=True)]
        values[f"iteration.{phase}"] = statistics.median(seconds[FIRST:] or seconds)
    return values


def expanded(values: Mapping[str, str]) -> pd.DataFrame:
    """A timing.csv of as many epochs with the same iterations, stack size and median of each phase."""
    count = int(float(values["timing.epochs"]))
    if count == 0:
        return pd.DataFrame(columns=["epoch", "iterations", *PHASES, "stack_size"], dtype=float)
    longest, last = float(values["timing.iterations"]), float(values["timing.last_iterations"])
    iterations = pd.Series([longest] * (count - 1) + [last])
    phases = {phase: iterations * float(values[f"iteration.{phase}"]) for phase in PHASES}
    stack_size = float(values["timing.stack_size"])
    return pd.DataFrame({"epoch": range(1, count + 1), "iterations": iterations, **phases, "stack_size": stack_size})
