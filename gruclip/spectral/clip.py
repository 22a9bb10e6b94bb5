"""Clipping the singular values of a batch of matrices, each at its own limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gruclip.choices import ALGORITHMS
from gruclip.errors import NonFiniteError, UserError
from gruclip.kernels import compiled
from gruclip.spectral.arguments import are_finite, check_limits, check_matrices, check_writable, limits_of_batch
from gruclip.spectral.deferred import (
    ClipResult,
    algorithm_for,
    clip_singular_values_deferred_,
    has_fast_float64,
    redo_uncertified_,
    spectral_norm_deferred,
)
from gruclip.spectral.eager import eagerly
from gruclip.spectral.one import clip_one
from gruclip.spectral.program import widths
from gruclip.spectral.state import SpectralState, SubspaceState
from gruclip.spectral.thin import distance


@eagerly
def clip_singular_values_(
    weight: Tensor, limit: float | Tensor, *, algorithm: str = "auto", state: SpectralState | None = None
) -> ClipResult:
    """Replace every singular value sigma_i of each matrix by min(sigma_i, limit), in place.

    The projection onto {W : sigma_1(W) <= limit}: the nearest such matrix in the Frobenius norm.

    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> result = clip_singular_values_(weight, 2.0)
    >>> weight
    tensor([[2., 0.],
            [0., 1.]])
    >>> int(result.values_clipped), round(float(result.spectral_norm), 3)
    (1, 2.0)

    weight (..., m, n), float32 or float64, none of it empty; limit a positive number, or a tensor broadcastable to the
    batch shape, infinity for matrices that are only measured. `state` carries what is known of the matrices to the
    next call, which is then cheaper. `algorithm`:

    - ``full``: SVD in float64; the reference.
    - ``gram``: eigenvectors of the Gram matrix in float64.
    - ``truncated``: the paper's; as many leading values as can be above the limit by Weyl's inequality.
    - ``block``: a tracked subspace with a certificate (`gruclip.spectral.tracked`); where it gives none, and for some
      steps after one that cost more than a decomposition, the Gram matrix's eigenvectors in float32 if precise enough
      (`gruclip.spectral.single`), else ``gram``.
    - ``products``: matrix products alone, all matrices at once (`gruclip.spectral.products`); what it does not certify
      is redone, on a GPU with fast float64 by products in stages, and by ``full``.
      `clip_singular_values_deferred_` is the same without waiting for the device.
    - ``program``: ``block`` as a fixed program, all matrices at once (`gruclip.spectral.program`), for float32 matrices
      with 64 rows and columns at least, ``products`` for others; what it does not certify is redone by ``products`` on
      a GPU with fast float64, and by ``full``. `clip_singular_values_deferred_` with a state does it without waiting.
    - ``auto``: on a GPU, ``program`` for float32 matrices with a state and 256 rows and columns at least; where float64
      is fast also without a state from 2048 on, and ``products`` for others; elsewhere the fallback of ``block`` for
      float32 matrices whose shorter side is 80 to 224, and up to 128 ``gram`` where their norm says that most values
      are above the limit; for all others ``gram`` if it is below 128, else ``block``. With a state a float32 matrix of
      56 rows and columns or more that cannot have reached its limit since the last call is not decomposed.

    Float32: sigma_1 <= limit (1 + 2e-6) afterwards (``full`` and ``auto``; 1e-5 for the others), and within 2e-6 of the
    exact projection, in the Frobenius norm and relative to the larger of the input's norm and the limit. Float64: 1e-12
    (``full``) and 1e-9. Below a limit of 1e-37 float32's spacing allows less. A matrix inside its limit up to that is
    left as it is, bit for bit. `certified` says that sigma_1 was shown to be inside, which ``truncated`` takes on
    trust; the distance of what a subspace clips from the exact projection is estimated, and tested (``README.md``,
    (7)).

    Raises `NonFiniteError`, before anything is changed, naming the first matrix that holds NaN or infinity;
    `UserError` for a limit that is not positive, an unknown algorithm, what is no batch of matrices, and what is
    computed with a gradient, which would not know of it: `clip_singular_values` has one.
    """
    check_algorithm(algorithm)
    check_matrices(weight)
    check_writable("weight", weight)
    if state is not None and not isinstance(state, SpectralState):
        raise UserError(f"state of {type(state).__name__}: should be a SpectralState")
    batch = weight.shape[:-2]
    if isinstance(limit, float):  # at once: microseconds count
        limits = [limit] * math.prod(batch)
    else:
        limits = limits_of_batch(limit, batch, torch.device("cpu")).reshape(-1).tolist()
    check_limits(limits)
    algorithm = algorithm_for(weight, algorithm, followed=state is not None)
    with torch.no_grad():
        matrices = [weight[index] for index in itertools.product(*map(range, batch))]
        norms = _frobenius_norms(weight, matrices)
        if algorithm in ("products", "program"):
            on_device = torch.tensor(limits, dtype=torch.float64, device=weight.device).reshape(batch)
            if algorithm == "products":
                result = clip_singular_values_deferred_(weight, on_device)
                return redo_uncertified_(weight, on_device, result)
            return _clip_by_program_(weight, on_device, state)
        entries = (state or SpectralState()).resize(len(matrices))
        followed = state is not None
        done = [clip_one(*one, algorithm, followed) for one in zip(matrices, norms, limits, entries, strict=True)]
    counts, leading, certified, redone = zip(*done, strict=True) if done else ((), (), (), ())

    def gather(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        # A call costs microseconds, and a small matrix's whole decomposition less than a hundred.
        made = torch.tensor(values if batch else values[0], dtype=dtype, device=weight.device)
        return made if len(batch) < 2 else made.reshape(batch)

    flags = (gather(flag, torch.bool) for flag in (certified, [True] * len(done), redone))
    return ClipResult(gather(counts, torch.int64), gather(leading, torch.float64), *flags)


def _clip_by_program_(weight: Tensor, limit: Tensor, state: SpectralState | None) -> ClipResult:
    """``program``, and a redo of what it leaves. Where nothing is known a first pass finds the subspace for a second;
    without a state both have the greatest width, since there is no third.
    """
    width = widths(*weight.shape[-2:])[-1 if state is None else 0]
    carried = SubspaceState.of(weight, [] if state is None else state.matrices, width)
    result = clip_singular_values_deferred_(weight, limit, carried)
    if (state is None or not state.matrices) and not bool(result.certified.all()):
        again = clip_singular_values_deferred_(weight, limit, carried)
        result = ClipResult(*(torch.where(result.certified, *both) for both in zip(result, again, strict=True)))
    result = redo_uncertified_(weight, limit, result, carried)
    if state is not None:
        state.matrices = carried.index_select(range(len(carried.draws))).matrices
    return result


@eagerly
def spectral_norm(weight: Tensor, state: SpectralState | None = None) -> Tensor:
    """sigma_1 of each matrix (..., m, n) in float64, to 1e-4; cheap with a `state` from a matrix nearby.

    With a state it is an estimate from below: to 1e-4 of what the carried subspace and the change since hold. It has
    no gradient: `weight` is detached.
    Raises `NonFiniteError` naming the first matrix that holds NaN or infinity, and `UserError` for what is not a batch
    of float32 or float64 matrices.

    >>> round(float(spectral_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))), 3)
    5.0
    """
    check_matrices(weight)
    weight = weight.detach()
    if has_fast_float64(weight.device):
        _frobenius_norms(weight, [])
        return spectral_norm_deferred(weight)
    if 0 in weight.stride():
        weight = weight.contiguous()  # an expanded tensor cannot be written to
    return clip_singular_values_(weight, torch.inf, state=state).spectral_norm


def check_algorithm(algorithm: str) -> None:
    """Raise `UserError` where `ALGORITHMS` has none of that name."""
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm={algorithm!r}: should be one of {', '.join(ALGORITHMS)}")


def _frobenius_norms(weight: Tensor, matrices: Sequence[Tensor]) -> list[float]:
    """The norms of a batch's matrices; raises `NonFiniteError` if an entry is not finite, not if only its square is."""
    if compiled.takes(weight) and matrices:
        norms = [distance(matrix) for matrix in matrices]
    else:
        norms = torch.linalg.vector_norm(weight, dim=(-2, -1)).reshape(-1).tolist()
    if not all(map(math.isfinite, norms)):
        broken = ~are_finite(weight)
        if bool(broken.any()):
            where = broken.nonzero()[0].tolist()
            name = f"matrix {where} of the batch" if where else "the matrix"
            raise NonFiniteError(f"{name} holds NaN or infinity; nothing was changed")
    return norms
