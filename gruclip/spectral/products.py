"""Clipping by matrix products alone, for whole batches, with nothing that the host has to wait for.

With X = W^T W / L^2 - I and S = sign(X), the positive part of X is X_+ = (X + X S) / 2, and

    W (I + X_+)^(-1/2)

is the projection: a value sigma > L is divided by sigma / L, any other is left. S comes from odd polynomials of degree
5, each the best one for what the last has left of the interval ("The Polar Express", Amsel et al., 2025); the inverse
root from the coupled Newton-Schulz iteration. Everything is computed in float64: products in it are as fast as
float32's on the accelerators that this is for, and no rounding counts.

The number of operations does not depend on the matrices, so it can be captured in a CUDA graph. Instead of
raising, it says per matrix whether it was finite and whether the result is certified:

    ||X (I - S^2)||_F bounds twice the error of X_+, since x (1 - |s|) <= x (1 - s^2) for its eigenvalues,

and Z Y = I is checked for the inverse root. A matrix that is not finite or not certified is left as it was, which also
happens where this cannot tell whether sigma_1 is inside the tolerance.

Cost: 3 m n^2 + some 100 n^3 multiply-adds, ten times as many as a decomposition, at the speed of products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: sigma_1 / limit, at most; beyond it the result is not certified.
FARTHEST = 4.0
#: Eigenvalues of X that are smaller, relative to its norm, have no sign: they move sigma by half as much.
RESOLUTION = 5e-9
#: Steps of the inverse root: enough for values up to FARTHEST.
ROOT_STEPS = 10
#: Squarings of W^T W for the spectral norm: the k-th power's Frobenius norm is within n^(1/2) of sigma_1^(2 k).
SQUARINGS = 14


class Projected(NamedTuple):
    """What was done, one entry a matrix."""

    values_clipped: Tensor  #: int64
    spectral_norm: Tensor  #: after clipping, float64, to 1e-4
    certified: Tensor
    finite: Tensor


def _best_polynomial(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """(a, b, c) for which a s + b s^3 + c s^5 is nearest to 1 on [low, high], and its error there: by Remez."""
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    a = b = c = error = 0.0
    for _ in range(30):
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack((points, points**3, points**5, signs), 1)
        a, b, c, error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        root = max(9 * b * b - 20 * a * c, 0.0) ** 0.5
        inner = [max((-3 * b + side * root) / (10 * c), 0.0) ** 0.5 for side in (1, -1)]
        inner = sorted(min(max(s, low), high) for s in inner)
    return (a, b, c), abs(error)


def _sign_polynomials(low: float) -> list[tuple[float, float, float]]:
    """Polynomials that, one after another, take [low, 1] to 1."""
    polynomials, high = [], 1.0
    while high - low > 1e-3:
        polynomial, error = _best_polynomial(low, high)
        polynomials.append(polynomial)
        low, high = 1 - error, 1 + error
    # What is left converges cubically by the polynomial that is flat at 1: twice takes 1e-3 to 1e-15 and below.
    return [*polynomials, (15 / 8, -10 / 8, 3 / 8), (15 / 8, -10 / 8, 3 / 8)]


SIGN_POLYNOMIALS = _sign_polynomials(RESOLUTION)


def clip_by_products_(weight: Tensor, limits: Tensor, tolerance: float) -> Projected:
    """Clip a batch (..., m, n) in place, each matrix at its limit (...), a tensor on the same device.

    A spectral norm up to limit (1 + tolerance) counts as inside.
    """
    if weight.shape[-2] < weight.shape[-1]:
        return clip_by_products_(weight.mT, limits, tolerance)
    finite, matrices = finite_matrices(weight)
    limits, wide = limits.to(torch.float64), matrices.double()
    identity = torch.eye(weight.shape[-1], dtype=torch.float64, device=weight.device)
    norm = norms_by_products(wide)

    scaled = wide / _over(limits)
    x = scaled.mT @ scaled - identity
    size = torch.linalg.vector_norm(x, dim=(-2, -1)).clamp(min=torch.finfo(torch.float64).tiny, max=FARTHEST**2 - 1)
    sign = _sign(x / _over(size), identity)
    squared = sign @ sign
    unresolved = torch.linalg.vector_norm(x - x @ squared, dim=(-2, -1)) / 2
    above = x @ (identity + sign) / 2
    above = (above + above.mT) / 2
    # Bounds of the largest eigenvalue of X_+, which is 2 (sigma_1 / L - 1) near the limit.
    square = above @ above
    third, fourth = (torch.linalg.vector_norm(square @ other, dim=(-2, -1)) for other in (above, square))
    outside = fourth > 2 * tolerance * third
    inside = fourth**0.25 <= 2 * tolerance

    largest = 1 + torch.linalg.vector_norm(above, dim=(-2, -1)).clamp(max=FARTHEST**2 - 1)
    inverse_root, apart = _inverse_root((identity + above) / _over(largest), identity)
    result = (wide @ inverse_root) / _over(largest.sqrt())

    certified = finite & (unresolved <= tolerance / 2) & (inside | outside & (apart <= 1e-10))
    changed = certified & ~inside
    weight.copy_(torch.where(_over(changed), result.to(weight.dtype), weight))
    count = ((sign.diagonal(dim1=-2, dim2=-1).sum(-1) + identity.shape[0]) / 2).round().nan_to_num().long()
    return Projected(
        torch.where(changed, count, 0),
        torch.where(changed, limits, torch.where(finite, norm, torch.nan)),
        certified,
        finite,
    )


def finite_matrices(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each matrix of a batch is finite, and the batch with zeros for those that are not."""
    finite = torch.isfinite(weight).all(-1).all(-1)
    return finite, torch.where(_over(finite), weight, 0.0)


def _over(vector: Tensor) -> Tensor:
    return vector[..., None, None]


def _sign(x: Tensor, identity: Tensor) -> Tensor:
    for a, b, c in SIGN_POLYNOMIALS:
        square = x @ x
        x = x @ (a * identity + square @ (b * identity + c * square))
    return x


def _inverse_root(matrix: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    """M^(-1/2) for eigenvalues in (0, 1], and ||Z Y - I||_F, which is 0 when it has converged."""
    y, z = matrix, identity.expand_as(matrix)
    for _ in range(ROOT_STEPS):
        step = (3 * identity - z @ y) / 2
        y, z = y @ step, step @ z
    return z, torch.linalg.vector_norm(z @ y - identity, dim=(-2, -1))


def norms_by_products(weight: Tensor) -> Tensor:
    """sigma_1 of each finite matrix (..., m, n) in float64: from above, to a share of ln(n) / 2^(SQUARINGS + 2)."""
    matrix = (weight if weight.shape[-2] >= weight.shape[-1] else weight.mT).double()
    tiny = torch.finfo(torch.float64).tiny
    largest = matrix.abs().amax((-2, -1)).clamp(min=tiny)
    scaled = matrix / _over(largest)
    power, logarithm = scaled.mT @ scaled, torch.zeros_like(largest)
    for k in range(SQUARINGS + 1):
        size = torch.linalg.vector_norm(power, dim=(-2, -1)).clamp(min=tiny)
        logarithm = logarithm + size.log() / 2**k
        power = power / _over(size)
        power = power @ power if k < SQUARINGS else power
    return largest * (logarithm / 2).exp()
