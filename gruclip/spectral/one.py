"""Clipping one matrix: which algorithm takes it, and what is kept of it for the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral import exact, single, tracked, truncated
from gruclip.spectral.deferred import tolerance_for
from gruclip.spectral.exact import Clipped
from gruclip.spectral.subspace import NEAR, Target, number_above
from gruclip.spectral.thin import thin_product

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
    weight: Tensor, frobenius: float, limit: float, entries: dict[str, Tensor], algorithm: str, followed: bool
) -> Outcome:
    """Clip one matrix (m, n), of Frobenius norm `frobenius`, in place.

    entries: its own in the state, rewritten; `followed`: whether they are kept for a next call. An internal
    algorithm, ``single``, decomposes in single precision alone.
    """
    target = Target(limit, tolerance_for(weight.dtype, algorithm), frobenius)
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    # Its square is a float32 number; and so are the elements of W^T W / L^2, in which sigma_1 has its digits.
    squarable = 1e-15 < frobenius < 1e15
    near_limit = (
        squarable and frobenius / MAX_FROBENIUS_RATIO < limit <= frobenius / single.MIN_RATIO and single.takes(tall)
    )
    rests = int(entries.get("rests", 1)) - 1  # steps after this one for which tracking is suspended
    algorithm = _chosen(algorithm, tall.shape[1], near_limit, rests)
    known, draws = _known(entries, weight)
    if algorithm == "truncated" and squarable and limit < torch.inf:
        outcome = Outcome(*truncated.clip(weight, target, entries), redone=False)
        entries.update({"draws": torch.tensor(draws)} if draws else {})
        return outcome
    step = _followed(weight, target, known, algorithm, unseen=not entries) if squarable else None
    if step is not None:
        outcome = Outcome(step.clipped, step.norm, certified=limit < torch.inf, redone=False)
        kept = _untracked(step.tracked.draws, tracked.UNTRACKED_STEPS) if step.costly else step.tracked.entries()
    else:
        tracks = algorithm == "block"

        def wanted(near: int) -> int:
            return tracked.pairs_wanted(weight, near) if followed and (tracks or near == 0) else 0

        quickly = near_limit and (tracks or (algorithm == "single" and single.pays(tall, target)))
        done, in_float64 = _decomposed(tall, target, algorithm, wanted if quickly else None)
        norm = done.values[0]
        redone = squarable and known is not None if tracks else quickly and in_float64
        outcome = Outcome(done.clipped, norm, certified=True, redone=redone)
        if followed and (tracks or (algorithm == "single" and norm < NEAR * limit)):
            kept = _begun(weight, tall, target, done, draws)
        else:
            kept = _untracked(draws, 0 if in_float64 else max(rests, 0)) if draws else {}
    entries.clear()  # also of what another algorithm left, which is outdated
    entries.update(kept)
    return outcome


def _chosen(algorithm: str, size: int, near_limit: bool, rests: int) -> str:
    """Resolve ``auto`` for a shorter side of `size`, and ``block`` while tracking is suspended (`rests`)."""
    if algorithm == "auto":
        at_once = near_limit and MIN_SIZE_INSIDE <= size <= single.MAX_SIZE_AT_ONCE
        algorithm = "single" if at_once else "gram" if size < MIN_SIZE_TRACKED else "block"
    return "single" if algorithm == "block" and near_limit and rests > 0 else algorithm


def _followed(
    weight: Tensor, target: Target, known: tracked.Tracked | None, algorithm: str, unseen: bool
) -> tracked.Step | None:
    """Clip by the tracked subspace `known`, or by a search in a matrix `unseen` before; None if that fails."""
    if algorithm == "single" and known is not None:
        return tracked.inside(weight, target, known, tracked.distance_moved(weight, known))
    if algorithm == "block" and known is not None:
        return tracked.clip(weight, target, known)
    if algorithm == "block" and unseen and target.limit < torch.inf and min(weight.shape) >= MIN_SIZE_SEARCHED:
        return tracked.search(weight, target)
    return None


def _decomposed(
    tall: Tensor, target: Target, algorithm: str, wanted: Callable[[int], int] | None
) -> tuple[Clipped, bool]:
    """Clip by a decomposition: in single precision if `wanted` says how many triplets it is to find at least, given the
    number of values near the limit, and where that tells enough; else in float64. Whether it was float64."""
    limit = target.limit
    quick, far = single.clip(tall, target, wanted) if wanted else (None, 0)
    if quick is not None:
        return quick, False
    parts = exact.svd(tall) if algorithm == "full" else exact.gram(tall)
    if algorithm != "full" and float(parts.values[0]) > exact.GRAM_RANGE[tall.dtype] * limit:
        parts = exact.svd(tall)
    done = exact.clip(tall, limit, parts, target.tolerance)
    return done._replace(clipped=done.clipped + far), True


def _begun(weight: Tensor, tall: Tensor, target: Target, done: Clipped, draws: int) -> dict[str, Tensor]:
    """The state that a matrix is tracked from, or where that would not pay that of one that is not; `tall`, which was
    decomposed, is the matrix or its transpose."""
    right = done.right
    if tall is not weight:
        pairs = tracked.pairs_wanted(weight, number_above(done.values, NEAR * target.limit))
        right = thin_product(tall, right[:, :pairs].to(tall.dtype), roughly=True)
    started = tracked.start(weight, target, done.values, right, draws)
    return _untracked(draws, 0) if started is None else started.entries()


def _untracked(draws: int, rests: int) -> dict[str, Tensor]:
    """The state of a matrix that is not tracked for `rests` more steps, since a decomposition is cheaper: the number of
    draws of random vectors, so that none is repeated.
    """
    return {"draws": torch.tensor(draws), "rests": torch.tensor(rests)}


def _known(entries: dict[str, Tensor], weight: Tensor) -> tuple[tracked.Tracked | None, int]:
    """What is tracked of a matrix of this shape, dtype and device; and how many draws of random vectors are used up,
    one more than the state says, since a failed step may have used one that it did not record."""
    known = tracked.tracked_in(entries)
    if known is None:
        return None, int(entries["draws"]) + 1 if "draws" in entries else 0
    previous = known.previous
    fits = (previous.shape, previous.dtype, previous.device) == (weight.shape, weight.dtype, weight.device)
    return known if fits else None, known.draws + 1
