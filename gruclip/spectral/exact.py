"""Clipping by a full decomposition, equation (1) of README.md: of the matrix, and of its Gram matrix with the error
(14).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.subspace import MAX_RATIO, number_above
from gruclip.spectral.thin import subtract_low_rank_, thin_product

#: sigma_1 / limit up to which the Gram matrix in float64 resolves the limit well enough for matrices of a dtype: its
#: eigenvalues are squares, so the limit comes out with a relative error of some 1e-16 (sigma_1 / limit)^2.
GRAM_RANGE = {torch.float32: 1e4, torch.float64: 1e2}
#: A difference in float32 is precise up to this: values clipped times (sigma_1 / limit - 1).
MAX_LOST = 100
#: n up to which recomposing a matrix costs no more than the calls of a difference.
MAX_SIZE_ANEW = 80


class Decomposition(NamedTuple):
    """W = left diag(values) right^T, in float64."""

    left: Tensor | None  #: (m, r); None where it is W right diag(values)^-1
    values: Tensor  #: (r,), descending
    right: Tensor  #: (n, r)


class Clipped(NamedTuple):
    """What became of a matrix (m, n), and the decomposition it was clipped by."""

    clipped: int  #: values
    #: The leading singular values after it, descending: all of them, or as many upper bounds near them.
    values: list[float]
    right: Tensor  #: their right singular vectors (n, k)


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
    """Of a matrix (m, n), m >= n, from the eigenvectors of W^T W: good for limits of at least sigma_1 / `GRAM_RANGE`.

    A value sigma comes out with a relative error of some eps (sigma_1 / sigma)^2.
    """
    wide, scale = weight.double(), 1.0
    if weight.dtype == torch.float64:  # the square of a float32 number is a float64 one
        scale = float(wide.abs().max()) or 1.0
        wide = wide / scale
    # Negated, to descend.
    squares, right = torch.linalg.eigh((wide.mT @ wide).neg_())
    return Decomposition(None, squares.neg_().clamp_(min=0).sqrt_().mul_(scale), right)


def clip(weight: Tensor, limit: float, parts: Decomposition, tolerance: float) -> Clipped:
    """Clip one matrix in place given its decomposition.

    A matrix up to limit (1 + tolerance) is left alone. In any other the values above half the tolerance are clipped,
    so that rounding lifts none above all of it: clipping is idempotent.
    """
    left, values, right = parts
    known = values.tolist()
    if not known[0] > limit * (1 + tolerance):
        return Clipped(0, known, right)
    count = number_above(known, limit * (1 + tolerance / 2))
    lost = count * (known[0] / limit - 1)
    difference = weight.dtype == torch.float32 and known[0] <= MAX_RATIO * limit and lost <= MAX_LOST
    if difference and weight.shape[1] > MAX_SIZE_ANEW:
        columns = right[:, :count].float()
        excess = (1 - limit / values[:count]).float()
        if left is None:
            image = thin_product(weight, columns * excess)
        else:
            image = left[:, :count].float() * values[:count].float().mul_(excess)
        subtract_low_rank_(weight, image, columns)
    else:  # recomposed: from far above the limit, or in a long sum, a difference loses digits
        image = weight.double() @ right if left is None else left * values
        image *= limit / values.clamp(min=limit)
        weight.copy_(image @ right.mT)
    return Clipped(count, values.clamp(max=limit).tolist(), right)
