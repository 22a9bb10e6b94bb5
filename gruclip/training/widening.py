"""Whether the subspaces that `program` follows are too narrow for what a stack's matrices have come to hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gruclip.spectral import SubspaceState, are_finite
from gruclip.spectral.program import widths
from gruclip.spectral.subspace import NEAR

#: Iterations of an epoch from one decision to the next: where all is redone they take twice as long or more.
WIDEN_EVERY = 200
#: Share of uncertified steps that more columns could certify, above which these are worth their cost.
WORTH = 0.1
#: Share of the directions that values amplified by the filter (above `NEAR` limits) may take. Drifting matrices had
#: certificates at nearly every step up to 0.6, at half of them at 0.7, and at none beyond 0.9.
FILLED = 2 / 3
#: Matrices that are decomposed for a decision, at most.
SAMPLED = 4


def directions(weights: Sequence[Tensor], limits: Tensor, states: Sequence[SubspaceState]) -> int:
    """How many directions the states of all layers should hold: as many as now, or more.

    weights: a layer's matrices (R, m, n) each, at limits (R,), infinity for those that are only measured, which
    never need more. It depends on these and the states alone, so that a resumed run decides alike. The host waits.
    """
    now = max(state.carried for state in states)
    more = [carried for carried in widths(*weights[0].shape[-2:]) if carried > now]
    if not more:
        return now
    missed = torch.stack([state.missed for state in states]).where(limits < torch.inf, 0.0)
    finite = torch.stack([are_finite(weight) for weight in weights])
    shares = missed.where(finite, 0.0).flatten().tolist()
    share = sum(shares) / len(shares)
    if share <= WORTH:
        return now
    # Spread over all of them, from the most often redone on: not all may be hopeless.
    redone = sorted((index for index, one in enumerate(shares) if one > WORTH), key=lambda index: -shares[index])
    taken = min(SAMPLED, len(redone))
    sample = [divmod(redone[place * len(redone) // taken], len(limits)) for place in range(taken)]
    counts = [_values_near(weights[layer][run], limits[run]) for layer, run in sample]
    # Far fewer values than columns: the cause is another. Nearly all values: no subspace is wide enough.
    helped = [count for count in counts if now / 3 < count <= FILLED * more[-1]]
    if share * len(helped) <= WORTH * taken:
        return now
    return next(carried for carried in more if FILLED * carried >= max(helped))


def _values_near(weight: Tensor, limit: Tensor) -> int:
    """How many values a matrix has that the filter lifts."""
    matrix = weight.double() / limit
    return int((torch.linalg.eigvalsh(matrix @ matrix.mT) > NEAR**2).sum())
