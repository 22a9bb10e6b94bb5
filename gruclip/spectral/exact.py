"""Clipping by a full decomposition, equation (1) of README.md: of the matrix, and of its Gram matrix with the error
(14).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.thin import column_gram, take_off, thin_product

#: sigma_1 / limit up to which the Gram matrix in float64 resolves the limit well enough for matrices of a dtype: its
#: eigenvalues are squares, so the limit comes out with a relative error of some 1e-16 (sigma_1 / limit)^2.
GRAM_RANGE = {torch.float32: 1e4, torch.float64: 1e2}


class Decomposition(NamedTuple):
    """W = left diag(values) right^T in float64, values (..., r) descending."""

    left: Tensor  #: (..., m, r)
    values: Tensor
    right: Tensor  #: (..., n, r)


def svd(weight: Tensor) -> Decomposition:
    """The reference. In float64, since LAPACK's float32 values are off by 1e-6 of the largest."""
    wide = weight.double()
    try:
        left, values, right_t = torch.linalg.svd(wide, full_matrices=False)
    except torch.linalg.LinAlgError:
        # LAPACK's iteration does not converge for every matrix; on the transposed one it takes another way.
        right, values, left_t = torch.linalg.svd(wide.mT.contiguous(), full_matrices=False)
        return Decomposition(left_t.mT, values, right)
    return Decomposition(left, values, right_t.mT)


def gram(weight: Tensor) -> Decomposition:
    """From the eigenvectors of W^T W or W W^T, whichever is smaller: good for limits of at least
    sigma_1 / `GRAM_RANGE`.

    A value sigma comes out with a relative error of some eps (sigma_1 / sigma)^2. The left vectors of smaller
    values are not orthonormal; clipping does not need them.
    """
    if weight.shape[-2] < weight.shape[-1]:
        turned = gram(weight.mT)
        return Decomposition(turned.right, turned.values, turned.left)
    wide = weight.double()
    scale = wide.abs().amax((-2, -1), keepdim=True)
    wide = wide / torch.where(scale > 0, scale, 1.0)
    squares, right = torch.linalg.eigh(wide.mT @ wide)
    values, right = squares.flip(-1).clamp(min=0).sqrt(), right.flip(-1)
    left = (wide @ right) / values.clamp(min=torch.finfo(torch.float64).tiny).unsqueeze(-2)
    return Decomposition(left, values * scale.squeeze(-1), right)


def clip(weight: Tensor, limit: float, parts: Decomposition, tolerance: float) -> tuple[int, Tensor]:
    """Clip one matrix in place given its decomposition; the number of values clipped, and all values after it.

    A matrix up to limit (1 + tolerance) is left alone. Of any other, what is above half the tolerance is clipped,
    so that rounding carries no value over the whole of it: clipping is idempotent.
    """
    count = 0
    if float(parts.values[0]) > limit * (1 + tolerance):
        count = int((parts.values > limit * (1 + tolerance / 2)).sum())
    if count and float(parts.values[0]) > 4 * limit:
        # Put together anew: from far above the limit, a difference would lose the digits.
        weight.copy_((parts.left * parts.values.clamp(max=limit)) @ parts.right.mT)
    elif count:
        excess = parts.values[:count] - limit
        weight.copy_(weight.double() - (parts.left[:, :count] * excess) @ parts.right[:, :count].mT)
    return count, parts.values.clamp(max=limit) if count else parts.values


def clip_near(weight: Tensor, limit: float, tolerance: float) -> tuple[int, float] | None:
    """`clip` by `gram` for a float32 matrix (m, n), m >= n, whose largest value is at most 4 limits; None for others.

    As a difference in float32, of which only what is above the limit is computed: half of the time at n = 64.
    """
    squares, right = torch.linalg.eigh(column_gram(weight))
    values = squares.clamp(min=0).sqrt()
    largest = float(values[-1])
    if not largest <= 4 * limit:
        return None
    if largest <= limit * (1 + tolerance):
        return 0, largest
    count = int((values > limit * (1 + tolerance / 2)).sum())
    columns = right[:, -count:]
    share = (1 - limit / values[-count:]).float()
    columns = columns.float()
    take_off(weight, thin_product(weight, columns * share), columns)
    return count, limit
