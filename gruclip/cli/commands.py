"""The commands that read what is there: one function each, from parsed arguments to an exit code."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gruclip.cli.arguments import REPRODUCTIONS, options_of, table_format
from gruclip.errors import MissingRuns, NoRuns, UserError
from gruclip.rules import plural
from gruclip.runs.files import write_whole
from gruclip.training.interrupts import held_back

if TYPE_CHECKING:
    from pandas import DataFrame

#: The paper's experiment for a table or figure.
EXPERIMENTS = {"2": "nottingham"}

#: Where runs are looked for when nothing is said: those trained here, and those collected in the repository.
OUTPUTS, PAPER = Path("outputs"), Path("outputs/paper")

Made = TypeVar("Made")

#: Between two looks of ``status --watch``.
WATCH_SECONDS = 2.0


def table(options: Namespace) -> int:
    """``gruclip table``"""
    from gruclip.report.tables import table as make_table

    def made(experiment: str, notes: list[str]) -> str:
        runs = _runs(_places(options.runs), experiment, _remedy("table", options.which, experiment), notes)
        return make_table(options.which, runs, table_format(options))

    text = _of_an_experiment(options.experiment, EXPERIMENTS.get(options.which, "ptb"), made)
    if options.out is None:
        print(text)
        return 0
    _write(Path(options.out), text if text.endswith("\n") else f"{text}\n")
    return 0


def _write(out: Path, content: str | bytes) -> None:
    """Whole, or what was there before stays; into a pipe or a device as it comes."""
    with writable(out):
        if out.exists() and not out.is_file():
            out.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            write_whole(out.resolve(), content)  # what a link names, and not in the link's place


@contextmanager
def writable(out: str | Path) -> Iterator[None]:
    """What the system says of a file that cannot be written, as the user's error."""
    if "\0" in str(out):
        raise UserError(f"--out {out}: cannot be written (a NUL byte in the name)")
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def figure(options: Namespace) -> int:
    """``gruclip figure``"""
    from gruclip.report.figures.cost import TIMED

    runs = _places(options.runs, TIMED if options.which == "2" else "")

    def drawn(experiment: str, notes: list[str]) -> None:
        out = Path(options.out) if options.out else runs[0] / experiment
        draw(options.which, runs, experiment, out, options.format.split(","), notes)

    _of_an_experiment(options.experiment, "ptb", drawn)
    return 0


def _of_an_experiment(named: str | None, usual: str, make: Callable[[str, list[str]], Made]) -> Made:
    """What `make` makes of the experiment that was named, or else of the paper's for it; where that has no runs for it,
    of another one that has. What it notes, and that, are said on stderr."""
    wrong: list[MissingRuns] = []
    for experiment in [named] if named else dict.fromkeys([usual, *experiments()]):
        notes = [f"of {experiment}, since there are no runs of {usual} for it: {wrong[0]}"] if wrong else []
        try:
            made = make(experiment, notes)
        except MissingRuns as error:
            wrong.append(error)
            continue
        for note in notes:
            print(f"gruclip: {note}", file=sys.stderr)
        return made
    # What runs that are there lack says more than that there are none.
    raise next((error for error in wrong if not isinstance(error, NoRuns)), wrong[0])


def report(options: Namespace) -> int:
    """``gruclip report``"""
    from gruclip.report.page import page

    places = _places(options.runs)

    def written(experiment: str, notes: list[str]) -> Path:
        runs = _runs(places, experiment, _remedy("table", "1", experiment), notes)
        out = Path(options.out) if options.out else Path(f"{experiment}.html")
        _write(out, page(experiment, runs, places, options.runs))
        return out

    print(_of_an_experiment(options.experiment, "ptb", written))
    return 0


def collect(options: Namespace) -> int:
    """``gruclip collect``"""
    from gruclip.report.collecting import collect as collect_runs

    places = [Path(place) for place in options.runs or [OUTPUTS]]
    for path, count, new, differing in collect_runs(places, options.experiment, Path(options.out), options.curves):
        print(f"{path}: {plural(count, 'run')}, {new} of them new")
        if differing:
            others = f"{differing} of these runs have other results than those kept in {path}, as on another machine"
            print(f"gruclip: {others} they may; that file keeps its own, --out FOLDER has yours", file=sys.stderr)
        if new and Path(options.out) == PAPER:
            remedy = "--out FOLDER keeps yours apart, git restore takes them out again"
            print(f"gruclip: {path} holds the results that the repository keeps; {remedy}", file=sys.stderr)
    return 0


def _places(runs: str | None, folder: str = "") -> list[Path]:
    """The place that was named, or else both where runs are; of runs that are kept apart their `folder` in each.

    Raises `UserError` where one was named that is not there.
    """
    if runs and not Path(runs).is_dir():
        raise UserError(f"--runs {runs}: there is no such folder")
    return [Path(runs)] if runs else [OUTPUTS / folder, PAPER / folder]


def _runs(places: Path | Sequence[Path], experiment: str, remedy: str, notes: list[str]) -> DataFrame:
    """The runs of an experiment; where nobody has named a place, `notes` say where they are from."""
    from gruclip.report.reading import read_runs

    if isinstance(places, Path) or len(places) == 1:
        return read_runs(places, experiment, remedy)
    differing: list[str] = []
    runs = read_runs(places, experiment, remedy, differing=differing)
    kept = int(runs["folder"].map(lambda folder: Path(folder).is_relative_to(places[1])).sum())
    if kept:
        notes.append(f"{experiment}: {plural(len(runs) - kept, 'run')} in {places[0]}, {kept} kept in {places[1]}")
    if differing:
        notes.append(
            f"{len(differing)} of the runs in {places[0]} have other results than those kept in {places[1]}, as on "
            f"another machine they may; shown are those in {places[0]}"
        )
    return runs


def draw(
    which: str,
    runs: Path | Sequence[Path],
    experiment: str,
    out: Path,
    formats: Sequence[str] = ("png", "pdf", "svg"),
    notes: list[str] | None = None,
) -> None:
    """Write a figure's files and print their paths."""
    from gruclip.report.figures import figure as make_figure

    frame = _runs(runs, experiment, _remedy("figure", which, experiment), [] if notes is None else notes)
    with writable(out):
        paths = make_figure(which, frame, out, formats)
    for path in paths:
        print(f"figure {which}: {path}")


def _remedy(kind: str, which: str, experiment: str) -> str:
    """What to do where there are no runs for a table or figure."""
    if experiment not in experiments():
        return f"there is no such experiment; there are {', '.join(experiments())}"
    name = f"{kind}{which}" if which.isdecimal() else which
    if name not in REPRODUCTIONS:
        return f"train them: gruclip train -m +experiment={experiment} ..."
    usual = EXPERIMENTS.get(which, "ptb") if kind == "table" else "ptb"
    return f"make them with: gruclip reproduce {name}{'' if experiment == usual else f' +experiment={experiment}'}"


def experiments() -> list[str]:
    return options_of("experiment")


def eval(options: Namespace) -> int:
    """``gruclip eval``"""
    with held_back():
        from gruclip.runs.trained import evaluate_run
    result = evaluate_run(Path(options.run), options.split, options.device, options.root)
    perplexity = f", perplexity {result['perplexity']:.2f}" if result.get("perplexity") is not None else ""
    print(f"{result['split']}: {result['loss']:.4f} {result['unit']}{perplexity}")
    return 0


def status(options: Namespace) -> int:
    """``gruclip status``"""
    from gruclip.report.status import status as status_of
    from gruclip.report.status import text

    places = [Path(place) for place in options.places] or [place for place in (OUTPUTS, PAPER) if place.is_dir()]
    if not places:
        raise UserError(f"{OUTPUTS}: no such folder; give an output_dir, e.g. gruclip status outputs")
    while True:
        found = [one for place in places if (one := status_of(place)).total or one.unreadable]
        if not found:
            raise UserError(f"{' and '.join(map(str, places))}: no runs there; train some first")
        shown = "\n\n".join(map(text, found))
        if options.watch and sys.stdout.isatty():
            shown = f"\x1b[H\x1b[2J{shown}"  # from the top of an empty screen
        print(shown, flush=True)
        if not options.watch or not any(one.training or one.waiting for one in found):
            return 0
        time.sleep(WATCH_SECONDS)


def sample(options: Namespace) -> int:
    """``gruclip sample``"""
    with held_back():
        from gruclip.runs.sample import sample as draw_sample
    folder = Path(options.run)
    drawn = draw_sample(folder, options.length, options.temperature, options.seed, options.prompt, options.root)
    out = Path(options.out) if options.out else None if drawn.roll is None else Path("sample.mid")
    suffix = ".txt" if drawn.roll is None else ".mid"
    if out is not None and out.suffix != suffix:
        raise UserError(f"--out {out}: this run's samples go into a {suffix} file")
    if out is None:
        print(drawn.text)
        return 0
    if drawn.roll is None:
        _write(out, f"{drawn.text}\n")
        return 0
    from gruclip.data.midi import midi_of
    from gruclip.report.figures.piano_roll import piano_roll

    _write(out, midi_of(drawn.roll, drawn.steps_per_beat))
    title = f"Sample, temperature {options.temperature:g}, seed {options.seed}"
    with writable(out):
        for path in (out, *piano_roll(drawn.roll, drawn.prompt_steps, title, out.with_suffix(""))):
            print(path)
    return 0


def verify(options: Namespace) -> int:
    """``gruclip verify``"""
    from gruclip.runs.verify import faults, run_folders

    folders = [folder for place in options.runs for folder in run_folders(Path(place))]
    found = [fault for folder in folders for fault in faults(folder)]
    for fault in found:
        print(fault)
    if found:
        raise UserError(f"verify: {plural(len(found), 'fault')} in {plural(len(folders), 'run')}, listed above")
    print(f"{plural(len(folders), 'run')}: as written")
    return 0


def data(options: Namespace) -> int:
    """``gruclip data list | fetch | verify | convert``"""
    if options.action == "convert":
        from gruclip.data.convert import check_target, convert

        if len(options.names) != 2:
            raise UserError("data convert: give two files: gruclip data convert CORPUS.pickle CORPUS.mat")
        if options.root is not None:
            raise UserError(f"--root {options.root}: does nothing beside convert; leave it out")
        source, target = map(Path, options.names)
        check_target(target)
        write_whole(target.resolve(), convert(source))
        print(target)
        return 0
    from gruclip.data import FILES, fetch, status

    names = options.names or list(FILES)
    found = [file for name in names for file in status(name, options.root)]
    if options.action == "fetch":
        for name in names:
            for path in fetch(name, options.root):
                print(f"{name}: {path}")
        return 0
    for name in names:
        if not FILES[name]:
            print(f"{name}: in Python's own library, no file needed")
    for file in found:
        print(f"{file.dataset}: {file.file.path}: {file.state}{f' at {file.location}' if file.location else ''}")
    wrong = [file for file in found if file.state != "verified"]
    if options.action == "verify" and wrong:
        names_ = ", ".join(f"{file.file.path} ({file.state})" for file in wrong)
        raise UserError(f"data verify: {names_}; `gruclip data fetch` downloads what is missing or says what to mend")
    return 0
