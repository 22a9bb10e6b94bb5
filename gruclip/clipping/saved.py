"""What both kinds of clipping save of a parameter: its counts and its `SpectralState`, under ``NAME/KEY``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gruclip.errors import UserError

COUNTS = ("last_clipped", "total_clipped")


def entry_counts(*counts: int) -> dict[str, Tensor]:
    """The values clipped in the last step and in all, as tensors on the CPU."""
    return {name: torch.tensor(count, device="cpu") for name, count in zip(COUNTS, counts, strict=True)}


def split(saved: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, tuple[tuple[int, int], dict[str, Tensor]]]:
    """Of each name the counts, and what was saved of its state.

    Raises `UserError` where `saved` is of other parameters than those of these `names`, or lacks a count.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        name, _, entry = key.rpartition("/")
        parts.setdefault(name, {})[entry] = tensor
    if parts.keys() != set(names) or any(count not in part for part in parts.values() for count in COUNTS):
        raise UserError(
            f"state_dict is of other parameters than {', '.join(names)}, or of an older version; load what was saved "
            "of these"
        )
    return {
        name: (
            (int(parts[name].pop(COUNTS[0])), int(parts[name].pop(COUNTS[1]))),
            parts[name],
        )
        for name in names
    }
