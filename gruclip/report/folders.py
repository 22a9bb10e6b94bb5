"""Run folders found and read: none is passed over silently, and none is read twice that has not changed since."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gruclip.errors import UserError
from gruclip.report.index import Index
from gruclip.report.rows import SUMMARY, Row, environment_columns, row
from gruclip.runs.records import read_config, read_json, read_summary

#: The records that a row is made of; their stamps say whether it has to be read again.
RECORDS = ("config.yaml", "summary.json", "environment.json")

#: Files that only a run's folder has.
_OF_A_RUN = ("summary.json", "environment.json", "epochs.csv", "steps.csv", "timing.csv")

#: Folders that a run and its loggers keep inside its own.
_INSIDE = ("checkpoint", "wandb", "tensorboard")


@dataclass(frozen=True)
class Found:
    """A run's folder, and for each of its `RECORDS` when it was written, its size and its number on the disk."""

    path: str
    stamp: tuple[tuple[int, ...], ...]


def find(root: Path, unreadable: list[str] | None = None) -> list[Found]:
    """All run folders below `root`, at any depth and behind links, by path.

    Raises `UserError` for a folder that cannot be looked into, and for one that holds a run's files but no config.yaml;
    with a list `unreadable`, its message goes there.
    """
    found = _find(str(root), {os.path.realpath(root)}, unreadable) if root.is_dir() else ()
    return sorted(found, key=lambda one: one.path)


def _find(folder: str, seen: set[str], unreadable: list[str] | None) -> Iterator[Found]:
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
        if "config.yaml" in entries:
            stats = [entries[name].stat() for name in RECORDS if name in entries]
            yield Found(folder, tuple((s.st_mtime_ns, s.st_ctime_ns, s.st_size, s.st_ino) for s in stats))
        inner = [e for e in entries.values() if e.is_dir() and not ("config.yaml" in entries and e.name in _INSIDE)]
    except OSError as error:
        _refuse(f"{folder}: cannot be looked into ({error.strerror}); mend that or move it away", unreadable)
        return
    if "config.yaml" not in entries and any(name in entries for name in _OF_A_RUN):
        _refuse(f"{folder}: a run's folder without its config.yaml; put that back, or move the folder away", unreadable)
        return
    for entry in inner:
        if not entry.is_symlink():
            yield from _find(entry.path, seen, unreadable)
        elif (real := os.path.realpath(entry.path)) not in seen:
            seen.add(real)
            yield from _find(entry.path, seen, unreadable)


def _refuse(message: str, unreadable: list[str] | None) -> None:
    if unreadable is None:
        raise UserError(message)
    unreadable.append(message)


def read(root: Path, unreadable: list[str] | None = None) -> list[Row]:
    """A row for each run folder below `root`, by path.

    Raises `UserError` for the first folder that cannot be read; with a list `unreadable`, its message goes there.
    """
    index = Index(root)
    rows = []
    for found in find(root, unreadable):
        known = index.get(found.path, found.stamp)
        if known is None:
            try:
                known = read_folder(Path(found.path))
            except UserError as error:
                if unreadable is None:
                    raise
                unreadable.append(str(error))
                continue
        index.put(found.path, found.stamp, known)
        rows.append(known)
    index.save()
    return rows


def read_folder(folder: Path) -> Row:
    """The row of one run folder; `UserError` where a record is missing, damaged or altered."""
    try:
        config, sums = read_config(folder)
        summary = read_summary(folder) if (folder / "summary.json").exists() else SUMMARY
        path = folder / "environment.json"
        environment = environment_columns(read_json(path)) if path.exists() else None
        return row(
            config,
            summary,
            folder=folder,
            identity=sums["identity"],
            data_sha256=sums["data_sha256"],
            environment=environment,
        )
    except KeyError as error:
        raise UserError(f"{folder}: its records lack {error}; move the folder away to run it anew") from error
    except UserError as error:
        if str(folder) in str(error):
            raise
        raise UserError(f"{folder}: {error}; move the folder away to run it anew") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: not a run that can be read ({error}); move it away to run it anew") from error
