"""The corpora: found, checked, encoded, and cut into lanes.

- `files`: each file's address and SHA-256, where it lies, its download; `loading`: a corpus by its name; start here.
- `words` and `music`: text and piano rolls as tensors; `lanes`: windows of a batch, for training and evaluation.
- `own`: corpora of the user's own; `midi`: MIDI files as piano rolls and back; `isolated`: a reader that may crash;
  `convert`: pickled corpora, never by the runner.

Imports torch, numpy and scipy, where something is downloaded pooch, and of gruclip `errors` alone. CONTRIBUTING.md says
how to add a dataset.
"""

from __future__ import annotations

from gruclip.data.files import FILES, DataFile, FileStatus, fetch, status
from gruclip.data.lanes import Lanes, check_window, eval_lanes, predictions, train_lanes
from gruclip.data.loading import load
from gruclip.data.music import MusicCorpus
from gruclip.data.words import WordCorpus

__all__ = [
    "FILES",
    "DataFile",
    "FileStatus",
    "Lanes",
    "MusicCorpus",
    "WordCorpus",
    "check_window",
    "eval_lanes",
    "fetch",
    "load",
    "predictions",
    "status",
    "train_lanes",
]
