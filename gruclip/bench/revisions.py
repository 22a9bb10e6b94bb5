"""This checkout beside another revision of it: ``python -m gruclip.bench.revisions REVISION``.

Each runs in a process of its own, and they take turns, so that a noisy machine disturbs both alike: what a change costs
elsewhere than where it was looked for is seen before it lands. For a checkout with git, on a CPU; other work is to be
shut out.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

from gruclip.bench import revision_work
from gruclip.bench.options import Parser, positive
from gruclip.bench.output import number
from gruclip.bench.timing import Timing, shuffled
from gruclip.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
#: What this checkout is called.
HERE = "here"


def extract(revision: str, folder: Path) -> None:
    """Put the package of a revision into a folder. Raises `UserError` for one that there is not."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision, "gruclip"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except OSError as error:
        raise UserError(f"git: cannot be run ({error.strerror}); install it") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{revision}: no revision of {ROOT} ({''.join(said)}); see git log") from error
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(folder, filter="data")


class Worker:
    """A process with the code of one checkout, which calls what it is told to."""

    def __init__(self, checkout: Path, threads: int) -> None:
        # The one that waits takes no core from the other.
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "PASSIVE"}
        # -P: or the folder of that file would come before the checkout.
        command = [sys.executable, "-P", revision_work.__file__, str(threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )

    def seconds(self, name: str) -> float | None:
        """Of one call; None where this revision cannot."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{name}: its process has ended with {self._process.wait()}, as told above")
        return None if answer.strip() == "without" else float(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(workers: dict[str, Worker], name: str, repetitions: int) -> dict[str, Timing] | None:
    """What each takes; None where one of them cannot."""
    seconds: dict[str, list[float]] = {label: [] for label in workers}
    for turn in range(repetitions):
        for label in shuffled(workers, turn):
            took = workers[label].seconds(name)
            if took is None:
                return None
            seconds[label].append(took)
    return {label: Timing(tuple(taken)) for label, taken in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    options = Parser(prog="python -m gruclip.bench.revisions", description=__doc__)
    options.add_argument("revision", help="as git names it, e.g. HEAD or HEAD~10")
    options.add_argument("--repetitions", type=positive, default=15, help="default: 15")
    options.add_argument("--threads", type=positive, default=2, help="default: 2")
    names = list(revision_work.WORK)
    options.add_argument("--only", choices=names, metavar="WORK", nargs="+", default=names, help="; ".join(names))
    try:
        chosen = options.parse_args(arguments)
        with tempfile.TemporaryDirectory() as scratch:
            extract(chosen.revision, Path(scratch))
            workers = {chosen.revision: Worker(Path(scratch), chosen.threads), HERE: Worker(ROOT, chosen.threads)}
            try:
                print(f"{'median, ms':36}{chosen.revision:>12}{HERE:>8}  ratio, quartiles", flush=True)
                for name in chosen.only:
                    print(line(name, compare(workers, name, chosen.repetitions)), flush=True)
            finally:
                for worker in workers.values():
                    worker.close()
    except UserError as error:
        print(f"gruclip: {error}", file=sys.stderr)
        return 2
    return 0


def line(name: str, timings: dict[str, Timing] | None) -> str:
    """Of the table."""
    if timings is None:
        return f"{name:36}  not in both"
    before, now = timings.values()
    ratios = [mine / other for mine, other in zip(now.seconds, before.seconds, strict=True)]
    lower, _, upper = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    told = f"{now.ratio(before):.3f}, {lower:.3f} to {upper:.3f}"
    return f"{name:36}{number(before.median * 1e3):>12}{number(now.median * 1e3):>8}  {told}"


if __name__ == "__main__":
    raise SystemExit(main())
