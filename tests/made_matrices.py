"""Matrices of any layout, for what computes on them where they lie."""

from __future__ import annotations

import torch
from torch import Tensor


def made_matrix(rows: int, columns: int, turned: bool, generator: torch.Generator) -> Tensor:
    """Standard normal numbers (rows, columns), row-major, or column-major where `turned`."""
    made = (
        torch.randn(columns, rows, generator=generator).mT
        if turned
        else torch.randn(rows, columns, generator=generator)
    )
    assert made.shape == (rows, columns)
    return made
