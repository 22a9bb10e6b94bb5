"""What both kinds of clipping save of a parameter: its counts and its `SpectralState`, under ``NAME/KEY``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gruclip.errors import UserError
from gruclip.spectral import SpectralState

COUNTS = ("last_clipped", "total_clipped")


def join(names: Sequence[str], counts: Sequence[tuple[int, int]], states: Sequence[SpectralState]) -> dict[str, Tensor]:
    """What `split` takes apart: of each name the values clipped in the last step and in all, and its state."""
    saved: dict[str, Tensor] = {}
    for name, counted, state in zip(names, counts, states, strict=True):
        for key, count in zip(COUNTS, counted, strict=True):
            saved[f"{name}/{key}"] = torch.tensor(count, device="cpu")
        saved |= {f"{name}/{key}": tensor for key, tensor in state.state_dict().items()}
    return saved


def split(saved: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, tuple[tuple[int, int], dict[str, Tensor]]]:
    """Of each name the counts, and what was saved of its state.

    Raises `UserError` where `saved` is of other parameters than those of these `names`, or lacks a count.
    """
    if not isinstance(saved, Mapping):
        raise UserError(f"state_dict of {type(saved).__name__}: should be what state_dict() gave")
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
