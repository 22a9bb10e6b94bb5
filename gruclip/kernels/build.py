"""How a compiler makes a library of the C++ beside this file: for this processor, and for a wheel.

Imports the standard library alone, since setup.py runs it where neither gruclip nor torch is installed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
NAMES = ("band", "basis", "dense", "dropout", "eigen", "gru", "masks", "ritz", "softmax", "thin")
SOURCES = tuple(f"{name}.cpp" for name in NAMES)
HEADERS = (
    "arrays.h",
    "band.h",
    "householder.h",
    "kept.h",
    "narrow.h",
    "pairs.h",
    "panels.h",
    "sturm.h",
    "tall.h",
    "thin.h",
    "vectors.h",
)
#: Functions begin with a cache line: else a change in one moves the others, and an inner loop may take a tenth longer.
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-falign-functions=64",
    "-shared",
    "-fPIC",
)


class Level(NamedTuple):
    """Instructions that a prebuilt library uses: the compiler's options, and the processor's flags for them."""

    options: tuple[str, ...]
    processor: frozenset[str]


_V3 = frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
#: Of a wheel for x86-64 Linux, the best first; the flags as /proc/cpuinfo names them.
LEVELS = {
    "x86-64-v4-bf16": Level(("-march=x86-64-v4", "-mavx512bf16"), _V4 | {"avx512_bf16"}),
    "x86-64-v4": Level(("-march=x86-64-v4",), _V4),
    "x86-64-v3": Level(("-march=x86-64-v3",), _V3),
}


def compiler() -> list[str]:
    """$CXX, or c++. Raises ValueError for a quotation without end."""
    return shlex.split(os.environ.get("CXX") or "c++")


def key(command: list[str]) -> str:
    """What the library for this processor depends on: sources, processor, compiler, flags, OpenMP runtime."""
    made = hashlib.sha256()
    texts = [(HERE / name).read_text() for name in (*SOURCES, *HEADERS)]
    for part in (*command, *FLAGS, _run([*command, "--version"]), _processor(), str(openmp_runtime()), *texts):
        made.update(part.encode() + b"\0")
    return made.hexdigest()[:16]


def compile_for_this_processor(made: Path, command: list[str]) -> None:
    """Raises OSError or `subprocess.SubprocessError` where it cannot be compiled."""
    _run([*command, *FLAGS, *_paths(), *_openmp_flags(), "-o", str(made)])


def compile_for_level(made: Path, command: list[str], level: Level) -> None:
    """A library that names no OpenMP runtime: its calls are bound, when it is loaded, to the one that torch brought.

    Raises OSError or `subprocess.SubprocessError` where it cannot be compiled.
    """
    flags = [flag for flag in FLAGS if flag not in ("-march=native", "-shared")]
    with tempfile.TemporaryDirectory() as scratch:
        _run([*command, *flags, *level.options, "-fopenmp", "-c", *_paths()], scratch)
        # Without -fopenmp, which would link the compiler's own runtime.
        objects = [f"{Path(name).stem}.o" for name in SOURCES]
        _run([*command, "-shared", *objects, "-o", str(made.absolute())], scratch)


def prebuild(folder: Path) -> None:
    """Compile for every level into `folder`, which is made; all of them or an exception.

    Raises OSError, ValueError or `subprocess.SubprocessError`.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise OSError(f"prebuilt for x86-64 Linux alone, and this is {platform.system()} on {platform.machine()}")
    command = compiler()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        made = {name: Path(scratch) / f"{name}.so" for name in LEVELS}
        list(pool.map(lambda name: compile_for_level(made[name], command, LEVELS[name]), LEVELS))
        folder.mkdir(parents=True)
        for name, path in made.items():
            content = path.read_bytes()
            (folder / file_name(name, content)).write_bytes(content)


def file_name(stem: str, content: bytes) -> str:
    """Of a library: STEM-SHA256.so, of its content."""
    return f"{stem}-{hashlib.sha256(content).hexdigest()}.so"


def levels_of(flags: Iterable[str]) -> list[str]:
    """The levels that a processor with these flags can run, the best first."""
    return [name for name, level in LEVELS.items() if level.processor <= set(flags)]


def processor_flags() -> list[str]:
    """What this processor and its operating system can do, by Linux's names; none elsewhere."""
    found = re.search(r"^flags\s*:(.*)$", _processor(), re.MULTILINE)
    return found.group(1).split() if found else []


@functools.cache
def openmp_runtime() -> Path | None:
    """The file of the OpenMP runtime that this process has loaded with torch."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    # From the first slash on: a folder's name may have spaces.
    found = re.search(r"/.*/lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*$", maps.read_text(), re.MULTILINE)
    return None if found is None else Path(found.group())


def _openmp_flags() -> list[str]:
    """With torch's own OpenMP runtime: two of them, with a pool of threads each, would fight for the cores."""
    if platform.system() == "Darwin":
        return []  # Apple's compiler has no OpenMP: one thread
    runtime = openmp_runtime()
    if runtime is None:
        return ["-fopenmp"]
    # Each word for the linker by itself: -Wl would cut a folder's name at its commas.
    return ["-fopenmp", str(runtime), "-Xlinker", "-rpath", "-Xlinker", str(runtime.parent)]


def _processor() -> str:
    """What ``-march=native`` depends on: a home folder may be shared by machines of several kinds."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else platform.processor()
    lines = re.findall(r"^(?:model name|cpu family|model|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
    return platform.machine() + "\n" + "\n".join(sorted(set(lines)))


def _paths() -> list[str]:
    return [str(HERE / name) for name in SOURCES]


def _run(command: list[str], folder: str | None = None) -> str:
    """Its output. In a session of its own, where a terminal's Ctrl-C is for gruclip to act on."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, start_new_session=True)
    return done.stdout
