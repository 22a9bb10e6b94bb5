"""The corpora: found, checked, encoded, and cut into lanes.

To add a dataset: an entry in `gruclip.data.files.FILES` (three texts, or one ``.mat`` of piano rolls, each with its
SHA-256 and its address), its name in `gruclip.config.DATASETS`, and a file ``conf/dataset/<name>.yaml``.
"""

from __future__ import annotations

from gruclip.data.files import FILES, DataFile, FileStatus, fetch, status
from gruclip.data.lanes import Lanes, check_window, eval_lanes, train_lanes
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
    "status",
    "train_lanes",
]
