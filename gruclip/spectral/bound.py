"""An upper bound of ||W||_2 from random vectors, wrong with a probability of at most `MISS`.

Equation (9) of README.md for Chebyshev's polynomial, whose least bound solves (10). It takes 2 k m n b
multiply-adds for degree k and b vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gruclip.spectral.subspace import chebyshev, growth

#: The probability that a bound is wrong, at most.
MISS = 1e-13
#: Random vectors: as many as a thin product takes at the price of one.
PROBES = 16
#: alpha of (9).
ALPHA = math.sqrt(math.pi / 2) * MISS ** (1 / PROBES)
#: Degree of the polynomial in A, at most.
MAX_DEGREE = 24


def probes(rows: int, like: Tensor, seed: int, count: int = PROBES) -> Tensor:
    """(rows, count) standard Gaussian numbers, new for every `seed` below 2^32, the same for all matrices."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, count, generator=generator, dtype=torch.float32).to(like)


def bound(rest: Tensor, guess: float, target: float, vectors: Tensor) -> float:
    """A number mu <= `target` with ||rest||_2 <= mu; infinity where degree `MAX_DEGREE` shows none.

    rest (m, n); guess: an estimate of the norm, not far below it; vectors: `probes` (n, b), independent of `rest`,
    overwritten. Rounding moves mu by some eps ||rest||^2 / mu.
    """
    if not 0 < guess < target:
        return math.inf
    # The degree that it takes if the guess is right.
    expected = math.acosh(math.sqrt(rest.shape[1]) / ALPHA) / growth(target, guess)
    x, before, degree, more = vectors, None, 0, max(1, math.ceil(min(expected, MAX_DEGREE + 1)))
    while degree + more <= MAX_DEGREE:
        x, before, largest = chebyshev(rest, x, guess, more, before, degree)
        degree, more = degree + more, 1
        mu = guess * math.sqrt((1 + math.cosh(math.acosh(max(largest / ALPHA, 1.0)) / degree)) / 2)
        if mu <= target:
            return mu
    return math.inf
