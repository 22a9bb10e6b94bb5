"""The certificate that no singular value is above the limit after a step: equation (8) of README.md, given a bound of
what the Ritz pairs leave out, from random vectors, (9), or from the last step's certificate by Weyl's inequality, (2).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.bound import bound, probes
from gruclip.spectral.subspace import Block, number_above

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
#: What is added to a computed singular value or bound for its rounding, relative to it.
ROUNDED = 1e-6


class Certificate(NamedTuple):
    """What is known of the singular values after a step."""

    largest: float  #: sigma_1 is at most this
    held: int  #: k
    rest: float  #: sigma_(k + 1) is at most this


NONE = Certificate(math.inf, 0, math.inf)


def certifies(block: Block, count: int, limit: float, ceiling: float, beta: float) -> bool:
    """Whether (8) shows that no singular value is above `ceiling` once those of the first `count` pairs above it are
    clipped to `limit`; beta < ceiling bounds the values that these leave out.
    """
    # Of a positive semidefinite matrix the trace bounds the largest eigenvalue.
    return sum(_shares(block, limit, ceiling, beta)[:count]) <= 1


def _room(block: Block, limit: float, ceiling: float) -> list[float]:
    """1 - (theta / ceiling)^2 of each pair after clipping; values from limit to ceiling are not clipped."""
    return [1 - ((limit if value > ceiling else value) / ceiling) ** 2 for value in block.values]


def widest_gap(values: list[float], limit: float, least: int, step: float) -> int:
    """How many of the values, descending, precede their widest gap, at least `least`; 0 where a few steps of length
    `step` = ||W - W_old||_F may close it.
    """
    gaps = [values[i - 1] - values[i] if values[i] < MAX_BETA * limit else 0.0 for i in range(least, len(values))]
    widest = max(gaps, default=0.0)
    return least + gaps.index(widest) if widest > STEPS * step else 0


def _shares(block: Block, limit: float, ceiling: float, bulk: float) -> list[float]:
    """The share of its room in (8) that each pair's residual uses."""
    kappa = ceiling**2 / (ceiling**2 - bulk**2)
    return [
        kappa * (size / ceiling) ** 2 / left if left > 0 else math.inf
        for size, left in zip(block.size, _room(block, limit, ceiling), strict=True)
    ]


def _certifiable(block: Block, limit: float, ceiling: float) -> int:
    """How many of the leading pairs have residuals that let a certificate hold, even with the largest bulk."""
    total = 0.0
    for count, share in enumerate(_shares(block, limit, ceiling, MAX_BETA * limit)):
        total += share
        if total > SHARE:
            return count
    return len(block.values)


def uncertainty(block: Block, limit: float, ceiling: float, near: int) -> list[float]:
    """For each of the first `near` pairs its residual over the largest for which (8) can hold; empty if all are
    small enough."""
    if _certifiable(block, limit, ceiling) >= near:
        return []
    shares = _shares(block, limit, ceiling, MAX_BETA * limit)[:near]
    return [math.sqrt(2 * share * near / SHARE) for share in shares]


def left_out(block: Block, count: int, above: float) -> float:
    """beta, if at most `count` singular values of the matrix exceed `above` and `count` pairs were found:
    beta^2 = above^2 + theta_1 ||E||_F (README.md). Infinite if one of these pairs is not above beta.
    """
    beta = math.sqrt(above**2 + block.values[0] * math.hypot(*block.size[:count])) * (1 + ROUNDED)
    return beta if beta < block.values[count - 1] else math.inf


def _certificate(block: Block, limit: float, ceiling: float, count: int, beta: float) -> Certificate | None:
    """From the first `count` pairs, after clipping; None if (8) fails."""
    if beta > MAX_BETA * limit or not certifies(block, count, limit, ceiling, beta):
        return None
    # By (5) with clipped Theta; likewise sigma_(count + 1) <= beta + coupling.
    coupling = math.hypot(*block.size[:count])
    return Certificate(min(max(block.values[0], beta) + coupling, ceiling), count, beta + coupling)


def from_last(block: Block, limit: float, ceiling: float, last: Certificate, moved: float) -> Certificate | None:
    """The certificate of a matrix at a distance `moved`, in the Frobenius norm, from that of `last`, by (2); None where
    beta no longer separates `last.held` pairs from the others.
    """
    if not 0 < last.held <= min(_certifiable(block, limit, ceiling), len(block.values) - 1):
        return None
    # By (2) no more values than `held` are above the sum.
    beta = left_out(block, last.held, last.rest + moved)
    return _certificate(block, limit, ceiling, last.held, beta)


def from_random_vectors(
    weight: Tensor, block: Block, limit: float, ceiling: float, draw: int, moved: float
) -> Certificate | None:
    """The certificate of `weight` by random vectors, new for each `draw`; None on failure. `moved`: the length of a
    step, in the Frobenius norm.
    """
    count = min(_certifiable(block, limit, ceiling), len(block.values) - 1)
    count = min(count, max(number_above(block.values, MIN_TRACKED * limit), 1))
    count = widest_gap(block.values[: count + 1], limit, max(number_above(block.values, ceiling), 1), moved) or count
    if count == 0:
        return None
    largest = block.values[count]
    guess, target = largest + GUESS * (limit - largest), MAX_BETA * limit
    found = block.left[:, :count] * weight.new_tensor(block.values[:count])
    rest = torch.addmm(weight, found, block.right[:, :count].mT, alpha=-1)
    beta = bound(rest, guess, target, probes(weight.shape[1], weight, 2 * draw + 1))
    return _certificate(block, limit, ceiling, count, beta)
