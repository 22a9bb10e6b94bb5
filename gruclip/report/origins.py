"""What the runs of one table were made with, where it is not the same for all of them: said below the table."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from gruclip.report.statistics import finished
from gruclip.rules import plural

#: Columns of a frame on which the bits of a run may depend, and how a note calls several of their values.
_NAMES = {
    "revision": "revisions",
    "torch": "versions of torch",
    "kernels": "choices of kernels",
    "machine": "machines",
}
_UNKNOWN = "unknown"


def notes(runs: pd.DataFrame) -> list[str]:
    """A line for each of revision, torch version, kernels and machine in which the finished runs differ."""
    ended = finished(runs)
    lines = []
    for column, name in _NAMES.items():
        counts = ended[column].fillna(_UNKNOWN).value_counts().sort_index()
        if len(counts) > 1:
            labels = _kernel_labels(list(counts.index)) if column == "kernels" else list(counts.index)
            parts = [f"{label} ({plural(count, 'run')})" for label, count in zip(labels, counts, strict=True)]
            lines.append(f"Runs of {len(counts)} {name}: {'; '.join(parts)}.")
    return lines


def _kernel_labels(texts: list[str]) -> list[str]:
    """Of each description the entries in which they differ, e.g. "native 3e664d457746134e"; of a run continued with
    other kernels those of each."""
    try:
        described = [[] if text == _UNKNOWN else list(map(json.loads, text.split(" then "))) for text in texts]
    except ValueError:
        return texts
    known = [kernels for stages in described for kernels in stages]
    names = dict.fromkeys(name for kernels in known for name in kernels)
    differing = [name for name in names if len({json.dumps(kernels.get(name)) for kernels in known}) > 1]

    def label(kernels: dict[str, Any]) -> str:
        return ", ".join(f"{name} {kernels[name]}" for name in differing if kernels.get(name) is not None) or "known"

    return [" then ".join(map(label, stages)) or _UNKNOWN for stages in described]
