"""Corpora of the user's own: a folder of texts; piano rolls in a MATLAB file or as a folder of MIDI files.

Their checksum is the SHA-256 of all that was read, so that a run is tied to it. Nothing in them is executed; what a
native parser does with a damaged file it does in another process.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from gruclip.data.files import expanded, read_bytes
from gruclip.data.isolated import read_mat
from gruclip.data.midi import read_midi
from gruclip.data.music import MusicCorpus
from gruclip.data.words import WordCorpus, read_text
from gruclip.errors import DataError

SPLITS = ("train", "valid", "test")
MIDI_SUFFIXES = (".mid", ".midi")

#: A file with its time of change and size, which make one that has changed be read again.
Stamped = tuple[Path, int, int]


def text(root: str | Path | None, vocabulary: int, unit: str) -> WordCorpus:
    """``train.txt``, ``valid.txt`` and ``test.txt`` in the folder `root`, as `words.read_text` has them.

    Raises `DataError` where one of them is not there, cannot be read, or is no text.
    """
    folder = _existing(root)
    if not folder.is_dir():
        raise DataError(f"dataset.root={root}: should be a folder with {', '.join(f'{split}.txt' for split in SPLITS)}")
    return _text(tuple(_stamped(folder / f"{split}.txt") for split in SPLITS), vocabulary, unit)


@functools.lru_cache(maxsize=8)
def _text(files: tuple[Stamped, ...], vocabulary: int, unit: str) -> WordCorpus:
    contents = {split: read_bytes(path) for split, (path, _, _) in zip(SPLITS, files, strict=True)}
    checksum = _checksum({f"{split}.txt": content for split, content in contents.items()})
    return read_text(str(files[0][0].parent), checksum, contents, vocabulary, unit)


def piano_roll(root: str | Path | None, steps_per_beat: int) -> MusicCorpus:
    """Tunes in `root`: a ``.mat`` of the corpora's form, or a folder with ``train``, ``valid``, ``test`` of MIDI files.

    Raises `DataError` where it is neither, where a split has no tune, and for a file that is not of its kind.
    """
    place = _existing(root)
    if not place.is_dir():
        suffix = place.suffix.lower()
        if suffix != ".mat":
            kinds = "a .mat file, or a folder with train/, valid/ and test/ of MIDI files"
            remedy = "; make a .mat of it with: gruclip data convert" if suffix in (".pickle", ".pkl") else ""
            raise DataError(f"dataset.root={root}: should be {kinds}{remedy}")
        return _mat(_stamped(place))
    files = []
    for split in SPLITS:
        try:
            found = sorted(path for path in (place / split).iterdir() if path.suffix.lower() in MIDI_SUFFIXES)
        except OSError as error:
            raise DataError(
                f"{place / split}: cannot be looked into ({error.strerror}); put MIDI files there"
            ) from None
        if not found:
            raise DataError(f"{place / split}: no MIDI files (.mid, .midi) there; give it at least one tune")
        files += [_stamped(path) for path in found]
    return _midi(place, tuple(files), steps_per_beat)


@functools.lru_cache(maxsize=8)
def _mat(file: Stamped) -> MusicCorpus:
    content = read_bytes(file[0])
    return read_mat(str(file[0]), hashlib.sha256(content).hexdigest(), content)


@functools.lru_cache(maxsize=8)
def _midi(root: Path, files: tuple[Stamped, ...], steps_per_beat: int) -> MusicCorpus:
    contents = {path: read_bytes(path) for path, _, _ in files}
    checksum = _checksum({str(path.relative_to(root)): content for path, content in contents.items()})
    tunes = {path: read_midi(str(path), content, steps_per_beat) for path, content in contents.items()}
    return MusicCorpus(
        str(root), checksum, {split: [tunes[path] for path in tunes if path.parent.name == split] for split in SPLITS}
    )


def _existing(root: str | Path | None) -> Path:
    if root is None:
        raise DataError("dataset.root=null: a corpus of your own; say where it lies")
    place = expanded("dataset.root", root)
    try:
        place.stat()
    except OSError as error:
        raise DataError(f"dataset.root={root}: cannot be read ({error.strerror}); name the corpus") from None
    return place


def _stamped(path: Path) -> Stamped:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); a corpus of your own needs it") from None
    return path, status.st_mtime_ns, status.st_size


def _checksum(contents: dict[str, bytes]) -> str:
    """One sum for files with their names."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items())]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
