"""Clipping one matrix: which algorithm takes it, and what is kept of it for the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral import exact, single, tracked, truncated
from gruclip.spectral.deferred import tolerance
from gruclip.spectral.subspace import NEAR, Target, number_above
from gruclip.spectral.thin import distance, thin_product

#: Below this size, min(m, n), a decomposition costs less than the calls that tracking makes.
MIN_SIZE_TRACKED = 128

#: From this size on a small matrix far inside its limit is followed without a decomposition, by Weyl's inequality.
MIN_SIZE_INSIDE = 56

#: From this size on a matrix of which nothing is known is searched for a few values above the limit: a failed search
#: costs up to a third of a decomposition, a successful one saves half or more.
MIN_SIZE_SEARCHED = 800

#: Frobenius norm, in limits, above which `gruclip.spectral.single` is of no use.
MAX_FROBENIUS_RATIO = 1e6


class Outcome(NamedTuple):
    """What became of a matrix."""

    clipped: int  #: values
    norm: float  #: sigma_1 after it
    certified: bool
    #: Decomposed since tracking failed, or in float64 since single precision did.
    redone: bool


def clip_one(
    weight: Tensor, frobenius: float, limit: float, held: dict[str, Tensor], algorithm: str, followed: bool
) -> Outcome:
    """Clip one matrix (m, n), of Frobenius norm `frobenius`, in place.

    held: its entries in the state, rewritten; `followed`: whether they are kept for a next call. An internal
    algorithm, ``single``, decomposes in single precision alone.
    """
    target = Target(limit, tolerance(weight.dtype, algorithm), frobenius)
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    # Its square is a float32 number; and so are the elements of W^T W / L^2, in which sigma_1 has its digits.
    squarable = 1e-15 < frobenius < 1e15
    near_limit = (
        squarable and frobenius / MAX_FROBENIUS_RATIO < limit <= frobenius / single.MIN_RATIO and single.takes(tall)
    )
    rests = int(held.get("rests", 1)) - 1  # steps after this one for which tracking is suspended
    algorithm = _chosen(algorithm, tall.shape[1], near_limit, rests)
    if algorithm == "truncated" and squarable and limit < torch.inf:
        draws = _draws(held)
        outcome = Outcome(*truncated.clip(weight, target, held), redone=False)
        held.update({"draws": torch.tensor(draws)} if draws else {})
        return outcome
    tracks = algorithm == "block"
    known = _known(held, weight) if algorithm in ("single", "block") and squarable else None
    done = _followed(weight, target, held, tracks, known) if squarable else None
    if done is not None:
        outcome = Outcome(done.clipped, done.norm_after, limit < torch.inf, redone=False)
        entries = _untracked(done.tracked.draws, tracked.UNTRACKED_STEPS) if done.costly else done.tracked.entries()
    else:

        def wanted(count: int) -> int:
            return tracked.pairs_wanted(weight, count) if followed and (tracks or count == 0) else 0

        quickly = near_limit and (tracks or (algorithm == "single" and tall.shape[1] >= single.MIN_SIZE))
        made = _decomposed(tall, target, algorithm, wanted if quickly else None)
        draws = _draws(held)
        redone = known is not None if tracks else quickly and made.in_float64
        outcome = Outcome(made.clipped, made.norm, certified=True, redone=redone)
        if followed and (tracks or (algorithm == "single" and made.values[0] < NEAR * limit)):
            entries = _begun(weight, tall, limit, made, draws)
        else:
            rests = 0 if made.in_float64 else max(rests, 0)
            entries = _untracked(draws, rests) if draws or rests else {}
    held.clear()  # also of what another algorithm left, which is outdated
    held.update(entries)
    return outcome


def _chosen(algorithm: str, size: int, near_limit: bool, rests: int) -> str:
    """Resolve ``auto`` for a shorter side of `size`, and ``block`` while tracking is suspended (`rests`)."""
    if algorithm == "auto":
        at_once = near_limit and MIN_SIZE_INSIDE <= size <= single.MAX_SIZE_AT_ONCE
        algorithm = "single" if at_once else "gram" if size < MIN_SIZE_TRACKED else "block"
    return "single" if algorithm == "block" and near_limit and rests > 0 else algorithm


def _followed(
    weight: Tensor, target: Target, held: dict[str, Tensor], tracks: bool, known: tracked.Tracked | None
) -> tracked.Followed | None:
    """Clip by the tracked subspace `known`, or by a search if there is none; None if that fails."""
    if known is not None:
        if tracks:
            return tracked.clip(weight, target, known)
        return tracked.inside(weight, target, known, distance(weight, known.previous))
    if tracks and target.limit < torch.inf and not held and min(weight.shape) >= MIN_SIZE_SEARCHED:
        return tracked.search(weight, target)
    return None


class _Decomposed(NamedTuple):
    """What a decomposition has made of a matrix (m, n), m >= n."""

    clipped: int  #: values
    norm: float  #: sigma_1 after it
    values: list[float]  #: leading singular values after it, descending; upper bounds near them in single precision
    right: Tensor  #: their right singular vectors (n, k)
    in_float64: bool


def _decomposed(tall: Tensor, target: Target, algorithm: str, wanted: Callable[[int], int] | None) -> _Decomposed:
    """Clip by a decomposition: in single precision if `wanted` says how many triplets it is to find at least, given the
    number of values near the limit, and where that tells enough; else in float64."""
    limit = target.limit
    quick, far = single.clip(tall, target, wanted) if wanted else (None, 0)
    if quick is not None:
        highest = limit if quick.clipped else torch.inf
        values = [min(value, highest) for value in quick.values]
        return _Decomposed(quick.clipped, min(quick.norm_before, highest), values, quick.right, in_float64=False)
    parts = exact.svd(tall) if algorithm == "full" else exact.gram(tall)
    if algorithm != "full" and parts.values[0] > exact.GRAM_RANGE[tall.dtype] * limit:
        parts = exact.svd(tall)
    count, values = exact.clip(tall, limit, parts, target.tolerance)
    return _Decomposed(count + far, values[0], values, parts.right, in_float64=True)


def _begun(weight: Tensor, tall: Tensor, limit: float, made: _Decomposed, draws: int) -> dict[str, Tensor]:
    """The state that a matrix is tracked from, or where that would not pay that of one that is not; `tall`, which was
    decomposed, is the matrix or its transpose."""
    right = made.right
    if tall is not weight:
        pairs = tracked.pairs_wanted(weight, number_above(made.values, NEAR * limit))
        right = thin_product(tall, right[:, :pairs].to(tall.dtype), roughly=True)
    started = tracked.start(weight, limit, made.values, right, draws)
    return _untracked(draws, 0) if started is None else started.entries()


def _untracked(draws: int, rests: int) -> dict[str, Tensor]:
    """The state of a matrix that is not tracked for `rests` more steps, since a decomposition is cheaper: the number of
    draws of random vectors, so that none is repeated.
    """
    return {"draws": torch.tensor(draws), "rests": torch.tensor(rests)}


def _draws(held: dict[str, Tensor]) -> int:
    """The number of draws to keep: one more than in the state, since a failed step may have used one that it did
    not record."""
    known = tracked.tracked_in(held)
    return known.draws + 1 if known is not None else int(held["draws"]) + 1 if "draws" in held else 0


def _known(held: dict[str, Tensor], weight: Tensor) -> tracked.Tracked | None:
    """What is tracked of a matrix of this shape, dtype and device."""
    known = tracked.tracked_in(held)
    if known is None:
        return None
    previous = known.previous
    fits = (previous.shape, previous.dtype, previous.device) == (weight.shape, weight.dtype, weight.device)
    return known if fits else None
