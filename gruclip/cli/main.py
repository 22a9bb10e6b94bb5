"""From the command line to a function, and from its exceptions to one line and an exit code.

What is slow to import (torch, pandas, Hydra) is imported by the commands that need it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import gruclip
from gruclip.config import DATASETS
from gruclip.errors import Interrupted, UserError

TABLES = ("1", "2", "lr", "cells")
FIGURES = ("1", "2", "lr")
REPRODUCTIONS = ("table1", "table2", "figure1", "figure2", "lr", "cells", "quickstart")
BENCHMARKS = ("projection", "gru", "step", "stack", "sweep")

#: Exit codes. 0: done, every run recorded, failed and diverged ones too. 1: a bug of ours, with its traceback.
USER_ERROR, BROKEN_PIPE = 2, 141
#: And the signal's number: 130 for Ctrl-C, 143 for SIGTERM.
SIGNALLED = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 2 for what the user can mend, told in one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader, `head` or a pager, has seen enough; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt as error:
        print("gruclip: interrupted; the same command continues where it stopped", file=sys.stderr)
        return SIGNALLED + (error.signal if isinstance(error, Interrupted) else signal.SIGINT)
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else _explain(error)
        if message is None:
            raise
        print(f"gruclip: {_on_one_line(message)}", file=sys.stderr)
        return USER_ERROR


def _on_one_line(message: str) -> str:
    """Without line breaks, and without characters that would steer a terminal."""
    shown = " ".join(message.split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)


def _explain(error: Exception) -> str | None:
    """Hydra's words for bad input in one line; None for an error that is ours."""
    if "hydra" not in sys.modules:
        return None
    from gruclip.cli.explain import explain

    return explain(error)


def _run(arguments: list[str]) -> int:
    # These two have command lines of their own, which argparse would take apart.
    if arguments[:1] == ["train"]:
        from gruclip.cli.training import train

        return train(arguments[1:])
    if arguments[:1] == ["bench"] and arguments[1:2] and arguments[1] in BENCHMARKS:
        from importlib import import_module

        return int(import_module(f"gruclip.bench.{arguments[1]}").main(arguments[2:]))
    if "--version" in arguments and set(arguments) & {"-v", "--verbose"} and len(arguments) == 2:
        from gruclip.cli.version import describe

        print(describe())
        return 0
    options = _parser().parse_args(arguments)
    if options.command == "reproduce":
        from gruclip.cli.reproduce import reproduce

        return reproduce(options)
    from gruclip.cli import commands

    return int(getattr(commands, options.command)(options))


class _Parser(argparse.ArgumentParser):
    """Errors as `UserError`, one line without the page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gruclip", description="Spectral clipping for recurrent networks, and its experiments.")
    parser.add_argument("--version", action="version", version=f"gruclip {gruclip.__version__}")
    more = "with --version: also the revision, Python, torch, threads, and the compiled kernels in use"
    parser.add_argument("-v", "--verbose", action="store_true", help=more)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    train = "train a run, or with -m a sweep: gruclip train [-m] [+experiment=NAME] [+sweep=NAME] [SETTING=VALUE ...]"
    commands.add_parser("train", help=train, add_help=False)

    table = commands.add_parser("table", help="a table of the runs there are")
    table.add_argument("which", choices=TABLES)
    _add_source(table)
    table.add_argument("--format", default="md", choices=("md", "tex", "csv"))
    table.add_argument("--out", metavar="FILE", help="write it there and not to the terminal")

    figure = commands.add_parser("figure", help="a figure of the runs there are")
    figure.add_argument("which", choices=FIGURES)
    _add_source(figure)
    figure.add_argument("--format", default="png,pdf,svg", metavar="png,pdf,svg")
    figure.add_argument("--out", metavar="DIR", help="default: the experiment's folder")

    collect = commands.add_parser("collect", help="finished runs into the small files that the repository keeps")
    collect.add_argument(
        "--runs", metavar="DIR", nargs="+", help="folders with runs or collected files; default: outputs"
    )
    collect.add_argument("--experiment", metavar="NAME", nargs="+", default=[], help="default: all there are")
    collect.add_argument("--out", metavar="DIR", default="outputs/paper", help="default: outputs/paper")
    help_curves = "folders of runs whose iterations are kept beside those that figure 1 shows"
    collect.add_argument("--curves", metavar="NAME", nargs="+", default=[], help=help_curves)

    reproduce = commands.add_parser("reproduce", help="train the runs that are missing, then make the table or figure")
    reproduce.add_argument("which", choices=REPRODUCTIONS)
    reproduce.add_argument("overrides", nargs="*", help="as for train, e.g. +experiment=demo trainer.budget=short")

    evaluate = commands.add_parser("eval", help="the loss of a run's best epoch on a split")
    evaluate.add_argument("run", help="the run's folder")
    evaluate.add_argument("--split", default="test", choices=("train", "valid", "test"))
    evaluate.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))

    verify = commands.add_parser("verify", help="whether runs are what was written: checksums, records, rows")
    verify.add_argument("runs", nargs="+", metavar="DIR", help="a run's folder, or one that holds runs")

    data = commands.add_parser("data", help="the corpora: which there are, download them, check them")
    data.add_argument("action", choices=("list", "fetch", "verify"))
    data.add_argument("names", nargs="*", metavar="DATASET", help=f"of {', '.join(DATASETS)}; default: all")
    data.add_argument("--root", metavar="DIR", help="a folder with the corpora, looked into first")

    bench = commands.add_parser("bench", help="measure against the alternatives, side by side")
    bench.add_argument("which", choices=BENCHMARKS)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs",
        metavar="DIR",
        help="their output_dir, or a folder of collected runs; default: outputs and outputs/paper",
    )
    parser.add_argument("--experiment", metavar="NAME", help="default: the paper's for this table or figure")
