"""Whether a run's folder is what the runner wrote: every file against its sum, and the records against each other."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from gruclip.errors import UserError
from gruclip.runs.checkpoints import read_checkpoint
from gruclip.runs.folder import check_lengths
from gruclip.runs.ownership import OWNER, read_owner
from gruclip.runs.records import FINISHED, read_config, read_environment, read_summary
from gruclip.runs.sums import SUMMED, SUMS, sha256_of


def run_folders(folder: Path) -> list[Path]:
    """`folder` itself if it is a run's, or those below it, in order; `UserError` where there is none."""
    if not os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        raise UserError(f"{folder}: no such folder; give a run's, or one that holds runs")
    found = [Path(place) for place, _, names in os.walk(folder) if {"config.yaml", "summary.json"} & {*names}]
    if not found:
        raise UserError(
            f"{folder}: holds no run (no config.yaml below it); give a run's folder, or one that holds runs"
        )
    return sorted(found)


def faults(folder: Path) -> list[str]:
    """What is wrong with a run's folder, a line for each file; none where all is as it was written."""
    first: dict[str, str] = {}
    for fault in _faults(folder):
        about = next((name for name in SUMMED if fault.startswith(f"{folder / name}: ")), fault)
        first.setdefault(about, fault)
    return list(first.values())


def _faults(folder: Path) -> Iterator[str]:
    try:
        identity = read_config(folder)[1]["identity"]
        summary = read_summary(folder) if (folder / "summary.json").exists() else None
    except UserError as error:
        yield str(error)
        return
    if (folder / SUMS).exists() and summary is None:
        yield from _faults_of_sums(folder)
    if summary is None or summary["status"] not in FINISHED:
        yield from _faults_of_checkpoint(folder, "last", identity)
        yield from _faults_of_begun(folder)
        return
    yield from _faults_of_sums(folder)
    for which in ("last", "best") if summary.get("best_epoch") is not None else ("last",):
        yield from _faults_of_checkpoint(folder, which, identity)
    for name, steps in (("steps.csv", summary.get("steps")), ("epochs.csv", None)):
        yield from _faults_of_rows(folder / name, steps if isinstance(steps, int) else None)


def _faults_of_sums(folder: Path) -> Iterator[str]:
    try:
        lines = (folder / SUMS).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        yield f"{folder / SUMS}: {why}; without it nobody can tell whether the run was altered"
        return
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in SUMMED:
        path = folder / name
        if name in sums and not path.is_file():
            yield f"{path}: missing"
        elif path.is_file() and sums.get(name) != sha256_of(path):
            yield f"{path}: altered since the run was finished"


def _faults_of_checkpoint(folder: Path, which: str, identity: str) -> Iterator[str]:
    path = folder / "checkpoint" / f"{which}.safetensors"
    if which == "last" and not path.exists():
        return  # not one yet
    try:
        found = read_checkpoint(path, identity)
        if which == "last":
            check_lengths(folder, found)
    except UserError as error:
        yield str(error)


def _faults_of_begun(folder: Path) -> Iterator[str]:
    """Of the records that a run is continued with, where they are there."""
    for name, read in (("environment.json", read_environment), (OWNER, read_owner)):
        if os.path.lexists(folder / name):
            try:
                read(folder)
            except UserError as error:
                yield str(error)
            except FileNotFoundError:
                pass  # its process has ended since


def _faults_of_rows(path: Path, last: int | None) -> Iterator[str]:
    """Rows counted from one, or in the case of epochs from zero, without a gap or a repetition."""
    first = 1 if path.name == "steps.csv" else 0
    try:
        with path.open(newline="") as file:
            numbers = [int(row[0]) for row in list(csv.reader(file))[1:]]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        yield f"{path}: cannot be read ({error})"
        return
    expected = list(range(first, first + len(numbers) if last is None else last + 1))
    if numbers != expected:
        yield f"{path}: {len(numbers)} rows that do not count {expected[:1]} to {expected[-1:]}"
