"""Clipping without host synchronisation: fixed programs, whose flags are read later."""

from __future__ import annotations

import torch
from torch import Tensor

from gruclip.spectral import exact
from gruclip.spectral.eager import eagerly
from gruclip.spectral.products import ClipResult, clip_by_products_, finite_matrices, norms_by_products
from gruclip.spectral.program import COLUMNS, clip_by_program_
from gruclip.spectral.stages import Stages
from gruclip.spectral.state import SubspaceState

#: Size, min(m, n), from which `auto` takes ``program`` on a GPU: it follows 64 directions at least.
MIN_SIZE_PROGRAM = 256
#: The same without a state: there `products` takes eight times as many operations as a pass of ``program``, which may
#: fail.
MIN_SIZE_UNKNOWN = 2048


def tolerance_for(dtype: torch.dtype, algorithm: str) -> float:
    """A value up to limit * (1 + tolerance) counts as inside: rounding moves it nearly as far."""
    if dtype == torch.float32:
        return 1.9e-6
    return 5e-13 if algorithm == "full" else 5e-10


@eagerly
def clip_singular_values_deferred_(weight: Tensor, limit: Tensor, state: SubspaceState | None = None) -> ClipResult:
    """``clip_singular_values_`` that waits for nothing, and can be captured in a CUDA graph.

    By ``program`` with a state, which is written in place, and by ``products`` without one. weight (..., m, n), float32
    or float64; limit (...), on the same device, positive; state: made for matrices of these shapes, of at least
    ``state.carried + 8`` rows and columns. Nothing is checked and nothing raised: a matrix that is not `finite`, or
    whose result is not `certified`, is left as it was. Read these flags when the host next waits for the device anyway,
    and hand the result to `redo_uncertified_`. With a new state the first result is often not
    certified.
    """
    with torch.no_grad():
        if state is None:
            return clip_by_products_(weight, limit, tolerance_for(weight.dtype, "products"))
        return clip_by_program_(weight, limit, tolerance_for(weight.dtype, "program"), state)


@eagerly
def redo_uncertified_(
    weight: Tensor,
    limit: Tensor,
    result: ClipResult,
    state: SubspaceState | None = None,
    stages: Stages | None = None,
) -> ClipResult:
    """Project the finite matrices of a deferred call that were not certified, in place; the new result.

    By decomposition; where float64 is fast by ``products`` first, in stages for values far above the limit.
    `state`: the one that ``program`` used; `stages`: that of the last call, which may hold captured graphs.
    """
    redone = result.finite & ~result.certified
    values_clipped, norm = result.values_clipped.clone(), result.spectral_norm.clone()
    with torch.no_grad():
        left = redone.nonzero()
        if len(left) and has_fast_float64(weight.device):
            where = left.unbind(1)
            matrices = weight[where].double().reshape(-1, *weight.shape[-2:])
            bounds, tolerance = limit[where].reshape(-1), tolerance_for(weight.dtype, "products")
            quick = (stages or Stages())(matrices, bounds, tolerance)
            certified = quick.certified
            if bool(certified.any()):
                where = left[certified].unbind(1)
                weight[where] = matrices[certified].to(weight.dtype)
                values_clipped[where] = quick.values_clipped[certified]
                norm[where] = quick.spectral_norm[certified]
                left = left[~certified]
        for where in left.tolist():
            index = tuple(where)
            parts, bound = exact.svd(weight[index]), float(limit[index])
            done = exact.clip(weight[index], bound, parts, tolerance_for(weight.dtype, "full"))
            values_clipped[index], norm[index] = done.clipped, done.values[0]
        if state is not None:
            state.previous.copy_(weight.reshape(state.previous.shape))
    return ClipResult(values_clipped, norm, result.certified | redone, result.finite, redone)


def algorithm_for(weight: Tensor, algorithm: str, followed: bool) -> str:
    """What ``auto`` or ``program`` resolves to for matrices (..., m, n), with a state (`followed`) or without."""
    size, is_float32 = min(weight.shape[-2:]), weight.dtype == torch.float32
    if algorithm == "auto" and weight.device.type == "cuda":
        fast = has_fast_float64(weight.device)
        if is_float32 and size >= (MIN_SIZE_PROGRAM if followed else MIN_SIZE_UNKNOWN) and (followed or fast):
            return "program"
        return "products" if fast else "auto"
    return "products" if algorithm == "program" and not (is_float32 and size >= COLUMNS) else algorithm


def has_fast_float64(device: torch.device) -> bool:
    """Whether a GPU computes in float64 at a half of float32's rate or better, as those of data centres do."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) in ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))


@eagerly
def spectral_norm_deferred(weight: Tensor) -> Tensor:
    """`spectral_norm` by matrix products, without waiting for the device; NaN for a matrix that is not finite."""
    finite, matrices = finite_matrices(weight.detach())
    return torch.where(finite, norms_by_products(matrices), torch.nan)
