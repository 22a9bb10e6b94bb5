"""A user's ``.mat`` file read in another process: scipy's parser, native code, crashes on some damaged ones."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import torch

from gruclip.data.music import CELLS, MusicCorpus, read_music
from gruclip.errors import DataError

#: What the other process writes on stdout: the tunes of `read_music`, packed into one ``.npz``; or, and then it ends
#: with this code, what is wrong with them. On stderr may be warnings of the parser's.
REFUSED = 3
_CODE = f"""
import sys
from gruclip.data.isolated import pack
from gruclip.errors import DataError
try:
    sys.stdout.buffer.write(pack(sys.argv[1], sys.stdin.buffer.read()))
except DataError as error:
    sys.stdout.buffer.write(str(error).encode(errors="surrogateescape"))
    sys.exit({REFUSED})
"""


def read_mat(name: str, checksum: str, content: bytes) -> MusicCorpus:
    """`music.read_music`, which a damaged file cannot take this process down with; `DataError` as there."""
    command = [sys.executable, "-P", "-c", _CODE, name]
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    if done.returncode == REFUSED:
        raise DataError(done.stdout.decode(errors="surrogateescape"))
    if done.returncode < 0:
        raise DataError(f"{name}: damaged (the reader ended with signal {-done.returncode}); replace the file")
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.decode(errors='replace')}")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as packed:
        return unpack(name, checksum, packed)


def pack(name: str, content: bytes) -> bytes:
    """The tunes of a MATLAB file as the bytes of a ``.npz``: of each split the steps joined, and the tunes' lengths."""
    splits = read_music(name, "", content).splits
    arrays = {}
    for split, tunes in splits.items():
        arrays[split] = np.concatenate([tune.numpy() for tune in tunes])
        arrays[f"{split}_lengths"] = np.array([len(tune) for tune in tunes])
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def unpack(name: str, checksum: str, packed: Mapping[str, np.ndarray]) -> MusicCorpus:
    """The inverse of `pack`."""
    splits = {}
    for split in CELLS:
        steps, lengths = torch.from_numpy(packed[split]), packed[f"{split}_lengths"].tolist()
        splits[split] = list(steps.split(lengths))
    return MusicCorpus(name, checksum, splits)
