"""The command lines of the benches, and the state of the process that each starts from."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import torch

from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.kernels import compiled
from gruclip.kernels.memory import keep_freed_memory
from gruclip.model.device import choose_device, round_products


class Parser(argparse.ArgumentParser):
    """Errors as `UserError`, one line without the page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parser(bench: str, description: str, repetitions: int | None, default: str | None = None) -> Parser:
    """The options that all benches have; `default` says in words what `repetitions` is where it is None."""
    options = Parser(prog=f"gruclip bench {bench}", description=description)
    options.add_argument("--threads", type=positive, default=2, help="of each contestant; default: 2")
    options.add_argument("--repetitions", type=positive, default=repetitions, help=f"default: {default or repetitions}")
    options.add_argument("--out", type=Path, default=Path("outputs/bench"), metavar="DIR", help="default: %(default)s")
    return options


def refuse_idle(
    options: argparse.ArgumentParser, arguments: argparse.Namespace, names: Iterable[str], where: str
) -> None:
    """Raise `UserError` for one of these options that was given, and says nothing `where` it was."""
    for name in names:
        if getattr(arguments, name) != options.get_default(name):
            raise UserError(f"--{name}: does nothing {where}; leave it out")


def add_device(options: argparse.ArgumentParser, default: str) -> None:
    """``--device``, which `device_of` reads."""
    choices = ("auto", "cpu", "cuda")
    options.add_argument(
        "--device", choices=choices, default=default, help="auto: a GPU if there is one; default: %(default)s"
    )


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device that was asked for; `ConfigError` where it is not to be had."""
    return choose_device(RunConfig(device=arguments.device))


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: should be a whole number of at least 1")
    return int(text)


def number_above_0(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: should be a number above 0")
    return value


def fraction(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: should be a number from 0 to 1")
    return value


def _number(text: str) -> float:
    """NaN, which lies in no range, for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def shape(text: str) -> tuple[int, int, int]:
    """``T,B,n``"""
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text}: should be three whole numbers T,B,n")
    steps, batch, hidden = map(positive, parts)
    return steps, batch, hidden


def prepare(threads: int) -> None:
    """The same footing for every contestant: `threads` threads, freed memory kept, float32 that is no TF32, and kernels
    that none of them has to wait for."""
    keep_freed_memory()
    compiled.library()
    round_products("fp32")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
