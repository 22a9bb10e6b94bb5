"""An upper bound of ||W (I - P)||_2 from random vectors, wrong with a probability of at most `MISS`.

Equation (11) of README.md for Chebyshev's polynomial, whose least bound solves (12). It takes 2 k products of m n b
for a polynomial of degree k and b vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gruclip.kernels import compiled
from gruclip.spectral.thin import there_and_back

#: The probability that a bound is wrong, at most.
MISS = 1e-13
#: Random vectors: as many as a thin product takes at the price of one.
PROBES = 16
#: alpha of the module's docstring.
ALPHA = math.sqrt(math.pi / 2) * MISS ** (1 / PROBES)
#: Degree of the polynomial in A, at most.
MOST_TERMS = 24


def probes(rows: int, like: Tensor, draw: int) -> Tensor:
    """(rows, PROBES) standard Gaussian numbers, others for every `draw` and the same for every matrix."""
    generator = torch.Generator().manual_seed(draw)
    return torch.randn(rows, PROBES, generator=generator).to(like)


def bound(weight: Tensor, right: Tensor, guess: float, target: float, vectors: Tensor) -> float:
    """A number mu with ||W (I - P)||_2 <= mu, not above `target` if a polynomial of degree `MOST_TERMS` gets there.

    weight (m, n); P projects on the orthonormal columns of `right` (n, p); guess: what the norm might be, and not far
    below it; vectors: `probes` (n, b) on which neither W nor P depends. Rounding moves mu by some
    eps ||W||^2 / mu.
    """

    def apart(x: Tensor) -> Tensor:
        return x - right @ (right.mT @ x)

    def step(factor: float, x: Tensor, before: Tensor | None) -> tuple[Tensor, float]:
        """factor (2 A / a - I) x - before, for x in the range of I - P, and the largest norm of its columns."""
        product = there_and_back(weight, x)[1]
        if compiled.takes(product, x, before, right):
            following, largest = torch.empty_like(x), torch.empty((), dtype=torch.float64)
            numbers = torch.tensor([2 / guess**2, factor], dtype=torch.float64)
            made = [following, largest, product, x, before, right.contiguous(), numbers]
            compiled.call("gruclip_chebyshev", made, [*x.shape, right.shape[1]])
        else:
            following = (apart(product) * (2 / guess**2) - x) * factor
            following = following if before is None else following - before
            largest = torch.linalg.vector_norm(following, dim=0).max()
        return following, float(largest)

    def growth(mu: float) -> float:
        return math.acosh(2 * (mu / guess) ** 2 - 1)

    def allowed(degree: int, largest: float) -> float:
        return guess * math.sqrt((1 + math.cosh(math.acosh(max(largest / ALPHA, 1.0)) / degree)) / 2)

    if not 0 < guess < target:
        return math.inf
    # The degree that it takes if the guess is right.
    expected = math.acosh(math.sqrt(weight.shape[1]) / ALPHA) / growth(target)
    if expected > MOST_TERMS:
        return math.inf
    before, x = None, apart(vectors).contiguous()
    for degree in range(1, MOST_TERMS + 1):
        following, largest = step(1.0 if before is None else 2.0, x, before)
        before, x = x, following
        if degree + 1 >= expected:
            mu = allowed(degree, largest)
            if mu <= target:
                return mu
    return math.inf
