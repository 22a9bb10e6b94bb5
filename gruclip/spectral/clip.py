"""Clipping the singular values of a batch of matrices, each at its own limit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.errors import NonFiniteError, UserError
from gruclip.spectral.state import SpectralState

ALGORITHMS = ("auto", "full", "truncated", "gram", "block")


class ClipResult(NamedTuple):
    """What a projection did, one entry a matrix."""

    values_clipped: Tensor  #: int64
    spectral_norm: Tensor  #: after clipping, float64, to 1e-4
    certified: Tensor  #: bool: proven to be within the tolerance
    finite: Tensor  #: bool: whether the matrix held no NaN or infinity; one that did is left as it was


def tolerance(dtype: torch.dtype) -> float:
    """A value within limit * (1 + tolerance) counts as inside: of the size of the dtype's rounding."""
    return 1.9e-6 if dtype == torch.float32 else 5e-13


def clip_singular_values_(
    weight: Tensor, limit: float | Tensor, *, algorithm: str = "auto", state: SpectralState | None = None
) -> ClipResult:
    """Replace every singular value sigma_i of each matrix by min(sigma_i, limit), in place."""
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm={algorithm!r}: should be one of {', '.join(ALGORITHMS)}")
    batch = weight.shape[:-2]
    limits = torch.as_tensor(limit, dtype=torch.float64, device=weight.device).expand(batch)
    finite = torch.isfinite(weight).all(-1).all(-1)
    if not bool(finite.all()):
        where = (~finite).nonzero()[0].tolist()
        raise NonFiniteError(f"matrix {where} of the batch holds NaN or infinity; nothing was changed")
    with torch.no_grad():
        U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
        above = limits.unsqueeze(-1) * (1 + tolerance(weight.dtype)) < S
        excess = torch.where(above, S - limits.unsqueeze(-1), 0.0)
        clipped = (weight - (U * excess.unsqueeze(-2)) @ Vh).to(weight.dtype)
        weight.copy_(torch.where(above.any(-1)[..., None, None], clipped, weight))
    norm = torch.where(above, limits.unsqueeze(-1), S).amax(-1)
    return ClipResult(above.sum(-1), norm, torch.ones_like(finite), finite)


def spectral_norm(weight: Tensor, state: SpectralState | None = None, rtol: float = 1e-4) -> Tensor:
    """The largest singular value of each matrix, to a relative error of `rtol`."""
    return torch.linalg.matrix_norm(weight.detach().double(), 2)
