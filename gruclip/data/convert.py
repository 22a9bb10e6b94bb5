"""The music corpora's widely used ``.pickle`` form as the ``.mat`` form that gruclip reads.

The only place where a pickle is looked at, and never by the runner: every class or function that the file names is
refused before it is looked up, so that what is left of the format builds numbers, texts, lists and dictionaries.
"""

from __future__ import annotations

import io
import pickle
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import scipy  # and `scipy.io` where it is used: 0.3 s, which no run on words needs

from gruclip.data.files import read_bytes
from gruclip.data.midi import KEYS, LOWEST
from gruclip.data.music import CELLS
from gruclip.errors import DataError

#: Of a ``.mat``: its first 116 bytes are a text, which begins so.
HEAD = b"MATLAB 5.0 MAT-file, by gruclip data convert"


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}; a corpus is plain lists of numbers")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside itself")


def check_target(target: Path) -> None:
    """Raise `DataError` where no ``.mat`` can be written."""
    if target.suffix.lower() != ".mat":
        raise DataError(f"{target}: should end with .mat")
    if not target.parent.is_dir():
        raise DataError(f"{target}: cannot be written (there is no folder {target.parent}); make it first")


def convert(source: Path) -> bytes:
    """The ``.mat`` of a pickled dictionary of ``train``, ``valid``, ``test``: tunes, time steps, note numbers.

    Of the same corpus the same bytes.

    Raises `DataError` for anything else, for a note that is no key of a piano (21 to 108), and for a file that cannot
    be read.
    """
    content = read_bytes(source)
    try:
        corpus = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # of whatever kind the format's own checks raise
        cause = " ".join(str(error).split())[:60] or type(error).__name__  # some quote the file
        raise DataError(f"{source}: not a pickled corpus ({cause})") from error
    if not isinstance(corpus, dict) or not set(CELLS) <= corpus.keys():
        raise DataError(f"{source}: not a pickled corpus (a dictionary of {', '.join(CELLS)})")
    cells = {}
    for split, cell in CELLS.items():
        tunes = corpus[split]
        if not isinstance(tunes, list) or not tunes:
            raise DataError(f"{source}: the {split} split is no list of tunes, or empty")
        cells[cell] = np.empty((1, len(tunes)), dtype=object)
        for number, tune in enumerate(tunes):
            cells[cell][0, number] = _roll(f"{source}: tune {number} of {split}", tune)
    made = io.BytesIO()
    scipy.io.savemat(made, cells, do_compression=True)
    # At its head scipy writes the time, with which one corpus converted twice would make two of each run.
    return HEAD.ljust(116) + made.getvalue()[116:]


def _roll(where: str, tune: Any) -> np.ndarray:
    if not isinstance(tune, list) or not tune:
        raise DataError(f"{where} is no list of time steps, or empty")
    roll = np.zeros((len(tune), KEYS), dtype=np.uint8)
    for step, notes in enumerate(tune):
        if not isinstance(notes, Iterable):
            raise DataError(f"{where}: step {step} is no list of notes")
        for note in notes:
            if not isinstance(note, int | float) or not LOWEST <= note < LOWEST + KEYS or note != int(note):
                raise DataError(
                    f"{where}: step {step} has {reprlib.repr(note)}, which is no key of a piano (21 to 108)"
                )
            roll[step, int(note) - LOWEST] = 1
    return roll
