"""``SHA256SUMS`` of a finished run, as ``sha256sum -c`` reads it: so that anybody can tell what was altered since."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

SUMS = "SHA256SUMS"

#: The files of a finished run whose sums are kept, in this order; ``best`` is missing where no epoch had a finite loss.
SUMMED = (
    "config.yaml",
    "epochs.csv",
    "steps.csv",
    "timing.csv",
    "environment.json",
    "checkpoint/last.safetensors",
    "checkpoint/best.safetensors",
    "summary.json",
)


def sums_of(folder: Path, instead: Mapping[str, bytes]) -> str:
    """The text of ``SHA256SUMS`` for the files of `folder`, with the content `instead` for some that come later."""
    lines = []
    for name in SUMMED:
        if name in instead:
            lines.append(f"{hashlib.sha256(instead[name]).hexdigest()}  {name}\n")
        elif (folder / name).exists():
            lines.append(f"{sha256_of(folder / name)}  {name}\n")
    return "".join(lines)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
