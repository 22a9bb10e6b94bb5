"""Clipping by a tracked subspace as a fixed program, for whole batches on a GPU: nothing that the host has to wait for.

The method of `tracked` with a number of columns and degrees that no matrix changes: the carried subspace and a sketch of
the change are filtered, the thin matrix that W makes of them is clipped by the polynomials of `products`, and the
difference goes back. Decompositions become Cholesky factorisations of q x q matrices, and the certificate (8) and the
precision (7) forms that need no Ritz vectors, (17) and (18). The numbers are the equations of README.md.

Products with W are in the matrices' own dtype, q x q work and what sums up to it in float64. A matrix that is not finite,
not certified or not precise is left as it was and reported; its state takes what was learned nevertheless, so that it
is certified some steps later.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gruclip.kernels.dropout import random_bits
from gruclip.spectral.bound import ALPHA, PROBES
from gruclip.spectral.products import Projected, Series, clipping_factor
from gruclip.spectral.subspace import PRECISION
from gruclip.spectral.tracked import GUESS, HIGHEST_BULK, NEAR, SHARE, SKETCH

#: Columns carried; beside those of the sketch.
CARRIED = 56
#: Degrees of the filter between two times that the basis is made orthonormal, and of the bound.
DEGREES, BOUND_DEGREE = (2, 4, 4, 2), 12
#: The polynomials that clip the thin matrix, whose values may be this many limits.
FARTHEST = 8.0
#: Of the powers of the Gram matrix that bring the leading columns first, and of those that give its norm.
ORDER, SQUARINGS = 4, 14


def gaussian(seeds: Tensor, rows: int, columns: int) -> Tensor:
    """(R, rows, columns) standard Gaussian numbers, float32, the same for equal seeds (R,): Box and Muller's."""
    bits = random_bits(seeds, rows * columns // 2)
    radius = ((((bits >> 40) & 0xFFFFFF) + 1).float() * 2**-24).log().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFF).float() * (2 * math.pi * 2**-24)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), 1).view(-1, rows, columns)
