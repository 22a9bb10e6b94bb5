"""Piano rolls: tunes as binary matrices, time steps x 88 keys (MIDI 21-108), from a MATLAB file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # and `scipy.io` where it is used: 0.3 s, which no run on words needs
import torch

from gruclip.data.midi import KEYS
from gruclip.errors import DataError

CELLS = {"train": "traindata", "valid": "validdata", "test": "testdata"}


@dataclass(frozen=True)
class MusicCorpus:
    """Tunes in three splits."""

    name: str
    checksum: str  #: SHA-256 (hex) of what it was read from
    splits: dict[str, list[torch.Tensor]]  #: "train", "valid", "test": each tune uint8, (time steps, 88)

    @property
    def unit(self) -> str:
        return "nats per time step"

    @property
    def num_outputs(self) -> int:
        return KEYS


def read_music(name: str, checksum: str, content: bytes) -> MusicCorpus:
    """The corpus in a MATLAB file (before version 7.3) with cell arrays ``traindata``, ``validdata``, ``testdata``.

    Each cell holds a tune, time steps x 88, zeros and ones. Raises `DataError` for anything else.
    """
    try:
        cells = scipy.io.loadmat(io.BytesIO(content))
    except Exception as error:  # of whatever kind the parser raises for bytes that are no such file
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: not a MATLAB file that can be read ({cause}); save it in version 5 to 7") from error
    splits = {}
    for split, cell in CELLS.items():
        if cell not in cells or cells[cell].dtype != object:
            raise DataError(f"{name}: no cell array {cell!r}; a piano roll file has {', '.join(CELLS.values())}")
        if cells[cell].size == 0:
            raise DataError(f"{name}: the {split} split ({cell}) is empty; give it at least one tune")
        splits[split] = [_tune(f"{name}: tune {i} of {cell}", roll) for i, roll in enumerate(cells[cell].ravel())]
    return MusicCorpus(name, checksum, splits)


def _tune(where: str, roll: Any) -> torch.Tensor:
    if not isinstance(roll, np.ndarray) or roll.ndim != 2 or roll.dtype.kind not in "buif":
        raise DataError(f"{where} is not a matrix of numbers; it should be time steps x {KEYS}")
    if len(roll) == 0:
        raise DataError(f"{where} has no time steps; leave empty tunes out")
    if roll.shape[1] != KEYS:
        raise DataError(f"{where} is {roll.shape[1]} wide; it should be time steps x {KEYS}, MIDI notes 21 to 108")
    strange = np.asarray(roll[(roll != 0) & (roll != 1)])
    if strange.size:
        raise DataError(f"{where} holds the value {strange[0]:g}; a note is 1 where it sounds and 0 where not")
    return torch.from_numpy(roll.astype(np.uint8))
