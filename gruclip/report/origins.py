"""What the runs of one table were made with, where it is not the same for all of them: said below the table."""

from __future__ import annotations

import json

import pandas as pd

from gruclip.report.statistics import finished

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
            parts = [f"{label} ({count} run{'s' * (count != 1)})" for label, count in zip(labels, counts, strict=True)]
            lines.append(f"Runs of {len(counts)} {name}: {'; '.join(parts)}.")
    return lines


def _kernel_labels(texts: list[str]) -> list[str]:
    """Of each description the entries in which they differ, e.g. "native 3e664d457746134e"."""
    try:
        described = [None if text == _UNKNOWN else json.loads(text) for text in texts]
    except ValueError:  # of a run continued with other kernels
        return texts
    known = [kernels for kernels in described if kernels is not None]
    names = [name for name in known[0] if len({json.dumps(kernels.get(name)) for kernels in known}) > 1]
    return [
        _UNKNOWN if kernels is None else ", ".join(f"{name} {kernels.get(name)}" for name in names) or "known"
        for kernels in described
    ]
