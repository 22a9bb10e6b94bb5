"""From the command line to a function, and from its exceptions to one line and an exit code.

What is slow to import (torch, pandas, Hydra) is imported by the commands that need it.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from gruclip.cli.arguments import BENCHMARKS, parser
from gruclip.errors import Interrupted, UserError

#: Exit codes. 0: done, every run recorded, failed and diverged ones too. 1: a bug of ours, with its traceback.
USER_ERROR, BROKEN_PIPE = 2, 141
#: And the signal's number: 130 for Ctrl-C, 143 for SIGTERM.
SIGNALLED = 128
#: What the system says of a device that takes nothing.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 2 for what the user can mend, told in one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, which its programs inherit, need not be there
    _accept_every_character()
    _announce()
    try:
        _check_folder()
        return _run(arguments)
    except BrokenPipeError:
        # The reader, `head` or a pager, has seen enough.
        _close_stdout()
        return BROKEN_PIPE
    except KeyboardInterrupt as error:
        known = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(f"gruclip: interrupted; {known.then}", file=sys.stderr)
        return SIGNALLED + known.signal
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else _too_long(error) or _explain(error)
        if message is None:
            raise
        print(f"gruclip: {_on_one_line(message)}", file=sys.stderr)
        return USER_ERROR


def _accept_every_character() -> None:
    """What the terminal's encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _announce() -> None:
    """Show on stderr what the library says before it does something that takes long."""
    logger, handler = logging.getLogger("gruclip"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("gruclip: %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _close_stdout() -> None:
    """Keep the interpreter from flushing once more into what takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the folder that this was started in is gone; go to one that exists") from None


def _on_one_line(message: str) -> str:
    """Without line breaks, and without characters that would steer a terminal."""
    shown = " ".join(message.split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in shown)


def _too_long(error: Exception) -> str | None:
    """Of a name that no file can have, wherever it was met; None for any other error."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    return f"{str(error.filename)[:60]}...: too long for a file's name; give a shorter one"


def _explain(error: Exception) -> str | None:
    """Hydra's words for bad input in one line; None for an error that is ours."""
    if "hydra" not in sys.modules:
        return None
    from gruclip.cli.explain import explain

    return explain(error)


def _run(arguments: list[str]) -> int:
    """The command's exit code. Raises `UserError` where standard output takes nothing; where it is closed nothing is
    asked of it."""
    try:
        try:
            return _command(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        # What a command writes to files is told by their names.
        if isinstance(error, BrokenPipeError) or error.filename is not None or error.errno not in NO_ROOM:
            raise
        _close_stdout()
        raise UserError(f"standard output: cannot be written ({error.strerror}); give it another place") from error


def _unrecognized(command: str, left: Sequence[str]) -> str:
    option = next((one for one in left if one.startswith("-")), None)
    if command == "reproduce" and option in ("-m", "--multirun"):
        return f"{option}: gruclip reproduce sweeps without it; leave it out"
    said = f"{option}: no such option of gruclip {command}" if option else f"unrecognized arguments: {' '.join(left)}"
    return f"{said}; see gruclip {command} --help"


def _command(arguments: list[str]) -> int:
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
    options, left = parser().parse_known_args(arguments)
    if options.command in ("train", "bench"):  # seen above where they come first
        raise UserError(f"{arguments[0]}: cannot stand before {options.command}; leave it out")
    if options.command == "data" and not any(one.startswith("-") for one in left):
        options.names += left  # argparse takes those behind an option for none
    elif left:
        raise UserError(_unrecognized(options.command, left))
    if options.command == "reproduce":
        from gruclip.cli.reproduce import reproduce

        return reproduce(options)
    from gruclip.cli import commands

    return int(getattr(commands, options.command)(options))
