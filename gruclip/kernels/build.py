"""The C++ beside this file compiled for this processor, and kept where nobody else can have put it.

A library is loaded into the process and runs as its user, so it is taken only from a folder that belongs to this user
and is writable by nobody else, as a plain file of this user's whose SHA-256 is the one written beside it when it was
compiled. Where there is no such folder, it is compiled into one that ends with the process.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCES = ("band.cpp", "dense.cpp", "dropout.cpp", "eigen.cpp", "gru.cpp", "ritz.cpp", "softmax.cpp", "thin.cpp")
HEADERS = ("band.h", "pairs.h", "panels.h", "thin.h", "vectors.h")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")

#: Age in seconds from which what a compilation left behind is that of a process that was killed.
LEFTOVER_SECONDS = 3600


class Built(NamedTuple):
    """A library that may be loaded."""

    path: Path
    sha256: str
    note: str | None  #: what was wrong with the place where it is usually kept


class UntrustedFolder(Exception):
    """Somebody else could have put a library there."""


def built(compiler: Sequence[str], anew: bool = False) -> Built:
    """The library for these sources, this processor, this compiler and torch's OpenMP runtime, compiled if need be.

    `anew`: what is kept is not taken. Raises OSError or `subprocess.SubprocessError` where it cannot be compiled.
    """
    name, note = f"{_key(compiler)}.so", None
    folder = cache_folder()
    if folder is None:
        folder, note = _folder_of_process(), "there is no home folder to keep the compiled kernels in"
    else:
        try:
            _make_private(folder)
        except (OSError, UntrustedFolder) as error:
            note = f"{error}; the compiled kernels are not kept there"
            folder = _folder_of_process()
    path = folder / name
    if anew or (digest := kept(path)) is None:
        digest = _compile(compiler, path)
    return Built(path, digest, note)


def cache_folder() -> Path | None:
    """Where libraries are kept for the user; None for one without a home. A relative name in XDG_CACHE_HOME counts for
    nothing, as the XDG specification has it: it would name a folder of whoever owns the current one."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(named).is_absolute():
        try:
            home = Path.home()
        except RuntimeError:
            return None
        if not home.is_absolute():
            return None
        named = str(home / ".cache")
    return Path(named) / "gruclip" / "native"


def kept(path: Path) -> str | None:
    """The SHA-256 of the library at `path`, if it is whole and this user's; None: it has to be compiled."""
    try:
        expected = _sum_file(path).read_text().strip()
        for file in (path, _sum_file(path)):
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                return None
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return None
    return found if found == expected else None


def _sum_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _make_private(folder: Path) -> None:
    """Make the folder, or see that it is this user's and that nobody else can write to it or to the one above."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for place in (folder, folder.parent):
        status = place.stat()
        if status.st_uid != os.geteuid():
            raise UntrustedFolder(
                f"{place} belongs to another user; remove it, or name a folder of yours in XDG_CACHE_HOME"
            )
        if status.st_mode & 0o022:
            raise UntrustedFolder(f"{place} can be written to by others; take that away with chmod go-w")
    for leftover in folder.iterdir():
        with suppress(OSError):
            if leftover.is_dir() and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover)


@functools.cache
def _folder_of_process() -> Path:
    """A folder of this process alone, removed at its end."""
    folder = tempfile.mkdtemp(prefix="gruclip-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _compile(compiler: Sequence[str], path: Path) -> str:
    """Compile to `path`, whole or not at all, whoever else does at the same time; the library's SHA-256."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        sources = [str(HERE / name) for name in SOURCES]
        command = [*compiler, *FLAGS, *sources, *_openmp_flags(), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        made.chmod(0o600)
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        summed = _sum_file(made)
        summed.write_text(f"{digest}\n")
        summed.chmod(0o600)
        for file in (made, summed):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        # Two compilations of the same sources may differ in a byte: between these two lines the pair may not match, and
        # whoever looks then compiles once more.
        made.replace(path)
        summed.replace(_sum_file(path))
    return digest


def _key(compiler: Sequence[str]) -> str:
    """What a library depends on: sources, processor, compiler, flags, OpenMP runtime."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256()
    texts = [(HERE / name).read_text() for name in (*SOURCES, *HEADERS)]
    for part in (*compiler, *FLAGS, version, _processor(), str(_openmp_runtime()), *texts):
        key.update(part.encode() + b"\0")
    return key.hexdigest()[:16]


def _openmp_flags() -> list[str]:
    """With torch's own OpenMP runtime: two of them, with a pool of threads each, would fight for the cores."""
    if platform.system() == "Darwin":
        return []  # Apple's compiler has no OpenMP: one thread
    runtime = _openmp_runtime()
    return ["-fopenmp"] if runtime is None else ["-fopenmp", str(runtime), f"-Wl,-rpath,{runtime.parent}"]


@functools.cache
def _openmp_runtime() -> Path | None:
    """The file of the OpenMP runtime that this process has loaded with torch."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    found = re.search(r"\S*/lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*$", maps.read_text(), re.MULTILINE)
    return None if found is None else Path(found.group())


def _processor() -> str:
    """What ``-march=native`` depends on: a home folder may be shared by machines of several kinds."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else platform.processor()
    lines = re.findall(r"^(?:model name|cpu family|model|flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
    return platform.machine() + "\n" + "\n".join(sorted(set(lines)))
