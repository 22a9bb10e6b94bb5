"""The projection of a stack of matrices of any floating dtype; ``README.md`` has the reasoning for those of 16 bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from gruclip.kernels import compiled
from gruclip.spectral import SpectralState, clip_singular_values_
from gruclip.spectral.thin import distance

#: Relative error of `norms_of`, with room to spare.
SLACK = 1e-3
#: Absolute error of a float32 norm whose squares underflow, with room to spare.
LOST = 1e-15
#: Elements of a matrix from which float32 sums of its squares may be wrong by more on a CPU.
LARGE = 1 << 16
#: A vector's norm up to limit (1 + NEAR) counts as inside: in 16 or 32 bits, and in float64.
NEAR = (1e-6, 1e-12)
#: Tries to find by measurement how far below the limit the values have to be to stay inside when they are rounded.
MAX_TRIES = 5
#: How far below: so many times the root mean square of what the last rounding moved out.
ROOM = 2.0
#: The least step, in eps of the dtype and limits: rounding swallows less.
FELT = 1 / 32


def norm_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype for norms of matrices of `dtype`."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def norms_of(stacks: Iterable[Tensor]) -> list[list[float]]:
    """The Frobenius norm of each matrix of each stack (blocks, m, n); the host waits once.

    `LARGE` matrices on a CPU are summed in float64: with millions of equal squares, as after Adam's first step, torch's
    float32 partial sums all round the same way, and the norm may come out at half.
    """
    norms = [_norms(stack) for stack in stacks]
    flat = iter(torch.cat([one.to(norms[0].device) for one in norms]).tolist()) if norms else iter(())
    return [list(islice(flat, len(one))) for one in norms]


def _norms(stack: Tensor) -> Tensor:
    large = stack.is_cpu and stack[0].numel() >= LARGE
    if large and compiled.takes(stack) and stack.stride(-1) == 1:
        return torch.tensor([distance(matrix) for matrix in stack], dtype=torch.float64, device="cpu")
    dtype = torch.float64 if large else norm_dtype(stack.dtype)
    return torch.linalg.vector_norm(stack, dim=(-2, -1), dtype=dtype).double()


def is_finite(norms: Sequence[float], form: Callable[[], Tensor]) -> bool:
    """Whether a stack holds no NaN or infinity, given its norms, which may overflow; it is formed only
    then.
    """
    return all(map(math.isfinite, norms)) or bool(form().isfinite().all())


def surely_inside(norms: Sequence[float], limits: Sequence[float]) -> bool:
    """Whether no singular value can pass its limit, since no Frobenius norm does."""
    return all(max(norm, LOST) <= (1 - SLACK) * limit for norm, limit in zip(norms, limits, strict=True))


def clip_matrices_(
    matrices: Tensor, limits: Sequence[float], algorithm: str = "auto", state: SpectralState | None = None
) -> list[int]:
    """Clip each of a stack (blocks, m, n) at its limit, in place; how many values of each were.

    Afterwards sigma_1 <= limit (1 + 2e-6) in each dtype as in float32, and in float64 as `clip_singular_values_` says.
    """
    if min(matrices.shape[-2:]) == 1:
        return _clip_vectors_(matrices, limits)
    if matrices.dtype.itemsize < 4:
        return _clip_rounded_(matrices, limits, algorithm, state)
    limit: float | Tensor = (
        limits[0] if len(set(limits)) == 1 else torch.tensor(limits, dtype=torch.float64, device="cpu")
    )
    return _counts(clip_singular_values_(matrices, limit, algorithm=algorithm, state=state).values_clipped)


def _counts(clipped: Tensor) -> list[int]:
    counts: list[int] = clipped.tolist()
    return counts


def _clip_vectors_(matrices: Tensor, limits: Sequence[float]) -> list[int]:
    """Of one row or column: its norm is its only singular value."""
    limit = torch.tensor(limits, dtype=torch.float64, device=matrices.device)[:, None, None]
    wide = matrices.double()
    # Scaled, since a square may pass float64's range where the number does not.
    largest = wide.abs().amax((-2, -1), keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    scaled = wide / scale
    norm = torch.linalg.vector_norm(scaled, dim=(-2, -1), keepdim=True)
    outside = norm * scale > limit * (1 + NEAR[matrices.dtype == torch.float64])
    counts = _counts(outside.flatten().long())
    if any(counts):
        wide = torch.where(outside, scaled * (limit / norm), wide)
        rounded = wide.to(matrices.dtype)
        # Towards zero, so that the rounding does not lengthen it.
        matrices.copy_(torch.where(rounded.double().abs() > wide.abs(), _towards_zero(rounded), rounded))
    return counts


def _towards_zero(numbers: Tensor) -> Tensor:
    return torch.nextafter(numbers, torch.zeros_like(numbers))


def _clip_rounded_(matrices: Tensor, limits: Sequence[float], algorithm: str, state: SpectralState | None) -> list[int]:
    """Of 16 bits: clipped in float32, rounded and verified, until the rounded matrix is inside."""
    ceiling = torch.tensor(limits, dtype=torch.float64, device=matrices.device)
    wide = matrices.float()
    counts = _counts(clip_singular_values_(wide, ceiling, algorithm=algorithm, state=state).values_clipped)
    if not any(counts):
        return counts
    target, sure = ceiling.clone(), _sure_target(matrices, ceiling)
    step, last = torch.zeros_like(ceiling), torch.full_like(ceiling, torch.inf)
    for tries in range(MAX_TRIES + 1):
        rounded = wide.to(matrices.dtype)
        inside = rounded.float()
        moved_out = clip_singular_values_(inside, ceiling, algorithm=algorithm, state=state).values_clipped
        outside = moved_out > 0
        if not bool(outside.any()):
            break
        excess = (
            torch.linalg.vector_norm(rounded.float() - inside, dim=(-2, -1)).double() / moved_out.clamp(min=1).sqrt()
        )
        # Further where the last step came to little; and rounding swallows what is less than a part of the spacing.
        further = torch.where(excess > last / 2, 2 * step, 0.0)
        felt = FELT * torch.finfo(matrices.dtype).eps * ceiling
        step = torch.maximum(torch.maximum(ROOM * excess, further), felt)
        last = excess
        lower = (target - step).clamp(min=sure) if tries + 1 < MAX_TRIES else sure
        target = torch.where(outside, lower, target)
        clip_singular_values_(wide, target, algorithm=algorithm, state=state)
    matrices.copy_(rounded)
    return counts


def _sure_target(matrices: Tensor, ceiling: Tensor) -> Tensor:
    """A limit at which rounding to the dtype of the matrices cannot exceed `ceiling`."""
    kind, (m, n) = torch.finfo(matrices.dtype), matrices.shape[-2:]
    smallest = kind.smallest_normal * kind.eps
    sure = (ceiling - math.sqrt(m * n) * smallest / 2) / (1 + kind.eps / 2 * math.sqrt(min(m, n)) + 1e-5)
    # At this all elements round to 0.
    return sure.clamp(min=smallest / 4)
