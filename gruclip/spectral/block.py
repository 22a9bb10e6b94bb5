"""Clipping by a tracked subspace, certified: a few thin products a step instead of a decomposition.

The Ritz values and vectors of equations (3) to (5) of README.md give the result (6), with the error (7). It is
certified by (8), a q x q matrix, with the bound beta of what the subspace leaves out from a reference, (9) and (10),
which is taken anew when beta comes near the limit or the certificate fails for another reason.

Cost in multiply-adds: 3 m n q for a step and m n (q + 2 c) for every c residuals that join the basis; some 10 m n b
for a reference, with b = 16; a full decomposition takes some 10 n^3 at a lower speed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.bound import bound, probes
from gruclip.spectral.ritz import (
    FARTHEST,
    MOST_EXPANSIONS,
    Block,
    clip_leading,
    converge,
    excess_for_precision,
    gram,
    number_above,
    orthonormal,
)
from gruclip.spectral.thin import distance, there_and_back, thin_product

#: Columns of F: at least this many, and every value above NEAR * limit.
FEWEST, NEAR = 4, 0.92
#: Columns carried beside those whose values are above NEAR * limit.
EXTRA = 4
#: Shares of min(m, n) from which a decomposition was cheaper where it was measured (n = 140 to 650): the values near
#: the limit, and the columns to begin with.
NEAR_SHARE, FEWEST_SHARE = 0.02, 0.08
#: Random vectors are drawn so many times in a step, at most.
MOST_DRAWS = MOST_EXPANSIONS + 1
#: beta / L, at most: kappa is then below 18.
HIGHEST_BULK = 0.97
#: Where in the gap between the smallest tracked value and the limit the polynomial's interval ends, and mu may be where
#: it should leave room for the steps to come.
GUESS, MU = 0.1, 0.3
#: How many steps like the last there should be room for: a reference that is not to be used again costs half.
LASTING = 3
#: ||W - W_0||_F, relative to the room for it, from which its leading vectors join the basis.
FAR = 0.4
#: The share of it that may be left when they have.
TAIL = 0.05
#: So many of them at least, and as many more as make all columns a multiple of what a thin product takes at once.
FEWEST_SKETCH, PANEL = 4, 16
#: What pairs that make a certificate fail are taken to be too large by.
FAILING = 4.0
#: Smallest Ritz value, relative to the largest, by which W Q can be divided for a left vector.
LEAST_VALUE = 1e-6


class Tracked(NamedTuple):
    """What is carried for one matrix."""

    first: Tensor  #: F (n, p)
    leading: Tensor  #: (n, near + EXTRA): the leading right singular vectors of the last step
    reference: Tensor  #: W_0 (m, n)
    top: Tensor  #: ||W_0 F||_2, a float64 number on the CPU
    bulk: Tensor  #: mu, likewise; infinity where nothing is known, and `top` is then sigma_1(W_0)
    age: Tensor  #: steps since W_0, on the CPU
    draws: Tensor  #: how often random vectors were drawn, on the CPU: they are others each time


class Clipped(NamedTuple):
    """What a step did."""

    clipped: int  #: values
    norm: float  #: sigma_1 after it
    tracked: Tracked


def start(weight: Tensor, limit: float, values: Tensor, right: Tensor, draws: int) -> Tracked | None:
    """Track `weight`, clipped at `limit`: its leading singular values and right vectors (n, k), descending, and the
    number of draws so far.

    None where so many values lie near the limit that a full decomposition is cheaper.
    """
    near = number_above(values.tolist(), NEAR * limit)
    frozen = max(near, FEWEST)
    if not pairs_wanted(near, min(weight.shape)) or frozen >= values.shape[0]:
        return None
    first, leading = (right[:, :width].to(weight.dtype).contiguous() for width in (frozen, near + EXTRA))
    top, bulk = values[0].cpu(), values[frozen].cpu()
    return Tracked(first, leading, weight.clone(), top, bulk, torch.tensor(0), torch.tensor(draws))


def pairs_wanted(near: int, size: int) -> int:
    """How many leading triplets `start` needs, given the number of values above NEAR * limit; none if it would not."""
    pays = near <= NEAR_SHARE * size and FEWEST_SHARE * size >= FEWEST + EXTRA
    return max(near, FEWEST) + EXTRA if pays else 0


def _next_probes(rows: int, tracked: Tracked) -> tuple[Tensor, Tracked]:
    """Random vectors (rows, b) that were not drawn before, and the new count."""
    draws = tracked.draws + 1
    return probes(rows, tracked.reference, int(draws)), tracked._replace(draws=draws)


def clip(weight: Tensor, norm: float, limit: float, tracked: Tracked, tolerance: float) -> Clipped | None:
    """Clip `weight`, of Frobenius norm `norm`, in place at `limit` (infinity: only measure).

    None where no certificate was found; the weight is then unchanged.
    """
    ceiling = limit * (1 + tolerance)
    drift = distance(weight, tracked.reference)
    left = drift  # ||(W - W_0)(I - Q Q^T)||_F for the basis Q, at most
    tracked = tracked._replace(age=tracked.age + 1)

    def imprecise(block: Block) -> list[float] | None:
        if block.values[0] > FARTHEST * limit:
            return None
        return excess_for_precision(block, norm, limit, ceiling)

    def uncertain(block: Block) -> list[float] | None:
        nonlocal tracked, drift, left
        if limit == torch.inf:
            return []
        if block.values[-1] < LEAST_VALUE * block.values[0]:
            return None
        excess = None
        for count in tries:
            some = block if count is None else _leading(block, count)
            bulk = _bulk(weight, limit, tracked, some, drift, left if count is None else drift)
            if bulk <= HIGHEST_BULK * limit:
                excess = _excess_for_certificate(some, bulk, limit, ceiling)
                if not excess:
                    return excess
        vectors, tracked = _next_probes(weight.shape[1], tracked)
        renewed = _renew(weight, limit, tracked, block, vectors, drift / max(1, int(tracked.age)))
        if renewed is None:
            return excess
        # Pairs that joined for precision have large residuals of their own; the new bulk holds them.
        tracked, drift, left, tries[:] = renewed, 0.0, 0.0, [renewed.first.shape[1], None]
        return _excess_for_certificate(_leading(block, renewed.first.shape[1]), float(renewed.bulk), limit, ceiling)

    # How many of the leading pairs are to be certified by the reference: as many as F has, or all.
    columns, tries = [tracked.leading], [tracked.first.shape[1], None]
    bulk = float(tracked.bulk)
    room = HIGHEST_BULK * limit - bulk if limit < torch.inf else float(tracked.top)
    if drift > FAR * room:
        if limit < torch.inf and TAIL * drift < room:
            columns.append(tracked.first)
        elif limit < torch.inf:
            tries = []
        vectors, tracked = _next_probes(weight.shape[1], tracked)
        held = sum(part.shape[1] for part in columns)
        sketch = FEWEST_SKETCH + (-held - FEWEST_SKETCH) % PANEL
        change = weight - tracked.reference
        columns.append(_leading_of(change, vectors[:, :sketch]))
        left = _outside(drift, distance(thin_product(change, columns[-1])), weight.dtype)
        if limit == torch.inf:
            # It only says how far W has moved, and nothing of what else is in W.
            unknown = torch.tensor(torch.inf, dtype=torch.float64)
            tracked = tracked._replace(reference=weight.clone(), bulk=unknown, age=torch.tensor(0))
    block = converge(weight, torch.cat(columns, 1), ceiling, imprecise, uncertain)
    if block is None:
        return None
    count = clip_leading(weight, block, limit, ceiling)
    leading = block.right[:, : number_above(block.values, NEAR * limit) + EXTRA].contiguous()
    if math.isinf(float(tracked.bulk)):
        tracked = tracked._replace(top=torch.tensor(block.values[0], dtype=torch.float64))
    return Clipped(count, min(block.values[0], limit), tracked._replace(leading=leading))


def _excess_for_certificate(block: Block, bulk: float, limit: float, ceiling: float) -> list[float]:
    """Above 1 for the pairs with the largest part in a certificate that fails; empty if it holds."""
    kappa = ceiling**2 / (ceiling**2 - bulk**2)
    # What lies between the limit and the ceiling is not clipped.
    room = [1 - ((limit if value > ceiling else value) / ceiling) ** 2 for value in block.values]
    coupling = gram(block.residual).mul_(kappa / ceiling**2)
    schur = coupling.new_tensor(room).diag().sub_(coupling)
    if int(torch.linalg.cholesky_ex(schur)[1]) == 0:
        return []
    parts = coupling.diagonal().tolist()
    shares = [
        part / left if part < torch.inf and left > 0 else torch.inf for part, left in zip(parts, room, strict=True)
    ]
    return [FAILING if share >= 0.3 * max(shares) else 0.0 for share in shares]


def _leading(block: Block, count: int) -> Block:
    """The leading `count` pairs alone: a block of its own, since E is orthogonal to all of V."""
    return Block(
        block.values[:count],
        block.left[:, :count],
        block.right[:, :count],
        block.residual[:, :count],
        block.size[:count],
    )


def _leading_of(change: Tensor, vectors: Tensor) -> Tensor:
    """Columns (n, b) near the leading right singular vectors of a change of few large values."""
    return orthonormal(there_and_back(change, vectors)[1])


def _bulk(weight: Tensor, limit: float, tracked: Tracked, block: Block, drift: float, left: float) -> float:
    """beta for the Ritz vectors of a block, first with a bound `left` of ||(W - W_0)(I - V V^T)||_F, often enough."""
    right, mu = block.right, float(tracked.bulk)
    apart = tracked.first - right @ (right.mT @ tracked.first)
    mu += float(tracked.top) * float(torch.linalg.vector_norm(apart))
    if mu + left <= HIGHEST_BULK * limit or mu > HIGHEST_BULK * limit:
        return mu + left
    image = block.left * right.new_tensor(block.values)
    inside = distance(image, thin_product(tracked.reference, right))
    # The rounding of both counts as drift.
    eps = 16 * torch.finfo(weight.dtype).eps
    return mu + _outside(drift, max(inside - eps * math.hypot(*block.values), 0.0), weight.dtype)


def _outside(drift: float, inside: float, dtype: torch.dtype) -> float:
    """The Frobenius norm of the part of a change, of norm `drift`, that is orthogonal to a part of norm `inside`."""
    eps = 16 * torch.finfo(dtype).eps
    return max((drift**2 - inside**2) + eps * drift**2, 0.0) ** 0.5


def _renew(
    weight: Tensor, limit: float, tracked: Tracked, block: Block, vectors: Tensor, step: float
) -> Tracked | None:
    """A reference at `weight` itself, if a bound can be had; `step`: how far W moves from the last one in a step."""
    near = number_above(block.values, NEAR * limit)
    frozen = max(near, FEWEST)
    if frozen >= len(block.values) or not pairs_wanted(near, min(weight.shape)):
        return None
    first = orthonormal(block.right[:, :frozen])
    low = block.values[frozen]
    guess, target = (low + share * (limit - low) for share in (GUESS, MU))
    highest = HIGHEST_BULK * limit
    if LASTING * step > highest - target:
        target = highest
    mu = bound(weight, first, guess, min(target, highest), vectors)
    if mu > highest:
        return None
    top, bulk = torch.tensor([block.values[0], mu], dtype=torch.float64)
    return tracked._replace(first=first, reference=weight.clone(), top=top, bulk=bulk, age=torch.tensor(0))
