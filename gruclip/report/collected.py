"""Finished runs in one CSV file an experiment, a line a run: written from run folders, read back to the same rows.

A field is text as `repr` gives a number, so that nothing is lost; one that is empty has no value. The columns are
``run`` (the folder's name), ``identity``, ``data_sha256``, the settings by their dotted names, what summary.json
holds (beyond `rows.SUMMARY` as JSON under ``summary.NAME``), `rows.ENVIRONMENT`, and the `TIMING`.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gruclip import config
from gruclip.choices import OWN_DATASETS
from gruclip.config import IDENTITY_SETTINGS, RunConfig
from gruclip.errors import UserError
from gruclip.report.explosions import COUNTS
from gruclip.report.rows import ENVIRONMENT, SUMMARY, Row, row
from gruclip.report.timing import EPOCH_TIMES, TIMING, WHOLE_TIMES
from gruclip.runs.records import strict

Record = dict[str, str]

WHO = ("run", "identity", "data_sha256")
SETTINGS = (*IDENTITY_SETTINGS, "experiment")
NUMBERS = (*TIMING, *COUNTS)
COLUMNS = (*WHO, *SETTINGS, *SUMMARY, *ENVIRONMENT, *NUMBERS)
EXTRA = "summary."

#: In the place of the path of a corpus of one's own, which says something of somebody's machine alone.
NOT_KEPT = "not kept"

REMEDY = "take the committed file back, or remove it and write it anew with: gruclip collect"


def record(run: Row, summary: Mapping[str, Any], numbers: Mapping[str, float | None]) -> Record:
    """The line of a run: its `row`, what its summary.json holds beyond it, and `NUMBERS` (those there are)."""
    texts = {"run": _text(Path(run["folder"]).name)}
    texts |= {name: _text(run[name]) for name in (*WHO[1:], *SETTINGS, *SUMMARY, *ENVIRONMENT)}
    texts |= {name: _text(summary[name]) for name in ("best_epoch", "first_exploded_step")}
    extra = {name: value for name, value in summary.items() if name not in SUMMARY}
    texts |= {f"{EXTRA}{name}": json.dumps(strict(value), sort_keys=True) for name, value in extra.items()}
    return {**texts, **{name: _text(numbers.get(name)) for name in NUMBERS}}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # file names and arguments need not be UTF-8
    return "" if value is None else repr(value)


def text(records: Iterable[Record]) -> str:
    """The CSV file of these lines; of runs that share a name each gets the start of its identity behind it."""
    lines = list(records)
    counts = Counter(line["run"] for line in lines)
    lines = [{**line, "run": f"{line['run']}-{line['identity'][:8]}"} if counts[line["run"]] > 1 else line
             for line in lines]  # fmt: skip
    extra = sorted({name for line in lines for name in line if name.startswith(EXTRA)})
    file = io.StringIO()
    writer = csv.DictWriter(file, [*COLUMNS, *extra], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def read(path: Path) -> list[tuple[Row, Record]]:
    """Each line as the row that its folder gave, and as it stands; the row's folder is ``FILE.csv/NAME``.

    Raises `UserError` for a file that is damaged, cut short or of other columns, for a run that stands in it twice,
    and for one whose settings are not those of its identity.
    """
    pairs: list[tuple[Row, Record]] = []
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            run = _row(path, line)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: line {number}: {error}; {REMEDY}") from error
        for key in (run["identity"], line["run"]):
            if key in seen:
                raise UserError(f"{path}: line {number}: the run of line {seen[key]} once more; {REMEDY}")
            seen[key] = number
        pairs.append((run, line))
    return pairs


def looks_collected(path: Path) -> bool:
    """Whether it is a file, and begins as collected files do. Raises `UserError` where it cannot be read."""
    if not path.is_file():  # a folder, a pipe, a link to nothing
        return False
    try:
        with path.open("rb") as file:
            return file.readline(64).startswith(",".join(WHO).encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that, or move it away") from error


def is_collected(folder: str | Path) -> bool:
    """Whether a row's folder is a line of a collected file."""
    return Path(folder).parent.suffix == ".csv"


def line_of(folder: str | Path) -> Record:
    """The line that a collected row was made of."""
    path = Path(folder).parent
    status = path.stat()
    return _by_name(path, status.st_mtime_ns, status.st_size)[Path(folder).name]


@functools.lru_cache(maxsize=8)
def _by_name(path: Path, written: int, size: int) -> dict[str, Record]:
    return {line["run"]: line for _, line in _lines(path)}


def _lines(path: Path) -> list[tuple[int, Record]]:
    content = decoded(path)
    if content and not content.endswith("\n"):
        raise UserError(f"{path}: cut short in its last line; {REMEDY}")
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_columns(path, header)
        added = {name: _text(value) for name, value in config.ADDED.items()}
        lines = []
        for fields in reader:
            if len(fields) != len(header):
                raise UserError(f"{path}: line {reader.line_num}: {len(fields)} fields of {len(header)}; {REMEDY}")
            lines.append((reader.line_num, {**added, **dict(zip(header, fields, strict=True))}))
        return lines
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: damaged ({error}); {REMEDY}") from None


def decoded(path: Path) -> str:
    """The text of a collected file; `UserError` where it cannot be read or is none."""
    try:
        content = path.read_bytes()
        if b"\0" in content:
            raise UserError(f"{path}: damaged (byte {content.index(0)} is NUL); {REMEDY}")
        return content.decode()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that or {REMEDY}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged (byte {error.start} is not UTF-8); {REMEDY}") from None


def _check_columns(path: Path, header: list[str]) -> None:
    foreign = [name for name in header if name not in COLUMNS and not name.startswith(EXTRA)]
    missing = [name for name in COLUMNS if name not in header and name not in config.ADDED]
    twice = [name for name in header if header.count(name) > 1]
    for names, what in ((foreign, "no column of collected runs"), (missing, "lacks the column"), (twice, "twice")):
        if names:
            message = f"{what} {names[0]!r}" if names is missing else f"column {names[0]!r}: {what}"
            raise UserError(f"{path}: {message}; {REMEDY}")


def _row(path: Path, line: Record) -> Row:
    settings: dict[str, Any] = {}
    for name in SETTINGS:
        *group, last = name.split(".")
        (settings.setdefault(group[0], {}) if group else settings)[last] = _value(line[name], _kinds()[name], name)
    if settings["dataset"]["name"] in OWN_DATASETS:
        settings["dataset"]["root"] = NOT_KEPT
    run = RunConfig.from_dict(settings)
    if run.identity(line["data_sha256"]) != line["identity"]:
        raise ValueError(f"altered: its settings are not those of its identity {line['identity'][:12]}")
    summary = {name: _value(line[name], _SUMMARY_KINDS[name], name) for name in SUMMARY}
    if summary["status"] == "unfinished":
        raise ValueError("status=unfinished: only finished runs are collected")
    _check_numbers(line)
    environment = {name: line[name] or None for name in ENVIRONMENT}
    if line["kernels"] and not all(isinstance(json.loads(stage), dict) for stage in line["kernels"].split(" then ")):
        raise ValueError(f"kernels={line['kernels']}: should be JSON objects with ' then ' between them")
    where = {"identity": line["identity"], "data_sha256": line["data_sha256"]}
    return row(run, summary, folder=path / line["run"], environment=environment, **where)


def _check_numbers(line: Record) -> None:
    """Seconds are finite and of 0 or more, counts whole as well; what is written together is there together."""
    for name in NUMBERS:
        number, whole = _value(line[name], float, name), name in COUNTS or name.startswith("timing.")
        if number is not None and not (0 <= number < math.inf and (not whole or number == int(number))):
            raise ValueError(f"{name}={line[name]}: should be a {'whole ' * whole}number of 0 or more")
    has_epochs = line["timing.epochs"] not in ("", "0")
    for first, *others in (WHOLE_TIMES, EPOCH_TIMES, COUNTS):
        for name in others:
            if bool(line[name]) != bool(line[first]):
                raise ValueError(f"{name}={line[name]}: and {first}={line[first]}, of which one has no value")
    if bool(line[EPOCH_TIMES[0]]) != has_epochs:
        raise ValueError(f"{EPOCH_TIMES[0]}={line[EPOCH_TIMES[0]]}: with timing.epochs={line['timing.epochs']}")


_SUMMARY_KINDS: dict[str, type] = {
    **dict.fromkeys(SUMMARY, float),
    **dict.fromkeys(("epochs", "steps", "best_epoch", "first_exploded_step"), int),
    **dict.fromkeys(("status", "unit"), str),
    "exploded": bool,
}


def _value(text: str, kind: type, name: str) -> Any:
    if text == "":
        return None
    if kind is bool:
        return {"True": True, "False": False}.get(text, text)
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}={text}: should be a {'whole ' * (kind is int)}number") from None


@functools.cache
def _kinds() -> dict[str, type]:
    """The type of each setting by its dotted name."""
    return dict(_kinds_of("", RunConfig))


def _kinds_of(prefix: str, cls: Any) -> typing.Iterator[tuple[str, type]]:
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _kinds_of(f"{prefix}{name}.", hint)
        else:
            yield f"{prefix}{name}", next((part for part in typing.get_args(hint) if part is not type(None)), hint)
