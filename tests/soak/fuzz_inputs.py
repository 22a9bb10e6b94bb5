"""Odd bytes and odd words at every boundary: one line and exit code 2, or an answer; never a traceback, never a file.

Mutated ``.mat`` files and texts through the readers of `gruclip.data`, mutated run folders through ``table``,
``verify``, ``eval`` and ``train``, odd command lines through `gruclip.cli.main` with the training itself replaced.
Prints a table of what was tried and what was lost; exits with 1 if anything was. ``--examples 10000`` is the long
version.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from kills import sweep

from gruclip.cli.main import main as gruclip
from gruclip.config import RunConfig
from gruclip.data.files import FILES, read_checked
from gruclip.data.music import read_music
from gruclip.data.words import read_words
from gruclip.errors import DataError, UserError
from gruclip.training.runner import RunResult, train

# fmt: off
WORDS = [
    "train", "table", "figure", "eval", "verify", "data", "reproduce", "collect", "bench", "-m", "--help", "--version",
    "1", "2", "lr", "list", "seed=0", "seed=0,1", "optimizer=sgd", "optimizer=adam", "+experiment=ptb",
    "+sweep=table1", "optimizer.lr=", "optimizer.delta=", "optimizer.threshold=", "model.hidden_size=",
    "trainer.max_steps=", "seed=", "output_dir=", "experiment=", "schedule.factor=", "hydra.run.dir=",
    "+hydra.callbacks.x._target_=", "~seed", "--out", "--runs", "--experiment", "--split", "--format", "--cfg", "job",
    "--config-dir", "--experimental-rerun",
]
VALUES = [
    "", "0", "-1", "1e308", "1e-308", "nan", "inf", "null", "true", "[1,2]", "{a:1}", "range(0)", "range(3)", "'x'",
    '"', "../x", "/etc/x", "/proc/nope", "x" * 300, "a\0b", "\x1b[31m", "${oc.env:HOME}", "${", "\u202e", "é", "😀",
    "choice(",
]
# fmt: on


@dataclass
class Attack:
    name: str
    tried: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Cut, flipped, spliced, repeated or overwritten."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        where = chance.randrange(len(data) + 1)
        length = chance.choice((1, 4, 100, 5000))
        kind = chance.randrange(6)
        if kind == 0:
            del data[where:]
        elif kind == 1 and data:
            data[where % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 2:
            data[where : where + length] = chance.randbytes(min(length, 300))
        elif kind == 3:
            del data[where : where + length]
        elif kind == 4:
            data[where:where] = data[: min(length, 300)]
        else:
            data[where:where] = chance.choice((b"\0", b"\xff\xfe", b"\r\n", b"\xef\xbb\xbf", b"[" * 50, b"nan,inf,"))
    return bytes(data)


def readers(kind: str, source: bytes) -> Callable[[Attack, random.Random], None]:
    """One of the corpora's readers on mutated bytes: a corpus, or `DataError` in one line."""

    def attack(into: Attack, chance: random.Random) -> None:
        content = mutated(source, chance)
        try:
            if kind == "mat":
                # As `gruclip.data.load` does: scipy's reader, which some damaged files end with a segmentation
                # fault, gets to see only what has the registered checksum.
                Path("fuzzed.mat").write_bytes(content)
                read_music("fuzzed", "sum", read_checked(FILES["jsb_chorales"][0], Path("fuzzed.mat")))
            else:
                read_words("fuzzed", "sum", {"train": content, "valid": mutated(source, chance), "test": source})
        except DataError as error:
            into.refused += 1
            if "\n" in str(error).strip():
                into.lost.append(f"more than one line: {error!s:.200}")
        except Exception:
            into.lost.append(traceback.format_exc())
        finally:
            Path("fuzzed.mat").unlink(missing_ok=True)

    return attack


def files_here() -> set[Path]:
    return {path for path in Path.cwd().rglob("*") if path.is_file()}


def typed(arguments: list[str], into: Attack) -> None:
    """The command line in this process; what it leaves in the working folder or prints beyond a line is a loss."""
    before, err = files_here(), io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = gruclip(arguments)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        into.lost.append(f"{arguments}: {traceback.format_exc()}")
        return
    into.refused += code == 2
    lines = err.getvalue().count("\n")
    if code not in (0, 2) or (code == 2 and lines != 1) or "Traceback" in err.getvalue():
        into.lost.append(f"{arguments}: exit code {code}, {lines} lines: {err.getvalue()[:300]}")
    if code == 2 and files_here() != before:
        into.lost.append(f"{arguments}: left {files_here() - before}")


def as_if_trained(runs: Sequence[RunConfig], **_: object) -> list[RunResult]:
    """In the place of training: every run a success that left nothing."""
    return [RunResult(Path("nowhere"), "success", False, {}) for _ in runs]


def command_lines(into: Attack, chance: random.Random) -> None:
    arguments = [chance.choice(("train", "train", "table", "figure", "eval", "verify", "data", "reproduce"))]
    for _ in range(chance.randrange(5)):
        word = chance.choice(WORDS)
        arguments.append(word + chance.choice(VALUES) if word.endswith("=") or chance.random() < 0.1 else word)
    # A sweep is noted where its training begins: where nothing is trained there is nothing to note.
    training = mock.patch("gruclip.training.runner.train", as_if_trained)
    note = mock.patch("hydra_plugins.gruclip.sweeper.record_sweeps")
    with training, note, contextlib.suppress(FileNotFoundError):
        # Without training a result is missing; what counts is what comes before.
        try:
            typed(arguments, into)
        finally:
            for made in Path.cwd().iterdir():
                shutil.rmtree(made) if made.is_dir() else made.unlink()


def run_folders(source: Path) -> Callable[[Attack, random.Random], None]:
    def attack(into: Attack, chance: random.Random) -> None:
        folder = Path("outputs")
        shutil.copytree(source, folder)
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        victim = chance.choice(files)
        victim.write_bytes(mutated(victim.read_bytes(), chance))
        run = str(next(folder.glob("*/*")))
        command = chance.choice(
            (["table", "1", "--experiment", "demo"], ["verify", "outputs"], ["eval", run, "--device", "cpu"], ["train"])
        )
        try:
            if command == ["train"]:
                train(sweep(folder, (0,)), quiet=True)
            else:
                typed(command, into)
        except UserError as error:
            into.refused += 1
            if "\n" in str(error).strip():
                into.lost.append(f"more than one line: {error!s:.200}")
        except Exception:
            into.lost.append(f"{victim}: {traceback.format_exc()}")
        finally:
            shutil.rmtree(folder)

    return attack


@contextlib.contextmanager
def attacks(data: Path, place: Path) -> Iterator[dict[str, tuple[float, Callable[[Attack, random.Random], None]]]]:
    """Each with its share of the examples, in an empty working folder and with an empty cache."""
    train(sweep(place / "whole", (0,)), quiet=True)
    work, here = place / "work", Path.cwd()
    work.mkdir()
    os.chdir(work)
    try:
        with mock.patch.dict(os.environ, {"GRUCLIP_DATA": str(data)}):
            yield {
                "mutated .mat files": (0.25, readers("mat", (data / "music/JSB_Chorales.mat").read_bytes())),
                "mutated texts": (0.3, readers("text", (data / "ptb/ptb.valid.txt").read_bytes()[:20_000])),
                "mutated files of a run's folder": (0.3, run_folders(place / "whole")),
                "odd command lines": (0.15, command_lines),
            }
    finally:
        os.chdir(here)


def fuzz(examples: int, seed: int, data: Path) -> list[Attack]:
    chance, done = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="gruclip-fuzz-") as place, attacks(data, Path(place)) as all_of_them:
        for name, (share, attack) in all_of_them.items():
            into = Attack(name)
            for _ in range(max(1, round(share * examples))):
                into.tried += 1
                attack(into, chance)
            done.append(into)
    return done


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--examples", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--data", type=Path, default=os.environ.get("GRUCLIP_DATA"), help="default: $GRUCLIP_DATA")
    chosen, begun = options.parse_args(), time.monotonic()
    if chosen.data is None:
        options.error("--data: the folder with the corpora, or GRUCLIP_DATA in the environment")
    done = fuzz(chosen.examples, chosen.seed, Path(chosen.data).resolve())
    print("| attack | how often | refused in one line | lost |\n|---|---|---|---|")
    for attack in done:
        print(f"| {attack.name} | {attack.tried:,} | {attack.refused:,} | {len(attack.lost) or 'nothing'} |")
    print(f"\n{sum(attack.tried for attack in done):,} inputs in {time.monotonic() - begun:.0f} s, seed {chosen.seed}")
    for fault in dict.fromkeys(fault for attack in done for fault in attack.lost):
        print(fault)
    return 1 if any(attack.lost for attack in done) else 0


if __name__ == "__main__":
    sys.exit(main())
