"""The corpora: found, checked, encoded, and cut into lanes.

- `files`: each file's address and SHA-256, where it lies, its download; `loading`: a corpus by its name; start here.
- `words` and `music`: text and piano rolls as tensors; `lanes`: windows of a batch, for training and evaluation.
- `own`: corpora of the user's own; `midi`: MIDI files as piano rolls and back; `isolated`: a reader that may crash;
  `convert`: pickled corpora, never by the runner.

Imports torch, numpy, scipy and rich, for MIDI files mido, where something is downloaded pooch, and of gruclip `errors`
alone. CONTRIBUTING.md says how to add a dataset. The names are loaded when they are first used, so that what only looks
for files, as `gruclip.report` does, need not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gruclip.data.files import FILES, DataFile, FileStatus, fetch, status
    from gruclip.data.lanes import Lanes, TrainingSplit, check_window, eval_lanes, predictions
    from gruclip.data.loading import load
    from gruclip.data.music import MusicCorpus
    from gruclip.data.words import WordCorpus

_HOMES = {
    "FILES": "files",
    "DataFile": "files",
    "FileStatus": "files",
    "Lanes": "lanes",
    "MusicCorpus": "music",
    "TrainingSplit": "lanes",
    "WordCorpus": "words",
    "check_window": "lanes",
    "eval_lanes": "lanes",
    "fetch": "files",
    "load": "loading",
    "predictions": "lanes",
    "status": "files",
}

__all__ = [
    "FILES",
    "DataFile",
    "FileStatus",
    "Lanes",
    "MusicCorpus",
    "TrainingSplit",
    "WordCorpus",
    "check_window",
    "eval_lanes",
    "fetch",
    "load",
    "predictions",
    "status",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gruclip.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gruclip.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """With the names that are not loaded yet, for `pydoc` and completion."""
    return sorted({*globals(), *__all__})
