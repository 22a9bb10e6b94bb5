"""The tests that need a GPU, the smallest first: every failure is told at once, and none hides the next.

The tests run in a process of their own. One that hangs, ends its process or leaves the device unusable is noted, and
the rest run in a new process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]

#: Where tests that need a GPU are, or run on one; and what the names of those in the last file have in common.
FILES = (
    "tests/test_gpu.py",
    "tests/kernels/test_fused.py",
    "tests/kernels/test_gru_steps.py",
    "tests/kernels/test_program_kernels.py",
    "tests/kernels/test_graphs.py",
)
NAMED = "on_a_gpu"

#: Seconds after which a test is taken to hang.
HANGS_AFTER = float(os.environ.get("GRUCLIP_TEST_HANGS_AFTER", "25"))

#: After an error with one of these in its text the process cannot use the device any more.
LOST = ("CUDA error", "illegal memory access", "device-side assert", "unspecified launch failure")

Told = Callable[[str], object]


def size_of(test: str) -> int:
    """The largest number among a test's parameters, 0 without any."""
    return max(map(int, re.findall(r"\d+", test.partition("[")[2])), default=0)


class Reporter:
    """A plugin of pytest that orders the tests and writes a line for each to a file as it begins and as it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not item.nodeid.startswith(FILES[-1]) or NAMED in item.nodeid]
        items.sort(key=lambda item: size_of(item.nodeid))
        self._write(collected=[item.nodeid for item in items])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        self._write(begun=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not report.failed and not report.skipped:
            return
        self._write(test=report.nodeid, outcome=report.outcome, seconds=report.duration, text=report.longreprtext)
        if report.failed and any(sign in report.longreprtext for sign in LOST):
            pytest.exit("the device is lost to this process")

    def pytest_runtest_logfinish(self) -> None:
        faulthandler.cancel_dump_traceback_later()


def check(seconds: float, scratch: Path, tell: Told, tests: Sequence[str] = FILES, folder: Path = REPOSITORY) -> bool:
    """Run the tests, named from `folder`, for at most so many seconds; whether all of them passed.

    `tell` takes each result as a text.
    """
    end = time.monotonic() + seconds
    waiting, fine, turn = list(tests), True, 0
    while waiting and time.monotonic() < end:
        log = scratch / f"check-{turn}.jsonl"
        output = _run(waiting, log, end - time.monotonic(), folder)
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        collected = next((line["collected"] for line in lines if "collected" in line), None)
        if collected is None:
            tell(f"the tests cannot be collected:\n{output[-3000:]}")
            return False
        ended = [line for line in lines if "test" in line]
        for line in ended:
            text = f"\n{line['text'][-1500:]}" if line["outcome"] == "failed" else ""
            tell(f"{line['outcome']} in {line['seconds']:.2f} s: {line['test']}{text}")
        fine = fine and all(line["outcome"] == "passed" for line in ended)
        begun = [line["begun"] for line in lines if "begun" in line]
        if lost := [test for test in begun if test not in {line["test"] for line in ended}]:
            tell(f"failed: {lost[0]}\nended its process or hung:\n{output[-1500:]}")
            fine = False
        waiting, turn = [test for test in collected if test not in begun], turn + 1
    if waiting:
        tell(f"not begun in {seconds:.0f} s: {', '.join(waiting)}")
    return fine and not waiting


def _run(tests: Sequence[str], log: Path, seconds: float, folder: Path) -> str:
    """What pytest printed."""
    command = [sys.executable, "-m", "gruclip.bench.gpu_check", str(log), *tests]
    # Plugins of other packages are not asked for, and may not run with what this machine has.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "0"  # whatever tests/conftest.py takes the machine for
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        return f"{error.output or b''!r}"
    return done.stdout


if __name__ == "__main__":
    log, *tests = sys.argv[1:]
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[Reporter(Path(log))]))
