"""Curves of runs: their steps.csv and epochs.csv, and what of these is kept beside collected runs, thinned and gzipped.

``curves/EXPERIMENT.epochs.csv.gz`` holds the epochs of all runs, ``curves/EXPERIMENT.steps.csv.gz`` the iterations of
the few runs that Figure 1 shows. Numbers have six significant digits. Of a run's iterations about `BINS` bins of equal
length are made and of each is kept: the one with the largest gradient norm and the one with the largest radius, what
is not finite counting as larger than all; and the first and the last iteration of the run. So every explosion is there.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gruclip.errors import UserError
from gruclip.report import collected
from gruclip.report.collected import REMEDY

BINS = 1000

#: Iterations that are read at once; Table 1's longest runs have 99,600.
CHUNK = 100_000

#: Bytes of all files of a kind together, and of one file unpacked: what is larger was not written here. The 180,000
#: epochs of all runs that a lent GPU is to train have some four million; it gives back files of twice their limit.
MAX_BYTES = {"steps": 1_000_000, "epochs": 8 << 20}
_MAX_UNPACKED = 50_000_000

STEPS = ("step", "grad_norm", "radius")
EPOCHS = ("epoch", "lr", "train_loss", "valid_loss", "grad_norm_mean", "grad_norm_max", "values_clipped")
KINDS = {"steps": STEPS, "epochs": EPOCHS}

Epochs = dict[str, list[float]]  #: the columns `EPOCHS`, NaN for what is empty
Curves = dict[str, str]  #: CSV lines, without a heading, by the runs' identities


def read_steps(path: Path) -> pd.DataFrame:
    """The frame of `reading.read_steps`; of a run of more than `CHUNK` iterations thinned as it is read, so that memory
    does not grow with the file."""
    try:
        parts: list[pd.DataFrame] = []
        with pd.read_csv(path, dtype=str, keep_default_na=False, usecols=_is_read, chunksize=CHUNK) as reader:
            for text in reader:
                parts.append(_parsed(text))
                if len(parts) == 2:
                    parts[0] = thinned(parts[0])
                if len(parts) > 1:
                    parts[-1] = thinned(parts[-1])
        return pd.concat(parts, ignore_index=True)
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); move the folder away to run it anew") from error


def _is_read(column: str) -> bool:
    return column in ("step", "grad_norm") or column.startswith("spectral_radius_l")


def _parsed(text: pd.DataFrame) -> pd.DataFrame:
    radii = text[[name for name in text if name.startswith("spectral_radius_l")]]
    measured = (radii != "").all(axis="columns")
    return _steps(text, radii.where(measured, "nan").astype(float).max(axis="columns", skipna=False), measured)


def _steps(text: pd.DataFrame, radius: pd.Series, measured: pd.Series) -> pd.DataFrame:
    step, norm = text["step"].astype(int), text["grad_norm"].astype(float)
    return pd.DataFrame({"step": step, "grad_norm": norm, "radius": radius, "measured": measured})


def read_epochs(path: Path) -> Epochs:
    """Those of epochs.csv; without pandas, which takes milliseconds to begin, for the thousands of runs of a page."""
    try:
        with path.open(newline="") as file:
            head, *rows = csv.reader(file, strict=True)
        return _columns(head, rows)
    except (OSError, IndexError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); move the folder away to run it anew") from error


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Epochs:
    places = {name: head.index(name) for name in EPOCHS}
    return {name: [float(row[place] or "nan") for row in rows] for name, place in places.items()}


def thinned(steps: pd.DataFrame) -> pd.DataFrame:
    """The iterations that are kept: the rule at the head of this file."""
    if steps.empty:
        return steps
    width = -(-len(steps) // BINS)
    bins = np.arange(len(steps)) // width
    kept = {0, len(steps) - 1}
    for values in (steps["grad_norm"], steps["radius"].where(steps["measured"], -np.inf)):
        rank = pd.Series(values.to_numpy(float)).fillna(np.inf)
        kept |= set(rank.groupby(bins).idxmax())
    return steps.iloc[sorted(kept)]


def step_lines(steps: pd.DataFrame) -> str:
    """The CSV lines of a run's thinned iterations; a radius that was not computed is empty."""
    few = thinned(steps)
    radius = few["radius"].map(_number).where(few["measured"], "")
    return _joined([few["step"].map(str), few["grad_norm"].map(_number), radius])


def epoch_lines(epochs: Epochs) -> str:
    """The CSV lines of a run's epochs."""
    return _joined([map(_number, epochs[name]) for name in EPOCHS])


def _number(value: float) -> str:
    return f"{value:.6g}"


def _joined(columns: Iterable[Iterable[str]]) -> str:
    return "".join(",".join(fields) + "\n" for fields in zip(*columns, strict=True))


def path_of(file: Path, kind: str) -> Path:
    """Where the "steps" or "epochs" of the runs in a collected file are."""
    return file.parent / "curves" / f"{file.stem}.{kind}.csv.gz"


def packed(kind: str, curves: Mapping[str, str]) -> bytes:
    """The gzipped file of these curves, ordered by identity: the same curves give the same bytes."""
    lines = [f"identity,{','.join(KINDS[kind])}\n"]
    for identity in sorted(curves):
        lines += [f"{identity[:16]},{line}\n" for line in curves[identity].splitlines()]
    return gzip.compress("".join(lines).encode(), 9, mtime=0)


def read_curves(file: Path, kind: str) -> Curves:
    """The lines kept of each run, by the first 16 digits of its identity; none where there is no file of them."""
    path = path_of(file, kind)
    if not path.exists():
        return {}
    return dict(_read_curves(path, kind, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=8)
def _read_curves(path: Path, kind: str, written: int) -> Curves:
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_UNPACKED + 1)
        head, *lines = content.decode().splitlines()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); {REMEDY}") from None
    heading = f"identity,{','.join(KINDS[kind])}"
    if len(content) > _MAX_UNPACKED or head != heading:
        raise UserError(f"{path}: not a file of collected {kind} (it should begin with {heading}); {REMEDY}")
    curves: dict[str, list[str]] = {}
    for line in lines:
        identity, comma, rest = line.partition(",")
        if not comma or rest.count(",") != len(KINDS[kind]) - 1:
            raise UserError(f"{path}: damaged (a line of other than {len(KINDS[kind]) + 1} fields); {REMEDY}")
        curves.setdefault(identity, []).append(f"{rest}\n")
    return {identity: "".join(rest) for identity, rest in curves.items()}


def collected_steps(folder: str | Path) -> pd.DataFrame:
    """The thinned iterations of a collected run, as `read_steps` gives all of them."""
    lines = _lines_of(folder, "steps", "collect it anew from its run folder with: gruclip collect --curves NAME")
    text = pd.read_csv(io.StringIO(lines), names=list(STEPS), dtype=str, keep_default_na=False)
    measured = text["radius"] != ""
    return _steps(text, text["radius"].where(measured, "nan").astype(float), measured)


def collected_epochs(folder: str | Path) -> Epochs:
    """The epochs of a collected run, as `read_epochs` gives them."""
    lines = _lines_of(folder, "epochs", "collect it anew from its run folder with: gruclip collect")
    return _columns(EPOCHS, [line.split(",") for line in lines.splitlines()])


def _lines_of(folder: str | Path, kind: str, remedy: str) -> str:
    path = Path(folder).parent
    lines = read_curves(path, kind).get(collected.line_of(folder)["identity"][:16])
    if lines is None:
        raise UserError(f"{path_of(path, kind)}: holds no {kind} of {Path(folder).name}; {remedy}")
    return lines
