"""What was read of run folders before, in the user's cache: so that ten thousand folders are read once.

A row is taken from here only where every record of its folder has the times, the size and the number on the disk
that it had when it was read, and the code that reads is the same.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from gruclip import config
from gruclip.data.files import cache_folder
from gruclip.errors import DataError
from gruclip.report import rows
from gruclip.report.rows import Row
from gruclip.runs import records

#: A record written this little before it was read could be written again under the same time.
_SETTLED_NS = 2_000_000_000

Stamp = tuple[tuple[int, ...], ...]


class Index:
    """Rows by folder and stamp, in one JSON file for each place; a file that cannot be used is one that is empty."""

    def __init__(self, root: Path) -> None:
        absolute = os.path.abspath(root)  # noqa: PTH100 (a link stays a link: rows carry the path as it was given)
        key = hashlib.sha256(f"{_code()}\n{root}\n{absolute}".encode()).hexdigest()[:24]
        try:
            cache = cache_folder()
        except DataError:  # there is none, and this is a file that cannot be used
            cache = Path(os.devnull)
        self._path = cache / "runs" / f"{key}.json"
        self._known: dict[str, tuple[list[list[int]], Row]] = _load(self._path)
        self._kept: dict[str, tuple[Stamp, Row]] = {}
        self._is_new = False

    def get(self, folder: str, stamp: Stamp) -> Row | None:
        stored = self._known.get(folder)
        return stored[1] if stored and stored[0] == [list(part) for part in stamp] else None

    def put(self, folder: str, stamp: Stamp, row: Row) -> None:
        if time.time_ns() - max(part[1] for part in stamp) > _SETTLED_NS:
            self._kept[folder] = (stamp, row)
            self._is_new = self._is_new or self.get(folder, stamp) is None

    def save(self) -> None:
        """Write what was put where something is new; a disk that does not take it costs time at the next reading."""
        if not self._is_new and len(self._kept) == len(self._known):
            return
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w") as file:
                file.write(json.dumps(self._kept))
            os.replace(partial, self._path)
        except OSError:
            with suppress(OSError):
                partial.unlink()


def _load(path: Path) -> dict[str, tuple[list[list[int]], Row]]:
    """The file's rows where it and its folder are this user's alone to write."""
    try:
        for place in (path.parent, path):
            status = place.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    well_formed = isinstance(content, dict) and all(
        isinstance(stored, list) and [type(part) for part in stored] == [list, dict] for stored in content.values()
    )
    return content if well_formed else {}


@functools.cache
def _code() -> str:
    """A sum of the code that makes a row of a folder."""
    files = [inspect.getsource(module) for module in (config, records, rows)]
    return hashlib.sha256("".join(files).encode()).hexdigest()
