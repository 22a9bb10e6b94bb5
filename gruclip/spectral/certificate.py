"""Clipping by Ritz pairs, (6) of README.md, and the certificate that no value is above the limit after it, (8).

It needs a bound of what the pairs leave out: from random vectors, (9), from the last step's certificate by Weyl's
inequality, (2), or from how many values a decomposition has counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.bound import bound, probes
from gruclip.spectral.subspace import (
    MAX_RATIO,
    Block,
    Found,
    Judge,
    Target,
    clip_leading_,
    converge,
    error,
    number_above,
    precision,
)

#: beta / L, at most: kappa is then below 34.
MAX_BETA = 0.985
#: Ritz pairs below this multiple of L are left to the bulk: each tracked one costs, and so does a bulk near L.
MIN_TRACKED = 0.88
#: Where in the gap between the largest value left out and the limit the interval of the bound's polynomial ends.
GUESS = 0.1
#: A certificate ends at a gap between values if that is wider than so many steps.
STEPS = 4
#: Share of the certificate's room that residuals may use, by an estimate; pairs beyond it are left out.
SHARE = 0.5
#: (7), in units of what each of its two sums may be with a Ritz value for mu, at most with a bound of what is left out.
ALLOWED = 2.0
#: What is added to a computed singular value or bound for its rounding, relative to it.
ROUNDED = 1e-6


class Certificate(NamedTuple):
    """What is known of the singular values after a step."""

    largest: float  #: sigma_1 is at most this
    pairs: int  #: k
    rest: float  #: sigma_(k + 1) is at most this


NONE = Certificate(math.inf, 0, math.inf)


def clip_certified_(
    weight: Tensor,
    columns: Tensor,
    target: Target,
    judge: Judge,
    certify: Callable[[Block, bool], Certificate | None],
    end: float = 0.0,
    degree: int = 0,
) -> tuple[int, Found, Certificate] | None:
    """Clip in place, by (6), what Ritz pairs on the span of some columns have above the ceiling, once `judge` finds
    them precise and `certify` has a certificate; None, and the matrix unchanged, where one gives up.

    `certify` is also told whether values far above the limit were clipped already; `end`, `degree`: as in `converge`.
    How many values were clipped, the pairs, and the certificate.
    """
    limit, before, count = target.limit, None, 0
    found = converge(weight, columns, judge, end, degree)
    if found is not None and MAX_RATIO * limit < found.block.values[0] < torch.inf:
        # A difference from so far away loses digits: once more, from near the limit.
        before, degree = weight.clone(), found.degree
        count = clip_leading_(weight, found.block, limit, target.ceiling)
        found = converge(weight, found.block.right.contiguous(), judge, end)
        found = None if found is None else found._replace(degree=degree)
    certificate = None if found is None else certify(found.block, before is not None)
    if found is None or certificate is None:
        if before is not None:
            weight.copy_(before)
        return None
    # What came from far above is at the limit up to rounding: clip it to the limit.
    again = clip_leading_(weight, found.block, limit, target.ceiling if before is None else limit)
    return count or again, found, certificate


def certifies(block: Block, target: Target, count: int, beta: float) -> bool:
    """Whether (8) shows that no singular value is above the ceiling once those of the first `count` pairs above it are
    clipped to the limit; beta < ceiling bounds the values that these leave out.
    """
    # Of a positive semidefinite matrix the trace bounds the largest eigenvalue.
    return sum(_shares(block, target, beta)[:count]) <= 1


def _room(block: Block, target: Target) -> list[float]:
    """1 - (theta / ceiling)^2 of each pair after clipping; values from limit to ceiling are not clipped."""
    limit, ceiling = target.limit, target.ceiling
    return [1 - ((limit if value > ceiling else value) / ceiling) ** 2 for value in block.values]


def widest_gap(values: list[float], limit: float, least: int, step: float) -> int:
    """How many of the values, descending, precede their widest gap, at least `least`; 0 where a few steps of length
    `step` = ||W - W_old||_F may close it.
    """
    gaps = [values[i - 1] - values[i] if values[i] < MAX_BETA * limit else 0.0 for i in range(least, len(values))]
    widest = max(gaps, default=0.0)
    return least + gaps.index(widest) if widest > STEPS * step else 0


def _shares(block: Block, target: Target, beta: float) -> list[float]:
    """The share of its room in (8) that each pair's residual uses."""
    ceiling = target.ceiling
    kappa = ceiling**2 / (ceiling**2 - beta**2)
    return [
        kappa * (size / ceiling) ** 2 / left if left > 0 else math.inf
        for size, left in zip(block.size, _room(block, target), strict=True)
    ]


def _certifiable(block: Block, target: Target) -> int:
    """How many of the leading pairs have residuals that let a certificate hold, even with the largest beta."""
    total = 0.0
    for count, share in enumerate(_shares(block, target, MAX_BETA * target.limit)):
        total += share
        if total > SHARE:
            return count
    return len(block.values)


def uncertainty(block: Block, target: Target, count: int) -> list[float]:
    """For each of the first `count` pairs its residual over the largest for which (8) can hold; empty if all are
    small enough."""
    if _certifiable(block, target) >= count:
        return []
    shares = _shares(block, target, MAX_BETA * target.limit)[:count]
    return [math.sqrt(2 * share * count / SHARE) for share in shares]


def _from_bound(block: Block, target: Target, count: int, beta: float) -> Certificate | None:
    """The certificate by the first `count` pairs, given a bound of what they leave out; None if (8) fails, or if (7)
    with that bound for mu is too large."""
    if beta > MAX_BETA * target.limit or not certifies(block, target, count, beta):
        return None
    if error(block, target, beta) > ALLOWED * precision(block, target):
        return None
    # By (5) with clipped Theta; likewise sigma_(count + 1) <= beta + coupling.
    coupling = math.hypot(*block.size[:count])
    return Certificate(min(max(block.values[0], beta) + coupling, target.ceiling), count, beta + coupling)


def from_count(block: Block, target: Target, count: int, mark: float, largest: float) -> Certificate | None:
    """The certificate where at most `count` singular values are above `mark`, and none above `largest`: by beta^2 =
    mark^2 + theta_1 ||E||_F (README.md). None where not all of as many pairs are above that beta.
    """
    beta = math.sqrt(mark**2 + largest * math.hypot(*block.size[:count])) * (1 + ROUNDED)
    return _from_bound(block, target, count, beta) if beta < block.values[count - 1] else None


def from_last(block: Block, target: Target, last: Certificate, moved: float) -> Certificate | None:
    """The certificate of a matrix at a distance `moved`, in the Frobenius norm, from that of `last`; None where its
    pairs can no longer be told from the others.
    """
    if not 0 < last.pairs <= min(_certifiable(block, target), len(block.values) - 1):
        return None
    # By (2) no more values are above the sum.
    return from_count(block, target, last.pairs, last.rest + moved, block.values[0])


def from_random_vectors(weight: Tensor, block: Block, target: Target, draw: int, moved: float) -> Certificate | None:
    """The certificate of `weight` by random vectors, new for each `draw`; None on failure. `moved`: the length of a
    step, in the Frobenius norm.
    """
    limit = target.limit
    count = min(_certifiable(block, target), len(block.values) - 1)
    count = min(count, max(number_above(block.values, MIN_TRACKED * limit), 1))
    clipped = number_above(block.values, target.ceiling)
    count = widest_gap(block.values[: count + 1], limit, max(clipped, 1), moved) or count
    if count == 0:
        return None
    largest = block.values[count]
    found = block.left[:, :count] * weight.new_tensor(block.values[:count])
    rest = torch.addmm(weight, found, block.right[:, :count].mT, alpha=-1)
    vectors = probes(weight.shape[1], weight, 2 * draw + 1)
    beta = bound(rest, largest + GUESS * (limit - largest), MAX_BETA * limit, vectors)
    return _from_bound(block, target, count, beta)
