"""Clipping by a tracked subspace, certified: some thin products a step instead of a decomposition.

The subspace of the last step and the leading directions of the change since are filtered until the Ritz pairs give the
result (6) to the precision (7), and `certificate` shows (8). The numbers are the equations of README.md.

Cost in multiply-adds, for q columns: 2 m n q for each degree of the filter and for each Rayleigh-Ritz, 0 to 12 and two
as a rule, and 2 m n b for each degree of the bound, b = 16 and four to twelve degrees.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral import single
from gruclip.spectral.bound import probes
from gruclip.spectral.certificate import (
    NONE,
    ROUNDED,
    Certificate,
    clip_certified_,
    from_last,
    from_random_vectors,
    uncertainty,
    widest_gap,
)
from gruclip.spectral.state import NUMBERS
from gruclip.spectral.subspace import (
    NEAR,
    Block,
    Target,
    converge,
    elementwise_max,
    imprecision,
    norm_imprecision,
    number_above,
)
from gruclip.spectral.thin import distance, thin_product

#: Columns carried beside those of values above NEAR * limit, at least; their number and the sketch's make whole panels.
GUARD = 4
#: Pairs beside those, at least, in a step.
SPARE = 3
#: Columns of the sketch of a change; and as many as a thin product takes at the price of one.
SKETCH, PANEL = 8, 16
#: Share of min(m, n) that the filtered columns may be, and where `single` takes the matrix: with more, a decomposition
#: is cheaper.
MAX_SHARE, MAX_SHARE_SINGLE = 1 / 8, 1 / 12
#: The work of a step, degrees times columns, from which a decomposition by `single` is cheaper, relative to the size of
#: a square matrix; the share of that decomposition that is no product of W with itself; and for how many steps it then
#: serves, until a subspace is tried again.
MAX_WORK, SQUARE_SHARE, UNTRACKED_STEPS = 1.15, 0.55, 32
#: Work outside the filter, in degrees: with a certificate by random vectors, and by the last step's.
BESIDE_DRAWN, BESIDE = 9, 4
#: ||W - W_old||_F below which the filter needs no sketch, relative to the gap between the limit, or a bound of sigma_1
#: below it, and what is left out.
STILL = 0.1
#: Columns that show sigma_1 where nothing can be above the limit: carried ones, and random ones or the change's.
LEADING, STIRRED = 8, 2
#: Least ratio of the estimate of the largest value left out to the last one: Ritz values are lower bounds.
MIN_BULK_RATIO = 0.98
#: Columns of a search in a matrix of which nothing is known.
SEARCHED = 32


class Tracked(NamedTuple):
    """What is carried for one matrix."""

    right: Tensor  #: (n, k): what spans the leading right singular vectors, and need not be orthonormal
    previous: Tensor  #: W (m, n) after the last step
    bulk: float  #: an estimate of the largest value that they leave out, for no certificate
    shown: Certificate  #: of `previous`; infinite bounds for none
    draws: int  #: how often random vectors were drawn, the seed of the next
    degree: int  #: of the filter that the last step would have needed

    def entries(self) -> dict[str, Tensor]:
        """What a state holds: the numbers as one tensor, on the CPU."""
        numbers = torch.tensor([self.bulk, *self.shown, self.draws, self.degree], dtype=torch.float64)
        return {"right": self.right, "previous": self.previous, NUMBERS: numbers}


def tracked_in(entries: dict[str, Tensor]) -> Tracked | None:
    """What these entries of a state say; None where they are another algorithm's."""
    if not entries.keys() >= {"right", "previous", NUMBERS}:
        return None
    bulk, largest, pairs, rest, draws, degree = entries[NUMBERS].tolist()
    shown = Certificate(largest, int(pairs), rest)
    return Tracked(entries["right"], entries["previous"], bulk, shown, int(draws), int(degree))


class Step(NamedTuple):
    """What a step did to a matrix."""

    clipped: int  #: values
    norm: float  #: sigma_1 after it
    tracked: Tracked
    costly: bool = False  #: whether a decomposition would have been cheaper


def width_for(weight: Tensor, near: int) -> int:
    """Columns to carry where `near` values lie above NEAR * limit; 0 where that would not pay."""
    width, size = -(-(near + GUARD + SKETCH) // PANEL) * PANEL - SKETCH, min(weight.shape)
    widest = max(PANEL, MAX_SHARE * size)
    if single.takes(weight):
        widest = min(widest, max(2 * PANEL, MAX_SHARE_SINGLE * size))
    return width if width + SKETCH <= widest else 0


def start(weight: Tensor, target: Target, values: list[float], right: Tensor, draws: int) -> Tracked | None:
    """Track `weight`, clipped already, by its leading singular values, descending (the first not underestimated),
    their right vectors (n, k), and the draws so far.

    None where so many values lie near the limit that a full decomposition is cheaper.
    """
    width = width_for(weight, number_above(values, NEAR * target.limit))
    if not 0 < width < len(values):
        return None
    leading = right[:, :width].to(weight.dtype).contiguous()
    known = [value * (1 + ROUNDED) for value in values[: width + 1]]
    pairs = widest_gap(known, target.limit, 1, 0.0)
    # It was found inside, and is where nothing has moved.
    shown = Certificate(min(known[0], target.ceiling), pairs, known[pairs] if pairs else torch.inf)
    return Tracked(leading, weight.clone(), known[width], shown, draws, 0)


def pairs_wanted(weight: Tensor, near: int) -> int:
    """How many leading triplets `start` needs, given the number of values above NEAR * limit; none if it would not."""
    width = width_for(weight, near)
    return width + 1 if width else 0


def distance_moved(weight: Tensor, tracked: Tracked) -> float:
    """||W - W_old||_F, not underestimated."""
    return distance(weight, tracked.previous) * (1 + ROUNDED)


def clip(weight: Tensor, target: Target, tracked: Tracked) -> Step | None:
    """Clip `weight` in place; None, and the weight unchanged, where no certificate was found."""
    moved = distance_moved(weight, tracked)
    done = inside(weight, target, tracked, moved)
    if done is not None:
        return done
    tracked = tracked._replace(draws=tracked.draws + 1)
    if target.limit < torch.inf:
        gap = target.limit - tracked.bulk
    else:  # sigma_1 alone is wanted, which is not below the values' root mean square
        gap = max(tracked.bulk, target.frobenius / math.sqrt(min(weight.shape)))
    columns = [tracked.right, _sketch(weight, tracked, SKETCH)] if moved > STILL * gap else [tracked.right]
    return _clip_from(weight, target, torch.cat(columns, 1), tracked, moved)


def inside(weight: Tensor, target: Target, tracked: Tracked, moved: float) -> Step | None:
    """The outcome if (2) shows that no value of `weight`, at a distance `moved` from the tracked matrix, is above the
    limit; its norm, from a few columns, is only reported. None otherwise.
    """
    # With the tolerance: what was found inside by another look must not be found above by this one's rounding.
    if not tracked.shown.largest + moved <= target.ceiling < torch.inf:
        return None
    tracked = tracked._replace(draws=tracked.draws + 1)
    # From the change, once that may hold the largest value: the carried columns may never show it.
    stirred = _sketch if moved > STILL * (tracked.shown.largest - tracked.bulk) else _random
    columns = torch.cat((tracked.right[:, :LEADING], stirred(weight, tracked, STIRRED)), 1)
    found = converge(weight, columns, norm_imprecision)
    if found is None:
        return None
    right = torch.cat((found.block.right[:, :LEADING], tracked.right[:, LEADING:]), 1)
    return Step(0, min(found.block.values[0], target.limit), tracked._replace(right=right))


def _random(weight: Tensor, tracked: Tracked, count: int) -> Tensor:
    # An even seed; the bound's are odd, and torch's generator takes 32 bits of them.
    return probes(weight.shape[1], weight, 2 * tracked.draws, count)


def _sketch(weight: Tensor, tracked: Tracked, count: int) -> Tensor:
    """What a change u s v^T brings is near the direction W^T u, of which v is one part and W_old^T u another."""
    vectors = _random(weight, tracked, count)
    change = thin_product(weight, vectors, roughly=True) - thin_product(tracked.previous, vectors, roughly=True)
    return thin_product(weight.mT, change, roughly=True)


def search(weight: Tensor, target: Target) -> Step | None:
    """`clip` for a matrix of which nothing is known; None also where that takes too long."""
    unknown = Tracked(weight[:, :0], weight, 0.0, NONE, 1, 0)
    found = _clip_from(weight, target, _random(weight, unknown, SEARCHED), unknown, torch.inf)
    # What it took says nothing of the next step, which begins with what was found.
    return None if found is None else found._replace(costly=False)


def _clip_from(weight: Tensor, target: Target, columns: Tensor, tracked: Tracked, moved: float) -> Step | None:
    """`clip` by the subspace of these columns, filtered."""
    limit = target.limit
    # For a matrix that has shrunk the last estimate is too high, and a filter that ends above all values separates
    # none: sigma_(k + 1) <= ||W||_F / (k + 1)^(1/2).
    last_bulk = min(tracked.bulk, target.frobenius / math.sqrt(tracked.right.shape[1] + 1))
    end = min(last_bulk, NEAR * limit)

    def judge(block: Block) -> list[float] | None:
        if limit == torch.inf:
            return norm_imprecision(block)
        near = number_above(block.values, NEAR * limit)
        if not width_for(weight, near) or near + SPARE > len(block.values):
            return None
        return elementwise_max(imprecision(block, target, near + SPARE - 1), uncertainty(block, target, near))

    drawn = False

    def certify(block: Block, far: bool) -> Certificate | None:
        nonlocal drawn
        if limit == torch.inf:
            return NONE
        step = math.inf if far else moved
        shown = from_last(block, target, tracked.shown, step)
        drawn = shown is None
        return from_random_vectors(weight, block, target, tracked.draws, step) if drawn else shown

    done = clip_certified_(weight, columns, target, judge, certify, end, tracked.degree)
    if done is None:
        return None
    count, ((values, _, right, *_), degree), shown = done
    width = min(width_for(weight, number_above(values, NEAR * limit)) or GUARD, len(values))
    bulk = max(values[min(width, len(values) - 1)], MIN_BULK_RATIO * last_bulk)
    # In place where possible: mapping new memory takes longer than writing it.
    previous = weight.clone() if tracked.previous is weight else tracked.previous.copy_(weight)
    kept = Tracked(right[:, :width].contiguous(), previous, bulk, shown, tracked.draws, degree)
    costly = _is_costly(weight, columns.shape[1], degree + (BESIDE_DRAWN if drawn else BESIDE))
    return Step(count, min(values[0], limit), kept, costly)


def _is_costly(weight: Tensor, columns: int, degrees: int) -> bool:
    """Whether a step with so much work would have been cheaper as a decomposition by `single`."""
    small, large = sorted(weight.shape)
    costliest = MAX_WORK * small * (SQUARE_SHARE * small / large + 1 - SQUARE_SHARE)
    return single.takes(weight) and columns * degrees > costliest
