"""An upper bound of ||W||_2 from random vectors, wrong with a probability of at most `MISS`.

Equation (9) of README.md for Chebyshev's polynomial, whose least bound solves (10). It takes 2 k products of m n b
for a polynomial of degree k and b vectors.
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
MOST_TERMS = 24


def probes(rows: int, like: Tensor, seed: int, count: int = PROBES) -> Tensor:
    """(rows, count) standard Gaussian numbers, others for every `seed` below 2^32, the same for every matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, count, generator=generator, dtype=torch.float32).to(like)


def bound(weight: Tensor, guess: float, target: float, vectors: Tensor, right: Tensor | None = None) -> float:
    """A number mu with ||W (I - P)||_2 <= mu, not above `target` if a polynomial of degree `MOST_TERMS` gets there.

    weight (m, n); guess: what the norm might be, and not far below it; vectors: `probes` (n, b) on which W and P do not
    depend, written over; P projects on the orthonormal columns of `right` (n, p), none by default. Rounding moves mu by
    some eps ||W||^2 / mu.
    """

    def allowed(degree: int, largest: float) -> float:
        return guess * math.sqrt((1 + math.cosh(math.acosh(max(largest / ALPHA, 1.0)) / degree)) / 2)

    if not 0 < guess < target:
        return math.inf
    # The degree that it takes if the guess is right.
    expected = math.acosh(math.sqrt(weight.shape[1]) / ALPHA) / growth(target, guess)
    if expected > MOST_TERMS:
        return math.inf
    x, before, degree = vectors if right is None else _apart(vectors, right), None, 0
    while degree < MOST_TERMS:
        now = max(1, min(math.ceil(expected) - degree, MOST_TERMS - degree)) if right is None else 1
        x, before, largest = chebyshev(weight, x, guess, now, before, degree)
        degree += now
        if right is not None:
            x = _apart(x, right)
            if degree < expected:
                continue
            largest = float(torch.linalg.vector_norm(x, dim=0).max())
        mu = allowed(degree, largest)
        if mu <= target:
            return mu
    return math.inf


def _apart(x: Tensor, right: Tensor) -> Tensor:
    """(I - P) x."""
    return torch.addmm(x, right, right.mT @ x, alpha=-1)
