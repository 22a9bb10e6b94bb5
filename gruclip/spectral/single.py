"""Clipping in single precision where the spectral norm is near the limit, however many values are above it.

The eigenvectors of X, equation (12) of README.md, that belong to values near the limit and above: what is taken off is
found on the space that they span, where they are few, or is the difference (13). Where this precision does not tell
whether sigma_1 is inside the tolerance, or sigma_1 is too far from the limit, the answer is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.kernels.products import lower_gram
from gruclip.spectral import exact, subspace
from gruclip.spectral.certificate import Certificate, clip_certified_, from_count
from gruclip.spectral.eigen import MAX_SHARE, Spectrum
from gruclip.spectral.exact import Clipped
from gruclip.spectral.subspace import NEAR, Target
from gruclip.spectral.thin import FEW_COLUMNS, column_gram, column_squares, subtract_low_rank_, thin_product

#: sigma_1 / limit, at most, up to n = MAX_SIZE_AT_ONCE and beyond: the error of X grows with its norm and with n.
MAX_RATIO_AT_ONCE, MAX_RATIO = 1.7, 1.4
#: sigma_1 / limit up to which eigenvectors are orthonormal enough: their error, 2e-5, multiplies the excess.
MAX_RATIO_UNREFINED = 1.02
#: sigma_1 / limit from which the error of X moves it by less than 1e-4 of itself.
MIN_RATIO = 0.1
#: min(m, n), at most.
MAX_SIZE = 1024
#: Error of sigma / limit, but for the largest X: there it may be twice as large, which the tolerance has room for.
NOISE = 5e-7
#: n below which ``gram`` costs no more.
MIN_SIZE = 80
#: n up to which all eigenvectors cost less in float64, which needs no correction.
MAX_SIZE_EXACT = 128
#: n up to which a decomposition costs less than tracking a subspace while training moves it (200 units on
#: Nottingham: 2 ms against 7.7).
MAX_SIZE_AT_ONCE = 224
#: Values above this multiple of the limit are clipped first where some lie too far above it for (13).
SET_APART = 1.05
#: Share of the columns that they may be.
MAX_SHARE_APART = 0.4
#: Residual, relative to the limit, that the first pair not above SET_APART limits may have: then no value above them
#: hides in what is left out.
HIDDEN = 0.03
#: Values above this multiple of the limit, and the share of all up to which they are few; pairs that are found beside.
CLOSE, FEW, SPARE = 0.98, 0.25, 4
#: `FEW` for a square matrix where none of them is far: above it (13) is cheaper.
FEW_NEAR = 0.125
#: Error of the eigenvalues of X that its spectrum gives, in units of sigma_1^2 / L^2; and the residuals of those pairs,
#: in units of L, at most: (8) then holds with room to spare.
ROUGH, SETTLED = 1e-5, 1e-5


class Spread(NamedTuple):
    """Where the singular values of a matrix lie: X of (12), decomposed, and how many are above each mark."""

    spectrum: Spectrum
    far: int  #: so far above the limit that (13) is imprecise
    apart: int  #: above SET_APART limits
    above: int  #: above the limit, by more than rounding
    close: int  #: above CLOSE limits
    near: int  #: above NEAR limits


def takes(weight: Tensor) -> bool:
    """Whether a matrix, or its transpose, is of a kind that this can clip."""
    return weight.dtype == torch.float32 and min(weight.shape) <= MAX_SIZE


def pays(weight: Tensor, target: Target) -> bool:
    """Whether a matrix (m, n), m >= n, is clipped faster than by ``gram``, by what is known before it is looked at.

    Where the mean of sigma^2 is above L^2, more than `MAX_SHARE` of the values are above L as a rule, and up to
    `MAX_SIZE_EXACT` `clip_near` would end with ``gram``.
    """
    n = weight.shape[1]
    return n > MAX_SIZE_EXACT or (n >= MIN_SIZE and target.frobenius**2 < n * target.limit**2)


def clip(weight: Tensor, target: Target, wanted: Callable[[int], int]) -> tuple[Clipped | None, int]:
    """Clip `weight` (m, n), m >= n, in place; None where this is not precise enough, and how many values far above the
    limit were clipped all the same.

    `wanted` says how many leading triplets are returned at least, given the number of values above NEAR * limit.
    """
    spread = spread_of(weight, target.limit)
    far = clip_far_values_(weight, target, spread)
    if not far:
        return clip_near(weight, target, spread, wanted), 0
    done = clip_near(weight, target, spread_of(weight, target.limit), wanted)
    return done and done._replace(clipped=spread.above), far


def spread_of(weight: Tensor, limit: float) -> Spread:
    """Of a matrix W (m, n), from L^2 X = W^T W - L^2 I."""
    shifted = lower_gram(weight)
    # From the columns' norms in float64: the diagonal holds half of the error of X.
    shifted.diagonal().copy_(column_squares(weight) - limit**2)
    spectrum = Spectrum(shifted, limit**2)
    max_ratio = MAX_RATIO if weight.shape[1] > MAX_SIZE_AT_ONCE else MAX_RATIO_AT_ONCE
    ratios = max_ratio, SET_APART, 1 + NOISE, CLOSE, NEAR
    return Spread(spectrum, *spectrum.count_above(*(ratio**2 - 1 for ratio in ratios)))


def clip_near(weight: Tensor, target: Target, spread: Spread, wanted: Callable[[int], int]) -> Clipped | None:
    """The same given the spread; None, and `weight` unchanged, also where values are too far above the limit."""
    (m, n), limit, tolerance = weight.shape, target.limit, target.tolerance
    spectrum, far, _, above, close, near = spread
    least = wanted(near)
    if above and close <= FEW * n and (far or close * m <= FEW_NEAR * n**2):
        done = _clip_few(weight, target, spectrum, close, max(close + SPARE, least))
        if done is not None:
            return done
    # Without its certificate (13) is tried, imprecise from far.
    if far:
        return None
    if n <= MAX_SIZE_EXACT and above > MAX_SHARE * n:
        return exact.clip(weight, limit, exact.gram(weight), tolerance)
    x, right = spectrum.leading(max(1, above, least))
    relative = [math.sqrt(max(1 + one, 0.0)) for one in x]
    leading = relative[0] - 1
    if abs(leading - tolerance) <= NOISE or leading < MIN_RATIO - 1:
        return None
    if subspace.number_above(relative, 1.0) < above:
        return None  # one of those that were counted was not found
    count = above if leading > tolerance else 0
    if count:
        columns, excess = right[:, :count], right.new_tensor([1 - 1 / one for one in relative[:count]])
        if leading > MAX_RATIO_UNREFINED - 1:
            ones = torch.ones_like(excess)
            columns = _combined(columns, ones, _newton_correction(columns, ones))
            image = thin_product(weight, columns)
            # L times their unit images remains: made orthonormal, these lose the errors of X.
            length = 1 - excess
            lost = _combined(image, excess, -length[:, None] * _newton_correction(image, length / limit))
        else:
            lost = thin_product(weight, columns * excess)
        subtract_low_rank_(weight, lost, columns)
    highest = limit if count else torch.inf
    return Clipped(count, [min(limit * math.sqrt(max(1 + one + 2 * NOISE, 0.0)), highest) for one in x], right)


def _newton_correction(columns: Tensor, length: Tensor) -> Tensor:
    """C (k, k) for the Newton step Y <- Y + Y C to the nearest orthonormal columns, Y = X diag(length).

    columns: X (m, k); length (k,): so that Y is nearly orthonormal; a step squares its error.
    """
    if columns.shape[1] <= FEW_COLUMNS:
        scales = length.double()
        lacking = column_gram(columns).mul_(scales).mul_(scales[:, None])
        lacking.diagonal().sub_(1)
        return lacking.mul_(-0.5).float()
    below = lower_gram(columns).tril_(-1)
    lacking = (below + below.mT) * (length * length[:, None])
    lacking.diagonal().copy_(column_squares(columns) * length.double() ** 2 - 1)
    return lacking.mul_(-0.5)


def _combined(columns: Tensor, factors: Tensor, others: Tensor) -> Tensor:
    """X diag(factors) + X others, for columns X (m, k), factors (k,) and others (k, k)."""
    if columns.shape[1] <= FEW_COLUMNS:
        return thin_product(columns, factors.diag() + others)
    return torch.addmm(columns * factors, columns, others)


def _clip_few(weight: Tensor, target: Target, spectrum: Spectrum, close: int, count: int) -> Clipped | None:
    """The same where only `close` values lie above CLOSE limits: by (6) on what `count` > `close` eigenvectors span."""
    limit = target.limit
    x, right = spectrum.leading(count, rough=True)
    # The widest gap: `last` eigenvalues of X are above its lower end, which no other count may contradict.
    last = max(range(close, count), key=lambda i: x[i - 1] - x[i])
    if spectrum.count_above(x[last] + ROUGH * (1 + x[0]) / 2)[0] > last:
        return None
    # Of the Ritz values one may be missing; the ranks of these are known.
    bounds = [limit * math.sqrt(max(1 + one + ROUGH * (1 + x[0]), 0.0)) for one in x]

    def judge(block: subspace.Block) -> list[float]:
        precise = subspace.imprecision(block, target, -1)
        return subspace.elementwise_max(precise, [size / (SETTLED * limit) for size in block.size[:last]])

    def certify(block: subspace.Block, far: bool) -> Certificate | None:
        # From far, too: clipping moves neither E nor what the pairs leave out.
        return from_count(block, target, last, bounds[last], bounds[0])

    done = clip_certified_(weight, right, target, judge, certify)
    if done is None:
        return None
    clipped, (block, _), _ = done
    # What is inside the tolerance was left there.
    highest = max([limit, *(value for value in block.values if value <= target.ceiling)])
    return Clipped(clipped, [min(bound, highest) for bound in bounds], block.right)


def clip_far_values_(weight: Tensor, target: Target, spread: Spread) -> int:
    """Clip only the values far above the limit, in place, where so many others are near it that `clip_near` gives up;
    their number, 0 where it would be slow.

    A gradient's update pushes a few values far, from a spectrum of which the rest is near the limit.
    """
    n, limit = weight.shape[1], target.limit
    apart = target._replace(tolerance=SET_APART - 1)
    if not spread.far or spread.close <= FEW * n or spread.apart >= MAX_SHARE_APART * n:
        return 0

    def judge(block: subspace.Block) -> list[float] | None:
        count = subspace.number_above(block.values, apart.ceiling)
        # Where all that was found is far, there may be more.
        if block.values[0] > subspace.MAX_RATIO * limit or not 0 < count < len(block.values):
            return None
        precise = subspace.imprecision(block, apart, count)
        # Of the first not above it.
        return [*precise, block.size[count] / (HIDDEN * limit)]

    found = subspace.converge(weight, spread.spectrum.leading(spread.apart + 1)[1], judge)
    return 0 if found is None else subspace.clip_leading_(weight, found.block, limit, apart.ceiling)
