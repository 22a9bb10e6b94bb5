"""The folder that keeps compiled kernels for later processes, and the check of what lies there before it is loaded.

To load a library is to run it. So it comes from a folder that belongs to this user and that nobody else can write to,
and its content must have the checksum that its name says: ``KEY-SHA256.so``. A name and its content arrive together, by
one renaming, so that a process that is killed, or a second one that does the same, leaves nothing half done.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gruclip.kernels.build import file_name

#: Seconds after which the folder of a compilation is that of one that was killed; the slowest takes a minute.
ABANDONED = 3600
#: What such a folder's name begins with; the second: in earlier versions.
SCRATCH = ("building-", "tmp")


class UntrustedError(OSError):
    """Nothing is loaded from this folder; the message says why, and what to do."""


def root() -> Path:
    """The user's cache: ``$XDG_CACHE_HOME`` if that is an absolute path, as its specification says, else ``~/.cache``.

    Raises `UntrustedError` where there is no home.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named
    try:
        home = Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():
        raise UntrustedError("this user has no home folder to keep them in; set XDG_CACHE_HOME to a folder of yours")
    return home / ".cache"


def folder() -> Path:
    """The folder of the kernels, made if need be, and this user's alone.

    Raises `UntrustedError` where it is not, and OSError where it cannot be made.
    """
    base = root()
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = base / "gruclip" / "native"
    for one in (path.parent, path):
        one.mkdir(mode=0o700, exist_ok=True)
        wrong = _not_ours(one.stat())
        if wrong:
            raise UntrustedError(
                f"{one} {wrong}; remove it, or set XDG_CACHE_HOME to a folder that nobody else can write to"
            )
    return path


def fault(library: Path) -> str | None:
    """Why a library of that folder must not be loaded; None where nothing is wrong with it."""
    try:
        with open(library, "rb", opener=_no_link) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return "is not a regular file"
            return _not_ours(status) or damage(library.name, file.read())
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def damage(name: str, content: bytes) -> str | None:
    """What is wrong with a library's content, by the checksum in its name."""
    return None if file_name(name.rpartition("-")[0], content) == name else "is damaged: its checksum is another one"


def store(where: Path, key: str, compile_to: Callable[[Path], None]) -> Path:
    """Compile a library and move it to its place; it is on the disk before it has its name."""
    with tempfile.TemporaryDirectory(prefix=SCRATCH[0], dir=where) as scratch:
        made = Path(scratch) / "made.so"
        compile_to(made)
        made.chmod(0o600)
        path = where / file_name(key, made.read_bytes())
        _to_disk(made)
        made.replace(path)
    _to_disk(where)
    return path


def remove_leftovers(where: Path) -> None:
    """Folders of compilations that were killed."""
    for path in where.iterdir():
        if not path.name.startswith(SCRATCH):
            continue
        try:
            status = path.lstat()
        except FileNotFoundError:  # another process's, done by now
            continue
        if stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _not_ours(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"belongs to another user (uid {status.st_uid})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written to by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _no_link(path: str, flags: int) -> int:
    # Nor to wait, should it be a pipe.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
