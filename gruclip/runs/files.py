"""Files written whole and durably, or not at all; what the disk refuses is told in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gruclip.errors import UserError

#: Ends the name of a file that is being written; one that is left behind belongs to a process that was killed.
PARTIAL = ".partial"


@contextmanager
def told_by_name(path: Path) -> Iterator[None]:
    """An error of the file system as a `UserError` that names the path, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise UserError(f"{path}: cannot be written ({cause}); mend that, and start the same command again") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Put `content` under `path`: whole and on the disk when this returns, and the file that was there if it fails.

    Raises `UserError` where the disk or the folder does not take it.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}{PARTIAL}")
    with told_by_name(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                sync(file.fileno())
            os.replace(partial, path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            raise
        sync_folder(path.parent)


def sync(descriptor: int) -> None:
    """Bring what was written to the disk, so that a power cut keeps the order in which files were written."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk: a rename is there after a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network file systems do not take it for folders, and keep names in order themselves.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written; to be called by the one that holds the folder's lock."""
    for place in (folder, folder / "checkpoint"):
        for leftover in place.glob(f".*{PARTIAL}"):
            with suppress(OSError):
                leftover.unlink()
