"""Clipping by matrix products alone, for whole batches, with nothing that the host has to wait for.

The projection as equation (15) of README.md has it, certified by (16). All is computed in float64: products in
it are as fast as float32's on the accelerators that this is for, and rounding is negligible. The number of operations
does not depend on the matrices, so it can be captured in a CUDA graph; instead of raising, it says per matrix whether
it was finite and whether the result is certified. One that is not is left as it was.

Cost: 76 n^3 multiply-adds for a float32 matrix, 88 for a float64 one, several times as many as a decomposition, at the
speed of products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.kernels import program
from gruclip.spectral.arguments import are_finite

#: sigma_1 / limit, at most; beyond it the result is not certified.
MAX_RATIO = 4.0
#: Eigenvalues of X that are smaller, relative to its norm, have no sign: they move sigma by half as much.
RESOLUTION = {torch.float32: 2e-7, torch.float64: 5e-9}
#: Relative margin on X's norm: beyond 1 the polynomials are so steep (24 each) that they amplify rounding.
MARGIN = 1e-3
#: The polynomial that is flat at 1, for when the others are within FLAT_FROM of it, and how often it is applied: an
#: error e becomes some 2.5 e^3.
FLAT, FLAT_FROM = (15 / 8, -10 / 8, 3 / 8), 5e-4
FLATTENINGS = {torch.float32: 1, torch.float64: 2}
#: Squarings of W^T W for the spectral norm: the k-th power's Frobenius norm is within n^(1/2) of sigma_1^(2 k).
SQUARINGS = 15
#: The same for a spectral radius: matrices far from normal need more.
RADIUS_SQUARINGS = 24


class ClipResult(NamedTuple):
    """What a projection did, one entry a matrix."""

    values_clipped: Tensor  #: int64; ``products`` counts values above the limit by rounding too
    spectral_norm: Tensor  #: after clipping, float64, to 1e-4 (with a state, of what its subspace holds)
    certified: Tensor  #: bool: sigma_1 was shown to be within the tolerance
    finite: Tensor  #: bool: it held no NaN or infinity; a matrix that did is left as it was
    redone: Tensor  #: bool: the first algorithm had no certificate; the matrix was redone by one that has


def _best_polynomial(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """(a, b, c) for which a s + b s^3 + c s^5 is nearest to 1 on [low, high], and its error there: by Remez."""
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    a = b = c = error = 0.0
    for _ in range(30):
        points = torch.tensor([low, *inner, high], dtype=torch.float64, device="cpu")
        signs = points.new_tensor([1.0, -1.0, 1.0, -1.0])
        system = torch.stack((points, points**3, points**5, signs), 1)
        a, b, c, error = torch.linalg.solve(system, torch.ones_like(points)).tolist()
        root = max(9 * b * b - 20 * a * c, 0.0) ** 0.5
        ends = [max((-3 * b + side * root) / (10 * c), 0.0) ** 0.5 for side in (1, -1)]
        before, inner = inner, sorted(min(max(s, low), high) for s in ends)
        if all(abs(new - old) <= 1e-9 * old for new, old in zip(inner, before, strict=True)):
            break  # the polynomial's error is the square of theirs
    return (a, b, c), abs(error)


def sign_polynomials(resolution: float, flattenings: int) -> list[tuple[float, float, float]]:
    """Polynomials that, one after another, take [resolution, 1] to 1, to the precision of a float32 matrix (1
    flattening) or a float64 one (2)."""
    polynomials, low, high = [], resolution, 1.0
    while high - low > 2 * FLAT_FROM:
        polynomial, error = _best_polynomial(low, high)
        polynomials.append(polynomial)
        low, high = 1 - error, 1 + error
    return [*polynomials, *[FLAT] * flattenings]


SIGN_POLYNOMIALS = {dtype: sign_polynomials(low, FLATTENINGS[dtype]) for dtype, low in RESOLUTION.items()}
ROOT_POLYNOMIALS = sign_polynomials(1 / (MAX_RATIO * (1 + MARGIN)), flattenings=1)


class Positive(NamedTuple):
    """A of equation (15), one entry a matrix, float64."""

    above: Tensor  #: A (..., n, n)
    sign: Tensor  #: S (..., n, n)
    precise: Tensor  #: bool: (16) is small enough, and `inside` is beyond doubt
    inside: Tensor  #: bool: nothing is


def positive_part(squares: Tensor, norm: Tensor, polynomials: program.Polynomials, tolerance: float) -> Positive:
    """A of X, from W^T W / L^2 (..., n, n) and an upper bound of sigma_1 / L (...)."""
    identity = torch.eye(squares.shape[-1], dtype=squares.dtype, device=squares.device)
    x = squares - identity
    # Two bounds of X's norm; the second holds since X + I has no negative eigenvalues.
    size = torch.linalg.vector_norm(x, dim=(-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    size = torch.minimum(size, (norm**2 - 1).clamp(min=1.0))
    sign = program.sign((x / per_matrix(size * (1 + MARGIN))).reshape(-1, *x.shape[-2:]), polynomials).view_as(x)
    absolute = x @ sign
    unresolved = torch.linalg.vector_norm(x - absolute @ sign, dim=(-2, -1)) / 2
    above = (x + absolute) / 2
    above = (above + above.mT) / 2
    # Bounds of the largest eigenvalue of A, which is 2 (sigma_1 / L - 1) near the limit.
    second = above @ above
    cubed, fourth_norm = (torch.linalg.vector_norm(second @ one, dim=(-2, -1)) for one in (above, second))
    outside = fourth_norm > 2 * tolerance * cubed
    inside = fourth_norm**0.25 <= 2 * tolerance
    precise = (unresolved <= tolerance / 2) & (inside | outside)
    return Positive(above, sign, precise, inside)


def clip_by_products_(weight: Tensor, limits: Tensor, tolerance: float) -> ClipResult:
    """Clip a batch (..., m, n) in place, each matrix at its limit (...), a tensor on the same device.

    A spectral norm up to limit (1 + tolerance) counts as inside.
    """
    if weight.shape[-2] < weight.shape[-1]:
        return clip_by_products_(weight.mT, limits, tolerance)
    finite, matrices = finite_matrices(weight)
    limits, wide = limits.to(torch.float64), matrices.double()
    norm = norms_by_products(wide)
    scaled = wide / per_matrix(limits)
    made = positive_part(scaled.mT @ scaled, norm / limits, SIGN_POLYNOMIALS[weight.dtype], tolerance)
    result = wide @ roots(made.above, norm / limits, ROOT_POLYNOMIALS)[0]

    certified = finite & made.precise & (norm <= MAX_RATIO * limits)
    changed = certified & ~made.inside
    weight.copy_(torch.where(per_matrix(changed), result.to(weight.dtype), weight))
    return ClipResult(
        torch.where(changed, number_positive(made.sign), 0),
        torch.where(finite, torch.where(certified, torch.minimum(norm, limits), norm), torch.nan),
        certified,
        finite,
        torch.zeros_like(finite),
    )


def number_positive(sign: Tensor) -> Tensor:
    """How many eigenvalues +1 a sign matrix (..., n, n) has."""
    trace = sign.diagonal(dim1=-2, dim2=-1).sum(-1)
    return ((trace + sign.shape[-1]) / 2).round().nan_to_num().long()


def finite_matrices(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each matrix of a batch is finite, and the batch with zeros for those that are not."""
    finite = are_finite(weight)
    return finite, torch.where(per_matrix(finite), weight, 0.0)


def per_matrix(vector: Tensor) -> Tensor:
    """(...) as (..., 1, 1): one factor for each matrix of a batch."""
    return vector[..., None, None]


def roots(above: Tensor, norm: Tensor, polynomials: program.Polynomials) -> tuple[Tensor, Tensor]:
    """(I + A)^(-1/2) and (I + A)^(1/2) for A (..., n, n) by the coupled iteration (19), for values of up to `norm`
    limits (...)."""
    flat = above.reshape(-1, *above.shape[-2:])
    identity = torch.eye(above.shape[-1], dtype=above.dtype, device=above.device)
    size = per_matrix((norm.reshape(-1).clamp(min=1.0) * (1 + MARGIN)).square())
    root, inverse = program.coupled_roots((identity + flat) / size, polynomials)
    return (inverse / size.sqrt()).view_as(above), (root * size.sqrt()).view_as(above)


def norms_by_products(weight: Tensor) -> Tensor:
    """sigma_1 of each finite matrix (..., m, n), float64: an upper bound, to ln(n) / 2^(SQUARINGS + 2) of it."""
    matrix = (weight if weight.shape[-2] >= weight.shape[-1] else weight.mT).double()
    largest = matrix.abs().amax((-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = matrix / per_matrix(largest)
    return largest * _gelfand(scaled.mT @ scaled, SQUARINGS).sqrt()


def radii_by_products(matrix: Tensor) -> Tensor:
    """The largest absolute eigenvalue of each finite matrix (..., n, n) in float64: from above, to 1e-6 and, of one
    that is near to a Jordan block, to 1e-5. The host waits for the device.

    Where a power underflows, as the diagonal of some triangular matrices does, from the eigenvalues.
    """
    matrix = matrix.double()
    largest = matrix.abs().amax((-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
    radii = largest * _gelfand(matrix / per_matrix(largest), RADIUS_SQUARINGS)
    vanished = (radii == 0) & (matrix != 0).any(-1).any(-1)
    if bool(vanished.any()):
        radii[vanished] = torch.linalg.eigvals(matrix[vanished]).abs().amax(-1)
    return radii


def _gelfand(power: Tensor, squarings: int) -> Tensor:
    """||A^k||_F^(1/k) for k = 2^squarings, which comes down to the spectral radius; 0 where a power is."""
    logarithm = torch.zeros_like(power[..., 0, 0])
    for k in range(squarings + 1):
        size = torch.linalg.vector_norm(power, dim=(-2, -1))
        logarithm = logarithm + size.log() / 2**k
        power = power / per_matrix(size.clamp(min=torch.finfo(power.dtype).tiny))
        power = power @ power if k < squarings else power
    return logarithm.exp()
