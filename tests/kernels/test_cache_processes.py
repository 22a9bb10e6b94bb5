"""Processes that compile the kernels at once, or are killed meanwhile, leave a cache that the next one can use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gruclip.kernels import compiled

#: A compiler that takes a second and gives what has been compiled before.
COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo one && exit
while [ "$1" != -o ]; do shift; done
echo x >>COUNT
sleep SECONDS
cp LIBRARY "$2"
"""
LOAD = "from gruclip.kernels import compiled; assert compiled.library() is not None; print(compiled.loaded().file)"


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The kernels, compiled."""
    where = compiled.loaded()
    assert where.file is not None, where
    return where.file.read_bytes()


def processes(tmp_path: Path, whole: bytes, seconds: float, count: int) -> list[subprocess.Popen[str]]:
    """So many that load the kernels at once, with a compiler that takes so long."""
    (tmp_path / "whole.so").write_bytes(whole)
    compiler = tmp_path / "compiler"
    text = COMPILER.replace("LIBRARY", str(tmp_path / "whole.so")).replace("SECONDS", str(seconds))
    compiler.write_text(text.replace("COUNT", str(tmp_path / "count")))
    compiler.chmod(0o755)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": str(compiler)}
    command = [sys.executable, "-W", "error", "-c", LOAD]
    return [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(count)
    ]


def test_two_processes_that_compile_at_once_both_end_with_the_kernels(tmp_path: Path, whole: bytes) -> None:
    both = processes(tmp_path, whole, 4, 2)
    paths = {one.communicate()[0].strip() for one in both}
    assert [one.returncode for one in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "x\nx\n"  # or they did not meet
    (path,) = paths
    assert list((tmp_path / "cache/gruclip/native").iterdir()) == [Path(path)]


def test_a_process_killed_while_it_compiles_leaves_nothing_that_is_loaded(tmp_path: Path, whole: bytes) -> None:
    (one,) = processes(tmp_path, whole, 60, 1)
    folder = tmp_path / "cache/gruclip/native"
    end = time.monotonic() + 60
    while not (tmp_path / "count").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(one.pid, signal.SIGKILL)
    one.communicate()
    (left,) = folder.iterdir()
    assert left.name.startswith("building-")
    (following,) = processes(tmp_path, whole, 0, 1)
    path = Path(following.communicate()[0].strip())
    assert following.returncode == 0
    assert sorted(folder.iterdir()) == sorted((left, path))
