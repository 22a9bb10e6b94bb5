"""A corpus by its name: its files found or downloaded, checked, read once a process."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from gruclip.data import own
from gruclip.data.files import DataFile, download, expanded, files_of, locate, read_checked, remedy
from gruclip.data.music import MusicCorpus, read_music
from gruclip.data.words import WordCorpus, pydoc, read_words
from gruclip.errors import DataError


def load(
    name: str,
    root: str | Path | None = None,
    vocabulary: int = 10_000,
    unit: str = "word",
    steps_per_beat: int = 2,
    *,
    download: bool = True,
) -> WordCorpus | MusicCorpus:
    """The corpus `name`, from `root`, ``$GRUCLIP_DATA``, the user's cache, or, if `download`, the network.

    "text" and "piano_roll" are the user's own, in `root`: see `gruclip.data.own`, which takes the other arguments, all
    of them settings of ``dataset``. Of the others, `root` is a folder laid out as the paths in `FILES`, with one of
    them at least; what else it lacks is looked for in the other places. Raises `DataError` for an unknown name, a
    `root` with none of the files, a file that is nowhere to be had, that is not the one registered (by SHA-256), or
    that is not of the form it should have. Loaded corpora are kept and shared:
    do not write to their tensors.
    """
    if name == "text":
        return own.text(root, vocabulary, unit)
    if name == "piano_roll":
        return own.piano_roll(root, steps_per_beat)
    files = files_of(name)
    if root is not None and files:
        _check_root(name, root, files)
    found = [(file, _provide(file, root, download)) for file in files]
    return _read(name, tuple((file, place, place.stat().st_mtime_ns) for file, place in found))


def _check_root(name: str, root: str | Path, files: Sequence[DataFile]) -> None:
    """Raise `DataError` for a folder without any of the files: what was meant is not what would be read."""
    folder = expanded("dataset.root", root)
    if os.path.isdir(folder) and not any(os.path.isfile(folder / file.path) for file in files):  # noqa: PTH112, PTH113
        raise DataError(
            f"dataset.root={root}: holds nothing of {name}, such as {files[0].path}; name a folder that does, or leave "
            "it out (a corpus of your own is dataset=text or dataset=piano_roll)"
        )


def _provide(file: DataFile, root: str | Path | None, allow_download: bool) -> Path:
    place = locate(file, root)
    if place is not None:
        return place
    if not allow_download:
        raise DataError(f"{file.path}: not found (address: {file.url}); {remedy(file)}")
    return download(file)


@functools.lru_cache(maxsize=8)
def _read(name: str, files: tuple[tuple[DataFile, Path, int], ...]) -> WordCorpus | MusicCorpus:
    """The corpus in `files`, each with its place and time of change (which makes a changed file be read again)."""
    if not files:
        return pydoc()
    contents = [read_checked(file, place) for file, place, _ in files]
    checksum = hashlib.sha256("".join(file.sha256 for file, _, _ in files).encode()).hexdigest()
    if len(contents) == 1:
        return read_music(name, checksum, contents[0])
    return read_words(name, checksum, dict(zip(own.SPLITS, contents, strict=True)))
