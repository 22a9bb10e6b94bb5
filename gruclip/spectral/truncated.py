"""The paper's algorithm: Weyl bounds, equation (2) of README.md, say how many values can be above the limit, and
only those are computed.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from gruclip.spectral import exact, subspace
from gruclip.spectral.subspace import Target
from gruclip.spectral.thin import distance

#: Share of min(m, n) from which a full decomposition is cheaper than a truncated one (the paper's 1/4, recalled).
MAX_SHARE = 0.25
#: Columns beyond those wanted: they speed the iteration up.
OVERSAMPLING = 8
#: Residual of the s leading pairs, relative to their values.
RESIDUAL = 1e-5


def clip(weight: Tensor, target: Target, entries: dict[str, Tensor]) -> tuple[int, float, bool]:
    """Clip `weight` (m, n) in place; values clipped, sigma_1 after it, and whether a full decomposition was taken.

    `entries` carries an upper bound of every singular value and the matrix they belong to. By Weyl's inequality
    each grows by at most ||W_new - W_old||_F in a step, whatever the optimizer was. The s values whose bound passes
    the limit are computed and their bounds refreshed; s = 0 needs no projection at all. That the truncated
    decomposition found the largest s, and not smaller ones instead, is not verified.
    """
    limit = target.limit
    bounds, previous = entries.get("bounds"), entries.get("previous")
    if bounds is not None and previous is not None and previous.shape == weight.shape:
        bounds = bounds + distance(weight, previous)
        s = int((bounds > limit).sum())
        found = _leading(weight, target, s, entries) if s <= MAX_SHARE * bounds.shape[0] else None
        if found is not None and found.values[0] <= subspace.MAX_RATIO * limit:
            count = subspace.clip_leading_(weight, found, limit, target.ceiling)
            if s:  # else the triplets are for the reported norm alone
                bounds[:s] = bounds.new_tensor(found.values[:s]).clamp(max=limit)
                bounds[s:].clamp_(max=found.values[s - 1])
            entries.update(bounds=bounds, previous=weight.clone(), subspace=found.right[:, : s + OVERSAMPLING].clone())
            return count, min(found.values[0], limit), False
    count, after, _ = exact.clip(weight, limit, exact.svd(weight), target.tolerance)
    entries.clear()
    entries.update(bounds=torch.tensor(after, dtype=torch.float64, device=weight.device), previous=weight.clone())
    return count, after[0], True


def _leading(weight: Tensor, target: Target, s: int, entries: dict[str, Tensor]) -> subspace.Block | None:
    """The leading triplets, s or more, iterated from the last step's subspace and random columns."""
    n = weight.shape[1]
    width = min(s + OVERSAMPLING, n)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, width, generator=generator, dtype=torch.float64).to(weight)
    last = entries.get("subspace")
    if last is not None:
        start = torch.cat((last.to(weight), start), 1)[:, : max(width, last.shape[1] + 2)]

    def judge(found: subspace.Block) -> list[float] | None:
        if s == 0:
            return subspace.norm_imprecision(found)
        if s >= len(found.values):
            return None
        precise = subspace.imprecision(found, target, s)
        # A value's error is the square of its residual, over a gap: enough to tell which are above the limit.
        pairs = zip(found.size[:s], found.values, strict=False)
        return subspace.elementwise_max(
            precise, [size / max(RESIDUAL * value, sys.float_info.min) for size, value in pairs]
        )

    done = subspace.converge(weight, start, judge)
    return None if done is None else done.block
