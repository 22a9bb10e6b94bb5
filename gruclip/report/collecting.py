"""``gruclip collect``: finished run folders into the small files that are kept in the repository."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gruclip.errors import UserError
from gruclip.report import collected, curves, folders
from gruclip.report.collected import Record
from gruclip.report.explosions import count
from gruclip.report.figures.explosion import representatives
from gruclip.report.rows import Row, frame, in_file_order, merged
from gruclip.report.timing import condensed
from gruclip.runs.files import told_by_name, write_whole
from gruclip.runs.records import read_summary

#: Below the runs of another clone, what is kept there; and what this one keeps, no source of a folder of one's own.
KEPT, OWN = "paper", Path("outputs/paper")


@dataclass
class _File:
    """One collected file in the making: the runs that go into it, those already there first."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)  #: of collected rows, by their folders
    sources: list[Path] = field(default_factory=list)  #: the collected files that rows came from


def collect(
    places: Sequence[Path],
    experiments: Sequence[str],
    out: Path,
    step_names: Sequence[str],
) -> Iterator[tuple[Path, int, int, int]]:
    """Merge the finished runs in the `places` into ``out/EXPERIMENT.csv`` and ``out/curves/``.

    A run folder ``PLACE/SUB/EXPERIMENT/...`` goes into ``out/SUB/EXPERIMENT.csv``; a place may also hold collected
    files, itself or in ``paper/``, this repository's own only where that is named. No `experiments` are all of them.
    The iterations are kept of the runs that Figure 1 would show and of those named in `step_names`. Everything is read
    and checked before the first file is written; each is written whole or not at all. Yields each CSV file, its number
    of runs, how many of them are new, and how many were left out since they are kept with other results, as of another
    machine.

    Raises `UserError` where nothing is finished, for what cannot be read, where a run stands in two of the places with
    other results, and where the curves would grow beyond `curves.MAX_BYTES`.
    """
    files: dict[Path, _File] = {}
    for place in places:
        for relative, rows, source in _sources(place, out):
            if experiments and relative.stem not in experiments:
                continue
            file = files.setdefault(relative, _File(out / relative))
            if source is None:
                file.rows += [run for run in rows if run["status"] != "unfinished"]
                continue
            file.sources.append(source)
            for run, record in collected.read(source):
                file.rows.append(run)
                file.records[run["folder"]] = record
    made = [_made(file, step_names) for file in files.values()]
    if not any(file.rows for file in files.values()):
        where = ", ".join(map(str, places))
        raise UserError(f"{where}: no finished runs there{_of(experiments)}; train some, or name another with --runs")
    _check_names(step_names, made)
    _check_size(out, {path: data for one in made for path, data in one.contents.items()})
    for one in made:
        for path, data in one.contents.items():
            with told_by_name(path):
                if not path.exists() or path.read_bytes() != data:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path, data)
        yield one.path, one.count, one.new, one.differing


def _of(experiments: Sequence[str]) -> str:
    return f" of {', '.join(experiments)}" if experiments else ""


def _sources(place: Path, out: Path) -> Iterator[tuple[Path, list[Row], Path | None]]:
    """Where it goes below `out`, and the rows of run folders or the collected file itself."""
    if not place.is_dir():
        raise UserError(f"--runs {place}: there is no such folder")
    by_file: dict[Path, list[Row]] = {}
    for run in folders.read(place):
        by_file.setdefault(_relative(Path(run["folder"]).relative_to(place).parts, run["experiment"]), []).append(run)
    for relative, rows in by_file.items():
        yield relative, rows, None
    for path in sorted([*place.glob("*.csv"), *place.glob("*/*.csv")]):
        parts = path.relative_to(place).parts
        relative = Path(*(parts[1:] if parts[0] == KEPT else parts))
        if OWN.resolve() in path.resolve().parents and OWN.resolve() not in (place.resolve(), *place.resolve().parents):
            continue
        # Not what is kept there already; but files kept apart, in a folder below.
        if path.resolve() != (out / relative).resolve() and collected.looks_collected(path):
            yield relative, [], path


def _relative(parts: tuple[str, ...], experiment: str) -> Path:
    """The file of a run folder with these `parts` below its place: that of the folder named as its experiment."""
    depth = parts.index(experiment) if experiment in parts[:-1] else 0
    return Path(*parts[:depth], f"{parts[depth] if len(parts) > 1 else experiment}.csv")


@dataclass(frozen=True)
class _Made:
    path: Path
    count: int
    new: int
    differing: int
    contents: dict[Path, bytes]
    names: set[str]


def _made(file: _File, step_names: Sequence[str]) -> _Made:
    """The bytes of a collected file and of its curves, merged with what is there."""
    before = collected.read(file.path) if file.path.exists() else []
    records = {run["folder"]: record for run, record in before} | file.records
    differing: list[str] = []
    rows = in_file_order(merged([*(run for run, _ in before), *merged(file.rows)], differing))
    lines = [records.get(run["folder"]) or _record(run) for run in rows]
    contents = {file.path: collected.text(lines).encode()} if rows else {}
    named = [run for run, line in zip(rows, lines, strict=True) if line["run"] in step_names]
    # Of runs kept before, too, whose curves may be missing.
    folders_now = {run["identity"]: run for run in file.rows if run["folder"] not in differing}
    for kind, wanted in (("epochs", rows), ("steps", [*_shown(rows), *named])):
        kept: curves.Curves = {}
        for source in (*file.sources, file.path):
            kept |= curves.read_curves(source, kind)
        for run in wanted:
            if run["identity"][:16] not in kept and (curve := _curve(kind, folders_now.get(run["identity"], run))):
                kept[run["identity"][:16]] = curve
        if kept:
            contents[curves.path_of(file.path, kind)] = curves.packed(kind, kept)
    names = {line["run"] for line in lines}
    return _Made(file.path, len(rows), len(rows) - len(before), len(differing), contents, names)


def _record(run: Row) -> Record:
    folder = Path(run["folder"])
    numbers: dict[str, float | None] = {}
    for name, read in (("timing.csv", condensed), ("steps.csv", count)):
        numbers |= read(folder / name) if (folder / name).exists() else {}
    return collected.record(run, read_summary(folder), numbers)


def _shown(rows: list[Row]) -> list[Row]:
    """The runs whose iterations Figure 1 shows; none where it cannot be drawn of these runs."""
    if not rows:
        return []
    try:
        identities = {run["identity"] for run in representatives(frame(rows))[1]}
    except UserError:
        return []
    return [run for run in rows if run["identity"] in identities]


def _curve(kind: str, run: Row) -> str | None:
    """The lines of a run folder's curve; None where it has none, or was collected from elsewhere."""
    path = Path(run["folder"]) / f"{kind}.csv"
    if not path.exists():
        return None
    if kind == "steps":
        return curves.step_lines(curves.read_steps(path))
    return curves.epoch_lines(curves.read_epochs(path))


def _check_names(step_names: Sequence[str], made: Sequence[_Made]) -> None:
    unknown = [name for name in step_names if not any(name in one.names for one in made)]
    if unknown:
        raise UserError(f"--curves {unknown[0]}: no finished run has this name; give the name of a run's folder")


def _check_size(out: Path, contents: dict[Path, bytes]) -> None:
    for kind, most in curves.MAX_BYTES.items():
        ending = f".{kind}.csv.gz"
        sizes = {path: path.stat().st_size for path in out.rglob(f"curves/*{ending}")}
        sizes |= {path: len(data) for path, data in contents.items() if path.name.endswith(ending)}
        if (total := sum(sizes.values())) > most:
            largest = max(sizes, key=lambda path: sizes[path])
            fewer = "name fewer runs with --curves" if kind == "steps" else "collect fewer runs"
            raise UserError(
                f"{out}/curves: {kind} would be {total} bytes, at most {most} are kept; "
                f"{fewer}, or remove the largest, {largest} ({sizes[largest]} bytes)"
            )
