"""Runs in, one data frame out: a row per run, from run folders and from the files that `collecting` makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gruclip.errors import NoRuns, UserError
from gruclip.report import collected, curves, explosions, folders, timing
from gruclip.report.rows import frame, in_file_order, merged


def read_runs(
    places: Path | Sequence[Path],
    experiment: str,
    remedy: str = "train some first",
    differing: list[str] | None = None,
) -> pd.DataFrame:
    """One row for every run of ``experiment`` in each of the `places`, ordered by their settings.

    >>> runs = read_runs("outputs/paper", "ptb")  # doctest: +SKIP
    >>> runs.groupby(["optimizer.name", "optimizer.lr"])["test_loss"].mean()  # doctest: +SKIP

    A place is an output_dir, whose run folders lie below ``PLACE/experiment`` at any depth, or a folder with collected
    runs, ``PLACE/experiment.csv``, or both. Columns: ``folder``, ``identity``, ``data_sha256``; every setting of
    `RunConfig` by its dotted name; ``max_epochs`` and ``max_steps`` as the budget leaves them; what summary.json holds;
    `rows.ENVIRONMENT`. A run that has no summary yet is unfinished. The same run from two places is one row.

    Raises `NoRuns` where there is no run, with the `remedy` for that; `UserError` for a folder or file that cannot
    be read or was altered, and for two places that hold the same run with other results (which is then the first
    place's, where there is a list `differing`, and the other's folder goes into that).
    """
    places = [Path(places)] if isinstance(places, str | Path) else [Path(place) for place in places]
    rows = []
    for place in places:
        path = place / f"{experiment}.csv"
        kept = [run for run, _ in collected.read(path)] if path.is_file() else []
        rows += merged([*folders.read(place / experiment), *kept])
    if not rows:
        raise NoRuns(f"{' and '.join(str(place / experiment) for place in places)}: no runs there; {remedy}")
    return frame(in_file_order(merged(rows, differing)))


def read_steps(folder: str | Path) -> pd.DataFrame:
    """A run's gradient norm and spectral radius over its iterations; thinned where the run was collected.

    Columns ``step``, ``grad_norm`` (before clipping), ``radius`` (the largest over the layers: in a GRU of
    several layers the Jacobian at the origin is block triangular) and ``measured`` (the radius was computed
    at this step). NaN and infinity are kept as the run met them.
    """
    if collected.is_collected(folder):
        return curves.collected_steps(folder)
    return curves.read_steps(Path(folder) / "steps.csv")


def read_epochs(folder: str | Path) -> curves.Epochs:
    """The columns of a run's epochs.csv, epoch 0 being before training; with six digits where the run was collected."""
    if collected.is_collected(folder):
        return curves.collected_epochs(folder)
    return curves.read_epochs(Path(folder) / "epochs.csv")


def read_timing(folder: str | Path) -> pd.DataFrame:
    """A run's timing.csv; where the run was collected, as many epochs as it had, each with the medians over them."""
    if not collected.is_collected(folder):
        return timing.read_timing(Path(folder) / "timing.csv")
    line = collected.line_of(folder)
    if not line["timing.epochs"]:
        raise UserError(f"{folder}: was collected without its times; collect it anew from its run folder")
    return timing.expanded(line)


def read_phases(folder: str | Path) -> dict[str, float] | None:
    """Of each phase the median over a run's epochs, without a first of several, of the seconds of an iteration; None
    where they are not known.
    """
    times = _times(folder)
    return {phase: times[f"iteration.{phase}"] for phase in timing.PHASES} if "timing.iterations" in times else None


def read_seconds(folder: str | Path) -> float | None:
    """Seconds that a run was in training; None where that is not known."""
    return _times(folder).get("seconds")


def _times(folder: str | Path) -> dict[str, float]:
    """The `timing.TIMING` of a run, those that are known."""
    try:
        if collected.is_collected(folder):
            line = collected.line_of(folder)
            return {name: float(line[name]) for name in timing.TIMING if line[name]}
        return {name: one for name, one in timing.condensed(Path(folder) / "timing.csv").items() if one is not None}
    except UserError:
        return {}


def read_explosions(folder: str | Path) -> dict[str, float | None] | None:
    """`explosions.COUNTS` of a run; None where its iterations were not kept, or it was collected without them."""
    if not collected.is_collected(folder):
        path = Path(folder) / "steps.csv"
        return explosions.count(path) if path.exists() else None
    line = collected.line_of(folder)
    return {name: int(line[name]) for name in explosions.COUNTS} if line[explosions.COUNTS[0]] else None
