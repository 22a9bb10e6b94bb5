"""Clipping by a tracked subspace, certified: a few thin products a step instead of a decomposition.

Notation, for one matrix W (m, n): Q an orthonormal basis of the tracked subspace (n, q), P its projector;
W Q = U Theta Y^T, V = Q Y the Ritz vectors, so W V = U Theta exactly; E = (W^T U - V Theta) their residuals,
which are orthogonal to V. In the bases [U, .] and [V, .] the matrix reads

    W = [[Theta, E^T], [0, M]],        ||M||_2 <= ||W (I - P)||_2 <= beta.

*The result.* Let C be the Ritz values above the limit L. W - U_C (Theta_C - L) V_C^T differs from the exact
projection by at most 2 ||E_C||_F, because the projection onto a convex set is nonexpansive: without E_C the
two are equal as soon as the rest is inside.

*The rest is inside.* With Theta' = min(Theta, L), kappa = L^2 / (L^2 - beta^2) and beta < L, the Schur complement of
L^2 I - W' W'^T shows that sigma_1(W') <= L if and, for worst M, only if

    L^2 I - Theta'^2 - kappa E^T E >= 0,

a q x q matrix. So a residual e costs the norm kappa e^2 / 2L only.

*The bulk.* beta comes from a reference: a matrix W_0 and a subspace P_0 inside P for which random vectors have shown
that ||W_0 (I - P_0)||_2 <= mu (see `gruclip.spectral.bound`: wrong with a probability of at most 1e-13), or a full
decomposition has. Then, as Weyl's inequality has it, beta = mu + ||(W - W_0)(I - P)||_F. The reference is taken
anew, with the leading Ritz vectors of the day for P_0, when beta comes near L or the certificate fails for
another reason.

*Without the rest of the basis.* Columns that found nothing have large residuals, which spoil the certificate. For V the
leading dim P_0 Ritz vectors alone and R the others, P_0 = P_0 (V V^T + R R^T), so any x orthogonal to V has
||P_0 x|| <= ||P_0 R|| ||x||, and ||W x|| <= (mu + ||W - W_0||_F + sigma_1(W P) ||P_0 R||_F) ||x|| takes the place of
beta. This is tried first.

*The update.* The basis starts from the last step's and, where W is far from W_0, the leading right singular vectors of
W - W_0, found from random vectors: an update by a gradient has a few large singular values and a long tail of small
ones. That finds what the update has pushed out, and keeps beta low.

Cost in multiply-adds: 3 m n q for a step and m n (q + 2 c) for every c residuals that join the basis; some 10 m n b for
a reference, with b = 16; a full decomposition takes some 10 n^3 at a lower speed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.bound import bound, probes
from gruclip.spectral.ritz import (
    FARTHEST,
    MOST_EXPANSIONS,
    Basis,
    Block,
    clip_leading,
    converge,
    needed_for_precision,
    orthonormal,
)
from gruclip.spectral.thin import distance, thin_product

#: Columns of the reference subspace P_0: at least this many, and every value above NEAR * limit.
FEWEST, NEAR = 8, 0.92
#: Columns carried beside the ones that were clipped.
EXTRA = 6
#: Shares of min(m, n) from which a decomposition was cheaper where it was measured (n = 140 to 650): the values near
#: the limit, and the columns to begin with.
NEAR_SHARE, FEWEST_SHARE = 0.02, 0.08
#: Random vectors are drawn so many times in a step, at most.
MOST_DRAWS = MOST_EXPANSIONS + 1
#: beta / L, at most: kappa is then below 18.
HIGHEST_BULK = 0.97
#: Where in the gap between the smallest tracked value and the limit the polynomial's interval ends, and mu may be.
GUESS, MU = 0.1, 0.3
#: ||W - W_0||_F, relative to the room for it, from which its leading vectors join the basis.
FAR = 0.4
#: So many of them.
SKETCH = 12
#: Smallest Ritz value, relative to the largest, by which W Q can be divided for a left vector.
LEAST_VALUE = 1e-6


class Tracked(NamedTuple):
    """What is carried for one matrix."""

    first: Tensor  #: (n, p): orthonormal basis of P_0
    leading: Tensor  #: (n, count + EXTRA): the leading right singular vectors of the last step
    reference: Tensor  #: W_0 (m, n)
    bulk: Tensor  #: mu, a float64 number on the CPU
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
    near, count = (int((values > share * limit).sum()) if limit < torch.inf else 0 for share in (NEAR, 1 - 1e-5))
    frozen = max(near, FEWEST)
    if not pairs_wanted(near, min(weight.shape)) or frozen >= values.shape[0]:
        return None
    first, leading = (right[:, :width].to(weight.dtype).contiguous() for width in (frozen, count + EXTRA))
    return Tracked(first, leading, weight.clone(), values[frozen].cpu(), torch.tensor(draws))


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

    def needed(block: Block) -> Tensor | None:
        nonlocal tracked, drift
        if float(block.values[0]) > FARTHEST * limit or float(block.values[-1]) < LEAST_VALUE * float(block.values[0]):
            return None
        imprecise = needed_for_precision(block, norm, limit, ceiling)
        if limit == torch.inf or bool(imprecise.any()):
            return imprecise
        leading = tracked.first.shape[1]
        close = float(tracked.bulk) + drift + float(block.values[0]) * _apart(tracked.first, block.right[:, leading:])
        if close <= HIGHEST_BULK * limit:
            of_leading = _needed_of_leading(block, leading, close, limit, ceiling)
            if not bool(of_leading.any()):
                return of_leading
        bulk = _bulk(weight, limit, tracked, block, drift)
        failing = None
        if bulk <= HIGHEST_BULK * limit:
            failing = _needed_for_certificate(block, bulk, limit, ceiling)
            if not bool(failing.any()):
                return failing
        vectors, tracked = _next_probes(weight.shape[1], tracked)
        renewed = _renew(weight, limit, tracked, block, vectors)
        if renewed is None:
            return failing
        # Pairs that joined for precision have large residuals of their own; the new bulk holds them.
        tracked, drift = renewed, 0.0
        return _needed_of_leading(block, renewed.first.shape[1], float(renewed.bulk), limit, ceiling)

    columns = [tracked.leading, tracked.first]
    bulk = float(tracked.bulk)
    if drift > FAR * (limit - bulk if limit < torch.inf else bulk):
        vectors, tracked = _next_probes(weight.shape[1], tracked)
        columns.append(_leading_of(weight - tracked.reference, vectors[:, :SKETCH]))
        if limit == torch.inf:
            tracked = tracked._replace(reference=weight.clone())  # which only says how far W has moved
    block = converge(weight, torch.cat(columns, 1), needed)
    if block is None:
        return None
    count = clip_leading(weight, block, limit, ceiling)
    leading = block.right[:, : count + EXTRA].contiguous()
    return Clipped(count, min(float(block.values[0]), limit), tracked._replace(leading=leading))


def _needed_for_certificate(block: Block, bulk: float, limit: float, ceiling: float) -> Tensor:
    """The pairs with the largest part in a certificate that fails; none if it holds."""
    kappa = ceiling**2 / (ceiling**2 - bulk**2)
    # What lies between the limit and the ceiling is not clipped.
    left = torch.where(block.values > ceiling, limit, block.values)
    room = 1 - (left / ceiling) ** 2
    coupling = block.residual.double() * (kappa**0.5 / ceiling)
    if int(torch.linalg.cholesky_ex(room.diag() - coupling.mT @ coupling)[1]) == 0:
        return torch.zeros_like(room, dtype=torch.bool)
    share = coupling.square().sum(0) / room
    share = share.nan_to_num(nan=torch.inf)
    return share >= 0.3 * share.max()


def _needed_of_leading(block: Block, count: int, bulk: float, limit: float, ceiling: float) -> Tensor:
    """The same for the leading `count` pairs alone: a block of its own, since E is orthogonal to all of V."""
    values, left, right, residual, size = (tensor[..., :count] for tensor in block[:5])
    narrowed = Block(values, left, right, residual, size, Basis(right, left * values.to(left.dtype), left))
    needed = torch.zeros_like(block.values, dtype=torch.bool)
    needed[:count] = _needed_for_certificate(narrowed, bulk, limit, ceiling)
    return needed


def _leading_of(change: Tensor, vectors: Tensor) -> Tensor:
    """Columns (n, b) near the leading right singular vectors of a change of few large values."""
    return orthonormal(thin_product(change.mT, thin_product(change, vectors)))


def _apart(first: Tensor, rest: Tensor) -> float:
    """||P_0 R||_F for orthonormal columns of P_0 and R: how far R is from being orthogonal to P_0."""
    return float(torch.linalg.vector_norm(first.mT @ rest))


def _bulk(weight: Tensor, limit: float, tracked: Tracked, block: Block, drift: float) -> float:
    """beta = mu + ||(W - W_0)(I - P)||_F, first without the projector, which is often enough."""
    mu = float(tracked.bulk)
    if mu + drift <= HIGHEST_BULK * limit:
        return mu + drift
    inside = distance(block.basis.image, thin_product(tracked.reference, block.basis.columns))
    # The difference of two squares: its rounding, some eps ||W - W_0||^2, counts as drift.
    eps = 16 * torch.finfo(weight.dtype).eps
    return mu + max(drift**2 * (1 + eps) - inside**2 * (1 - eps), 0.0) ** 0.5


def _renew(weight: Tensor, limit: float, tracked: Tracked, block: Block, vectors: Tensor) -> Tracked | None:
    """A reference at `weight` itself, if a bound can be had."""
    near = int((block.values > NEAR * limit).sum())
    frozen = max(near, FEWEST)
    if frozen >= block.values.shape[0] or not pairs_wanted(near, min(weight.shape)):
        return None
    first = orthonormal(block.right[:, :frozen])
    low = float(block.values[frozen])
    guess, target = (low + share * (limit - low) for share in (GUESS, MU))
    mu = bound(weight, first, guess, min(target, HIGHEST_BULK * limit), vectors)
    if mu > HIGHEST_BULK * limit:
        return None
    bulk = torch.tensor(mu, dtype=torch.float64)
    return tracked._replace(first=first, reference=weight.clone(), bulk=bulk)
