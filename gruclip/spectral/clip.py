"""Clipping the singular values of a batch of matrices, each at its own limit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.errors import NonFiniteError, UserError
from gruclip.spectral import block, exact, truncated
from gruclip.spectral.state import SpectralState

ALGORITHMS = ("auto", "full", "truncated", "gram", "block")

#: Below this size, min(m, n), a decomposition costs less than the calls that tracking makes.
SMALLEST_TRACKED = 128


class ClipResult(NamedTuple):
    """What a projection did, one entry a matrix."""

    values_clipped: Tensor  #: int64
    spectral_norm: Tensor  #: after clipping, float64, to 1e-4
    certified: Tensor  #: bool: proved to be within the tolerance
    finite: Tensor  #: bool: it held no NaN or infinity; a matrix that did is left as it was


def tolerance(dtype: torch.dtype) -> float:
    """A value up to limit * (1 + tolerance) counts as inside: the rounding of the dtype would move it as far."""
    return 1.9e-6 if dtype == torch.float32 else 5e-13


def clip_singular_values_(
    weight: Tensor, limit: float | Tensor, *, algorithm: str = "auto", state: SpectralState | None = None
) -> ClipResult:
    """Replace every singular value sigma_i of each matrix by min(sigma_i, limit), in place.

    The projection onto {W : sigma_1(W) <= limit}: the nearest such matrix in the Frobenius norm.

    weight (..., m, n), float32 or float64; limit a positive number, or a tensor broadcastable to the batch
    shape, infinity for matrices that are only measured. `state` carries what is known of the matrices to the
    next call, which is then cheaper. `algorithm`:

    - ``full``: SVD in float64; the reference.
    - ``gram``: eigenvectors of the Gram matrix in float64.
    - ``truncated``: the paper's; as many leading values as can be above the limit by Weyl's inequality.
    - ``block``: a tracked subspace with a certificate (see `gruclip.spectral.block`), ``gram`` without one.
    - ``auto``: ``gram`` below 128 rows or columns or without a state, ``block`` else.

    Float32: sigma_1 <= limit (1 + 2e-6) afterwards, and within 2e-6 of the exact projection, in the Frobenius
    norm and relative to the larger of the input's norm and the limit. Float64: 1e-12 (``block``: 1e-9). A
    matrix inside its limit up to that is left as it is, bit for bit.

    Raises `NonFiniteError`, before anything is changed, naming the first matrix that holds NaN or infinity;
    `UserError` for a limit that is not positive or an algorithm there is not.
    """
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm={algorithm!r}: should be one of {', '.join(ALGORITHMS)}")
    if weight.dtype not in (torch.float32, torch.float64) or weight.dim() < 2:
        raise UserError(f"weight of shape {tuple(weight.shape)}, {weight.dtype}: should be float matrices (..., m, n)")
    batch = weight.shape[:-2]
    limits = torch.as_tensor(limit, dtype=torch.float64).expand(batch).reshape(-1).tolist()
    if not all(value > 0 for value in limits):
        raise UserError(f"limit={min(limits)}: should be a positive number")
    with torch.no_grad():
        _refuse_non_finite(weight)
        matrices = [weight[index] for index in _indices(batch)]
        state = SpectralState() if state is None else state
        counts, norms = [], []
        for index, (matrix, bound) in enumerate(zip(matrices, limits, strict=True)):
            count, norm = _clip_one(matrix, bound, algorithm, state, index)
            counts.append(count)
            norms.append(norm)
    flags = torch.ones(batch, dtype=torch.bool, device=weight.device)
    return ClipResult(
        torch.tensor(counts, dtype=torch.int64, device=weight.device).reshape(batch),
        torch.tensor(norms, dtype=torch.float64, device=weight.device).reshape(batch),
        flags,
        flags.clone(),
    )


def spectral_norm(weight: Tensor, state: SpectralState | None = None) -> Tensor:
    """sigma_1 of each matrix (..., m, n) in float64, to 1e-4; cheap with a `state` from a matrix nearby.

    Raises `NonFiniteError` naming the first matrix that holds NaN or infinity.
    """
    return clip_singular_values_(weight.detach(), torch.inf, state=state).spectral_norm


def _indices(batch: torch.Size) -> list[tuple[int, ...]]:
    return [tuple(row) for row in torch.ones(batch).nonzero().tolist()]


def _refuse_non_finite(weight: Tensor) -> None:
    # A sum is one pass over the matrix; it can also overflow, so what it finds is looked at again.
    if torch.isfinite(weight.sum((-2, -1))).all():
        return
    broken = (~torch.isfinite(weight)).any(-1).any(-1)
    if bool(broken.any()):
        where = broken.nonzero()[0].tolist()
        raise NonFiniteError(f"matrix {where} of the batch holds NaN or infinity; nothing was changed")


def _clip_one(weight: Tensor, limit: float, algorithm: str, state: SpectralState, index: int) -> tuple[int, float]:
    """Clip one matrix (m, n) in place; the number of values clipped and sigma_1 after it."""
    near = tolerance(weight.dtype)
    if algorithm == "auto":
        algorithm = "gram" if min(weight.shape) < SMALLEST_TRACKED else "block"
    if algorithm == "truncated" and limit < torch.inf:
        return truncated.clip(weight, limit, near, state, index)
    if algorithm == "block":
        held = state.tracked(index, weight)
        if held is not None:
            done = block.clip(weight, limit, held, near if weight.dtype == torch.float32 else 1e-11)
            if done is not None:
                state.track(index, done[2])
                return done[0], done[1]
    parts = exact.svd(weight) if algorithm == "full" else exact.gram(weight)
    if float(parts.values[0]) > exact.GRAM_RANGE * limit and algorithm != "full":
        parts = exact.svd(weight)
    count, values = exact.clip(weight, limit, parts, near)
    if algorithm == "block":
        state.track(index, block.start(weight, limit, values, parts.right))
    return count, float(values[0])
