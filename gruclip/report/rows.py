"""One run as one row: its settings by their dotted names, its summary, and what it was trained on; rows as a frame."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gruclip.choices import OPTIMIZERS, WORD_DATASETS
from gruclip.config import IDENTITY_SETTINGS, RunConfig
from gruclip.errors import UserError
from gruclip.rules import plural
from gruclip.runs.records import STATUSES

#: What summary.json holds (losses in nats per token or per time step), with the values of a run that has none yet.
SUMMARY: dict[str, Any] = {
    "status": "unfinished",
    "epochs": 0,
    "steps": 0,
    "best_epoch": None,
    "initial_valid_loss": None,
    "valid_loss": None,
    "test_loss": None,
    "unit": None,
    "exploded": False,
    "first_exploded_step": None,
    "max_grad_norm": None,
}
NUMBERS = ("best_epoch", "initial_valid_loss", "valid_loss", "test_loss", "first_exploded_step", "max_grad_norm")

#: What of environment.json a row carries, as text; None where it is not known.
ENVIRONMENT = ("machine", "processor", "accelerator", "threads", "torch", "revision", "kernels", "command")

Row = dict[str, Any]


def row(
    config: RunConfig,
    summary: Mapping[str, Any],
    *,
    folder: Path,
    identity: str,
    data_sha256: str,
    environment: Mapping[str, str | None] | None = None,
) -> Row:
    """One run as a row of the frame that `reading.read_runs` returns.

    Raises `UserError` for an unknown status, and for a success without its losses.
    """
    where = {"folder": str(folder), "identity": identity, "data_sha256": data_sha256}
    length = {"max_epochs": config.max_epochs, "max_steps": config.max_steps}
    unit = "nats per token" if config.dataset.name in WORD_DATASETS else "nats per time step"
    values = {name: summary[name] for name in SUMMARY}
    values |= {name: float(values[name]) for name in NUMBERS if values[name] is not None}
    _check(folder, values)
    origin = {name: (environment or {}).get(name) for name in ENVIRONMENT}
    return {**where, **config.flat(), **length, **values, "unit": unit, **origin}


def _check(folder: Path, summary: Mapping[str, Any]) -> None:
    if summary["status"] not in STATUSES:
        raise UserError(f"{folder}: status={summary['status']}: should be one of {', '.join(STATUSES)}")
    if not isinstance(summary["exploded"], bool):
        raise UserError(f"{folder}: exploded={summary['exploded']!r}: should be true or false")
    for name in ("valid_loss", "test_loss"):
        if summary["status"] == "success" and (summary[name] is None or math.isnan(summary[name])):
            raise UserError(f"{folder}: a success without {name}; move the folder away to run it anew")


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """The rows as a data frame whose numbers are numbers: None is NaN, as are the "nan" of JSON."""
    runs = pd.DataFrame(list(rows))
    numbers = [*NUMBERS, "optimizer.threshold", "optimizer.delta", "max_epochs", "max_steps"]
    return runs.astype(dict.fromkeys(numbers, float))


def environment_columns(environment: Mapping[str, Any]) -> dict[str, str | None]:
    """`ENVIRONMENT` of an environment.json; of a run continued elsewhere each value that it was trained with.

    Raises KeyError, TypeError or AttributeError where it is no such record.
    """
    stages = [_stage(stage) for stage in (*environment.get("before", []), environment)]
    columns: dict[str, str | None] = {}
    for name in ENVIRONMENT:
        known = [value for stage in stages if (value := stage[name]) is not None]
        columns[name] = " then ".join(dict.fromkeys(known)) or None
    return columns


def _stage(environment: Mapping[str, Any]) -> dict[str, str | None]:
    on_cpu = environment["device"] == "cpu"
    threads, driver = environment["threads"], environment.get("driver")
    device = environment["processor"] if on_cpu else environment["device"]
    kernels, command = environment.get("kernels"), environment.get("command")
    return {
        "machine": _printable(f"{device}, {plural(threads, 'thread')}"),
        "processor": environment["processor"],
        "accelerator": None if on_cpu else f"{environment['device']}{f', driver {driver}' if driver else ''}",
        "threads": str(threads),
        "torch": environment.get("versions", {}).get("torch"),
        "revision": environment.get("revision"),
        "kernels": None if kernels is None else json.dumps(kernels, sort_keys=True),
        "command": None if command is None else _printable(" ".join(map(str, command))),
    }


def _printable(text: str) -> str:
    """With escapes for what would break a line of a CSV file or steer a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def in_file_order(rows: Iterable[Row]) -> list[Row]:
    """The rows by method, threshold, delta, rate, cell, every other setting, and last the seed."""
    leading = ("optimizer.threshold", "optimizer.delta", "optimizer.lr", "model.cell", "dataset.name")
    others = [name for name in IDENTITY_SETTINGS if name not in (*leading, "optimizer.name", "seed")]

    def key(run: Row) -> tuple[Any, ...]:
        values = [(run[name] is not None, run[name]) for name in (*leading, *others)]
        return OPTIMIZERS.index(run["optimizer.name"]), *values, run["seed"], run["identity"], run["folder"]

    return sorted(rows, key=key)


def merged(rows: Iterable[Row], differing: list[str] | None = None) -> list[Row]:
    """One row for each identity: of the same run in two places the one that is finished, the first of equals.

    Raises `UserError` naming both places where two finished ones have other results; into the list `differing`, where
    there is one, the second's folder goes instead, and the first one is taken.
    """
    chosen: dict[str, Row] = {}
    for run in rows:
        other = chosen.setdefault(run["identity"], run)
        if other is run or run["status"] == "unfinished":
            continue
        if other["status"] == "unfinished":
            chosen[run["identity"]] = run
            continue
        others = [name for name in SUMMARY if not _equal(run[name], other[name])]
        if others and differing is not None:
            differing.append(run["folder"])
        elif others:
            name = others[0]
            raise UserError(
                f"{other['folder']} and {run['folder']}: the same run ({run['identity'][:8]}) with other results "
                f"({name} {other[name]} and {run[name]}); read one alone (--runs), or keep them apart (--out)"
            )
    return list(chosen.values())


def _equal(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both_nan or one == other
