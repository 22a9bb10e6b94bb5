"""The command lines of all commands but `train` and `bench`, which have their own: what may be typed, and its help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

import gruclip
from gruclip.choices import DATASETS, OWN_DATASETS
from gruclip.errors import UserError
from gruclip.rules import PLAIN_NAME

TABLES = {
    "1": "words by method",
    "2": "music by method",
    "lr": "by learning rate",
    "cells": "by recurrent cell",
    "differences": "between methods, seed by seed",
    "explosions": "below and above a spectral radius of 1",
    "cost": "milliseconds of an iteration by method",
}
FIGURES = {
    "1": "a run that explodes beside one that does not",
    "2": "seconds of an epoch, and what clipping takes of them",
    "lr": "loss by learning rate",
}
REPRODUCTIONS = ("table1", "table2", "figure1", "figure2", "lr", "cells", "quickstart")
#: What tables are written as.
FORMATS = ("md", "tex", "csv")
BENCHMARKS = ("projection", "gru", "step", "transformer", "stack", "sweep")


def options_of(group: str) -> list[str]:
    """The names of the files of a group in ``conf``."""
    found = (Path(path.name) for path in (files("gruclip.conf") / group).iterdir())
    return sorted(path.stem for path in found if path.suffix == ".yaml")


def own_sweeps() -> list[str]:
    """The files in ``conf/sweep`` that make nothing of the paper's: those that somebody has added. None where only the
    code is there, as on a machine that it was copied to."""
    try:
        return [name for name in options_of("sweep") if name not in (*REPRODUCTIONS, "learning_rate")]  # which is lr
    except ModuleNotFoundError:
        return []


class _Parser(argparse.ArgumentParser):
    """Errors as `UserError`, one line without the page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _meanings(choices: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {meaning}" for name, meaning in choices.items())


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="gruclip", description="Spectral clipping for recurrent networks, and its experiments.")
    top.add_argument("--version", action="version", version=f"gruclip {gruclip.__version__}")
    more = "with --version: also the revision, Python, torch, threads, and the compiled kernels in use"
    top.add_argument("-v", "--verbose", action="store_true", help=more)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    train = "train a run, or with -m a sweep: gruclip train [-m] [+experiment=NAME] [+sweep=NAME] [SETTING=VALUE ...]"
    commands.add_parser("train", help=train, add_help=False)

    table = commands.add_parser("table", help="a table of the runs there are")
    table.add_argument("which", choices=TABLES, help=_meanings(TABLES))
    _add_source(table)
    table.add_argument("--format", choices=FORMATS, help="default: that of FILE's name, or md")
    ends = _file(*(f".{name}" for name in FORMATS), ".txt")
    table.add_argument("--out", type=ends, metavar="FILE", help="write it there and not to the terminal")

    figure = commands.add_parser("figure", help="a figure of the runs there are")
    figure.add_argument("which", choices=FIGURES, help=_meanings(FIGURES))
    _add_source(figure)
    figure.add_argument("--format", default="png,pdf,svg", metavar="png,pdf,svg")
    figure.add_argument("--out", type=_place, metavar="DIR", help="default: the experiment's folder")

    report = commands.add_parser("report", help="an experiment as one HTML page, which opens from the disk")
    _add_source(report)
    report.add_argument("--out", type=_file(".html", ".htm"), metavar="FILE", help="default: EXPERIMENT.html")

    collect = commands.add_parser("collect", help="finished runs into the small files that the repository keeps")
    collect.add_argument(
        "--runs", type=_place, metavar="DIR", nargs="+", help="folders with runs or collected files; default: outputs"
    )
    collect.add_argument(
        "--experiment", type=_experiment, metavar="NAME", nargs="+", default=[], help="default: all there are"
    )
    collect.add_argument("--out", type=_place, metavar="DIR", default="outputs/paper", help="default: outputs/paper")
    help_curves = "folders of runs whose iterations are kept beside those that figure 1 shows"
    collect.add_argument("--curves", metavar="NAME", nargs="+", default=[], help=help_curves)

    reproduce = commands.add_parser("reproduce", help="train the runs that are missing, then make the table or figure")
    reproduce.add_argument("which", choices=(*REPRODUCTIONS, *own_sweeps()))
    reproduce.add_argument("overrides", nargs="*", help="as for train, e.g. +experiment=demo trainer.budget=short")

    evaluate = commands.add_parser("eval", help="the loss of a run's best epoch on a split")
    evaluate.add_argument("run", type=_place, help="the run's folder")
    evaluate.add_argument("--split", default="test", choices=("train", "valid", "test"))
    evaluate.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))

    moved = "the corpus, if it is not where the run had it"
    evaluate.add_argument("--root", type=_place, metavar="PATH", help=moved)

    status = commands.add_parser("status", help="where a sweep stands: finished, in training, waiting, left unfinished")
    status.add_argument(
        "places", nargs="*", type=_place, metavar="DIR", help="an output_dir; default: outputs and outputs/paper"
    )
    status.add_argument("--watch", action="store_true", help="look again every two seconds until nothing is trained")

    sample = commands.add_parser("sample", help="text or a tune (MIDI, and its picture) drawn from a run's best epoch")
    sample.add_argument("run", type=_place, help="the run's folder")
    sample.add_argument("--length", type=int, default=200, metavar="N", help="tokens or time steps; default: 200")
    sample.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default: 1")
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    sample.add_argument("--root", type=_place, metavar="PATH", help=moved)
    sample.add_argument("--prompt", metavar="TEXT", help="a text, or TUNE:STEPS, the start of a tune of the test split")
    sample.add_argument(
        "--out", type=_place, metavar="FILE", help="a .txt, or a .mid; default: the terminal, or sample.mid"
    )

    verify = commands.add_parser("verify", help="whether runs are what was written: checksums, records, rows")
    verify.add_argument("runs", nargs="+", type=_place, metavar="DIR", help="a run's folder, or one that holds runs")

    data = commands.add_parser("data", help="the corpora: which there are, download them, check them")
    data.add_argument("action", choices=("list", "fetch", "verify", "convert"))
    names = ", ".join(name for name in DATASETS if name not in OWN_DATASETS)
    data.add_argument(
        "names", nargs="*", metavar="DATASET", help=f"of {names}; default: all. convert: a .pickle, a .mat"
    )
    data.add_argument("--root", type=_place, metavar="DIR", help="a folder with the corpora, looked into first")

    bench = commands.add_parser("bench", help="measure against the alternatives, side by side")
    bench.add_argument("which", choices=BENCHMARKS)
    return top


def _place(text: str) -> str:
    """A file's or folder's name as it was typed, which an unset variable in a script would leave empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a name, or leave it out")
    return text


def _file(*endings: str) -> Callable[[str], str]:
    """A file's name that ends with one of these, or with none at all, as a pipe's does."""

    def name(text: str) -> str:
        ending = Path(_place(text)).suffix.lower()
        if ending and ending not in endings:
            raise argparse.ArgumentTypeError(f"{text}: should end with {' or '.join(endings)}")
        return text

    return name


def table_format(options: argparse.Namespace) -> str:
    """Which of `FORMATS` was asked for. Raises `UserError` where ``--format`` and the file's name differ."""
    named = Path(options.out or "").suffix.lower()[1:]
    if named not in FORMATS:
        return options.format or FORMATS[0]
    if options.format not in (None, named):
        raise UserError(f"--out {options.out}: --format {options.format} is another format; leave out one of the two")
    return named


def _experiment(text: str) -> str:
    if not PLAIN_NAME.holds(text):
        raise argparse.ArgumentTypeError(f"{text!r}: should be {PLAIN_NAME.right}")
    return text


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        type=_place,
        metavar="DIR",
        help="their output_dir, or a folder of collected runs; default: outputs and outputs/paper",
    )
    parser.add_argument(
        "--experiment",
        type=_experiment,
        metavar="NAME",
        help="default: the paper's for this table or figure, or one that has runs for it",
    )
