"""Whether the subspaces that `program` follows are too narrow for what a stack's matrices have come to hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gruclip.spectral import SubspaceState
from gruclip.spectral.program import NEAR, widths

#: Iterations of an epoch from one decision to the next: where all is redone they take twice as long or more.
EVERY = 200
#: Share of all steps that had no certificate, and could have one, from which other columns are worth their cost.
WORTH = 0.1
#: Of the directions, that values may take which the filter lifts (those above `NEAR` limits). Drifting matrices had
#: certificates at nearly every step up to three fifths, at half of them at seven tenths, and none beyond nine.
FILLED = 2 / 3
#: Matrices that are decomposed for a decision, at most.
SAMPLED = 4


def directions(weights: Sequence[Tensor], limits: Tensor, states: Sequence[SubspaceState]) -> int:
    """How many directions the states of all layers should hold: as many as now, or more.

    weights: a layer's matrices (R, m, n) each, at limits (R,), infinity for those that are only measured, which many
    values do no harm. By nothing but these and the states, so that a continued run decides alike. The host waits.
    """
    now = max(state.carried for state in states)
    more = [carried for carried in widths(*weights[0].shape[-2:]) if carried > now]
    if not more:
        return now
    missed = torch.stack([state.missed for state in states]).where(limits < torch.inf, 0.0)
    finite = torch.stack([torch.isfinite(weight).flatten(1).all(1) for weight in weights])
    shares = missed.where(finite, 0.0).flatten().tolist()
    share = sum(shares) / len(shares)
    if share <= WORTH:
        return now
    # From the most often redone on, all through: where some are hopeless, others may not be.
    redone = sorted((index for index, one in enumerate(shares) if one > WORTH), key=lambda index: -shares[index])
    taken = min(SAMPLED, len(redone))
    sample = [divmod(redone[place * len(redone) // taken], len(limits)) for place in range(taken)]
    counts = [_values_near(weights[layer][run], limits[run]) for layer, run in sample]
    # With far fewer values than columns there is another reason, and of nearly all no subspace holds enough.
    helped = [count for count in counts if now / 3 < count <= FILLED * more[-1]]
    if share * len(helped) <= WORTH * taken:
        return now
    return next(carried for carried in more if FILLED * carried >= max(helped))


def _values_near(weight: Tensor, limit: Tensor) -> int:
    """How many values a matrix has that the filter lifts."""
    matrix = weight.double() / limit
    return int((torch.linalg.eigvalsh(matrix @ matrix.mT) > NEAR**2).sum())
