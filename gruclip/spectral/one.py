"""Clipping one matrix: which algorithm takes it, and what is kept of it for the next step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral import exact, single, tracked, truncated
from gruclip.spectral.deferred import tolerance
from gruclip.spectral.subspace import number_above
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
    slack = tolerance(weight.dtype, algorithm)
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    # Its square is a float32 number; and so are the elements of W^T W / L^2, in which sigma_1 has its digits.
    squarable = 1e-15 < frobenius < 1e15
    near_limit = (
        squarable and frobenius / MAX_FROBENIUS_RATIO < limit <= frobenius / single.MIN_RATIO and single.takes(tall)
    )
    rests = int(held.get("rests", 1)) - 1
    algorithm = _chosen(algorithm, tall.shape[1], near_limit, rests)
    if algorithm == "truncated" and squarable and limit < torch.inf:
        draws = _draws(held)
        outcome = Outcome(*truncated.clip(weight, frobenius, limit, slack, held), redone=False)
        if draws:
            held["draws"] = torch.tensor(draws)
        return outcome
    tracks = algorithm == "block"
    known = _known(held, weight) if algorithm in ("single", "block") and squarable else None
    done = _followed(weight, frobenius, limit, held, slack, tracks, known) if squarable else None
    if done is not None:
        held.clear()  # what another algorithm left is outdated
        held.update(_untracked(done.tracked.draws, tracked.UNTRACKED_STEPS) if done.costly else done.tracked.entries())
        return Outcome(done.clipped, done.norm_after, limit < torch.inf, redone=False)

    def wanted(count: int) -> int:
        return tracked.pairs_wanted(weight, count) if followed and (tracks or count == 0) else 0

    quickly = tracks or (algorithm == "single" and tall.shape[1] >= single.MIN_SIZE)
    quick, far = (
        single.clip(tall, frobenius, limit, slack, tracked.NEAR, wanted) if quickly and near_limit else (None, 0)
    )
    if quick is None:
        count, values, right = _decomposed(tall, limit, slack, algorithm)
        count, after, rests = count + far, values[0], 0
    else:
        count, right = quick.clipped, quick.right
        values = [min(value, limit) for value in quick.values] if quick.clipped else quick.values
        after = min(quick.norm_before, limit) if quick.clipped else quick.norm_before
    if followed and (tracks or (algorithm == "single" and values[0] < tracked.NEAR * limit)):
        _track(held, tall, weight, limit, values, right)
    else:
        draws = _draws(held)
        held.clear()
        if draws or rests > 0:
            held.update(_untracked(draws, max(rests, 0)))
    return Outcome(count, after, certified=True, redone=known is not None if tracks else quickly and quick is None)


def _chosen(algorithm: str, size: int, near_limit: bool, rests: int) -> str:
    """Resolve ``auto`` for a shorter side of `size`, and ``block`` while tracking is suspended (`rests`)."""
    if algorithm == "auto":
        at_once = near_limit and MIN_SIZE_INSIDE <= size <= single.MAX_SIZE_AT_ONCE
        algorithm = "single" if at_once else "gram" if size < MIN_SIZE_TRACKED else "block"
    return "single" if algorithm == "block" and near_limit and rests > 0 else algorithm


def _followed(
    weight: Tensor,
    frobenius: float,
    limit: float,
    held: dict[str, Tensor],
    slack: float,
    tracks: bool,
    known: tracked.Tracked | None,
) -> tracked.Followed | None:
    """Clip by the tracked subspace `known`, or by a search if there is none; None if that fails."""
    if known is not None:
        if tracks:
            return tracked.clip(weight, frobenius, limit, known, slack)
        return tracked.inside(weight, frobenius, limit, known, distance(weight, known.previous), slack)
    if tracks and limit < torch.inf and not held and min(weight.shape) >= MIN_SIZE_SEARCHED:
        return tracked.search(weight, frobenius, limit, slack)
    return None


def _decomposed(tall: Tensor, limit: float, slack: float, algorithm: str) -> tuple[int, list[float], Tensor]:
    """Clip by a decomposition in float64: values clipped, all values after it, and the right singular vectors."""
    parts = exact.svd(tall) if algorithm == "full" else exact.gram(tall)
    if algorithm != "full" and parts.values[0] > exact.GRAM_RANGE[tall.dtype] * limit:
        parts = exact.svd(tall)
    return *exact.clip(tall, limit, parts, slack), parts.right


def _track(
    held: dict[str, Tensor], tall: Tensor, weight: Tensor, limit: float, values: list[float], right: Tensor
) -> None:
    """Start tracking a matrix that was decomposed, or stop where that would not pay. `right` are the right singular
    vectors of `tall`, which is the matrix or its transpose.
    """
    draws = _draws(held)
    if tall is not weight:
        wanted = tracked.pairs_wanted(weight, number_above(values, tracked.NEAR * limit))
        right = thin_product(tall, right[:, :wanted].to(tall.dtype), roughly=True)
    started = tracked.start(weight, limit, values, right, draws)
    held.clear()
    held.update(_untracked(draws, 0) if started is None else started.entries())


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
