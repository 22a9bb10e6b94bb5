"""The leading singular triplets of a matrix: Rayleigh-Ritz on a subspace, equations (3) to (5) of README.md, which
Chebyshev's polynomials filter, (11).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.kernels import compiled
from gruclip.spectral.thin import column_gram, normal_product, subtract_low_rank_, thin_product

#: At most so many filters, of that degree at most; the basis is made orthonormal again after `DEGREES` degrees, or
#: before the largest value's column has grown by exp(`MAX_GROWTH`).
MAX_ROUNDS, MAX_DEGREE, DEGREES, MAX_GROWTH = 8, 12, 4, 18.0
#: The same for columns that are no Ritz vectors.
FIRST_DEGREES = 2
#: Norm up to which a filtered column's square is a float32 number.
MAX_FILTERED = 1e18
#: A filtered column longer than this leaves too much of its direction in the others after one round of Cholesky's QR:
#: it takes two.
LEANING = 1e4
#: Logarithms: how far below their bound residuals are aimed, and the least reduction by a degree that is counted
#: on.
MARGIN, MIN_RATE = 0.5, 0.1
#: d degrees are taken to divide residuals by exp(FIRST_RATE / (d + 1)) each at least: the first do more than `growth`
#: says.
FIRST_RATE = 6.0
#: A residual e of a pair theta is rounding alone where theta e <= ROUNDING eps sigma_1^2.
ROUNDING = 4.0
#: Smallest value, relative to the largest, whose residual comes from W^T W Q.
MIN_VALUE = 0.02
#: Values above this multiple of the limit are near it: a subspace that is tracked holds them all.
NEAR = 0.95
#: Least theta - mu in (7), in limits.
MIN_GAP = 1e-3
#: sigma_1 / limit up to which the difference W - U_C (Theta_C - L) V_C^T keeps its digits in float32.
MAX_RATIO = 4.0
#: The result's error by equation (7) of README.md, relative to the matrix's norm.
PRECISION = {torch.float32: 1.5e-6, torch.float64: 2e-10}
#: Residual of the leading pair, relative to its value, when nothing is clipped: its square is the error.
NORM_RESIDUAL = 5e-4


class Target(NamedTuple):
    """What becomes of a matrix's singular values."""

    limit: float  #: L; infinity: the matrix is only measured
    tolerance: float  #: relative: a value up to L (1 + tolerance) counts as inside, and is left
    frobenius: float  #: the matrix's norm, which what is clipped is precise relative to

    @property
    def ceiling(self) -> float:
        """L (1 + tolerance)."""
        return self.limit * (1 + self.tolerance)


class Block(NamedTuple):
    """The Ritz triplets of W on the span of q columns: U and V have orthonormal columns, and V^T E = 0."""

    values: list[float]  #: Theta, descending
    left: Tensor  #: U (m, q)
    right: Tensor  #: V (n, q)
    residual: Tensor  #: E = W^T U - V Theta (n, q)
    size: list[float]  #: the norms of its columns


def orthonormal(columns: Tensor, rounds: int = 2) -> Tensor:
    """An orthonormal basis of some columns' span, arbitrary where they are dependent. After only one of two `rounds`
    its condition is near 1."""
    # QR takes more columns than there are dimensions, too, and gives as many as there are.
    if compiled.takes(columns) and columns.shape[1] <= columns.shape[0]:
        basis = columns.clone(memory_format=torch.contiguous_format)
        compiled.call("gruclip_orthonormalise", [basis], [*basis.shape, rounds], torch.get_num_threads())
        if not math.isnan(basis[0, 0]):
            return basis
    # In float64: the columns of LAPACK's float32 basis are up to 1e-6 from orthonormal, and Ritz values as far off.
    return torch.linalg.qr(columns.double())[0].to(columns.dtype)


def rayleigh_ritz(weight: Tensor, columns: Tensor) -> Block:
    """The Ritz triplets of W (m, n) on the span of some columns (n, q), and their residuals: (3) and (4)."""
    basis = orthonormal(columns)
    image, back = normal_product(weight, basis)
    squares, Y = torch.linalg.eigh(column_gram(image))
    values, Y = [math.sqrt(max(square, 0.0)) for square in reversed(squares.tolist())], Y.flip(1)
    # W^T U = (W^T W Q) Y / Theta, but for values so small that their division would lose digits.
    at_hand = values[-1] > MIN_VALUE * values[0]
    theta = torch.tensor(values, dtype=torch.float64, device=weight.device)
    if at_hand and compiled.takes(basis, image, back):
        (m, q), n = image.shape, len(basis)
        left, right, residual = (weight.new_empty(rows, q) for rows in (m, n, n))
        size = torch.empty_like(theta)
        parts = (part.contiguous() for part in (basis, image, back))
        made: list[Tensor | None] = [left, right, residual, size, *parts, Y, theta]
        compiled.call("gruclip_ritz_triplets", made, [m, n, q, *Y.stride()], torch.get_num_threads())
        return Block(values, left, right, residual, size.tolist())
    # By no less than the image's rounding: the remainder of a zero value must not become infinite.
    single = torch.finfo(torch.float32)
    scaled = Y / theta.clamp(min=max(single.eps * values[0], single.tiny))
    left, right = ((part.double() @ turn).to(weight.dtype) for part, turn in ((image, scaled), (basis, Y)))
    pulled = (back.double() @ scaled).to(weight.dtype) if at_hand else thin_product(weight.mT, left)
    residual = pulled - right * theta.to(weight.dtype)
    return Block(values, left, right, residual, torch.linalg.vector_norm(residual, dim=0).tolist())


def number_above(values: list[float], bound: float) -> int:
    """How many of the values lie above a bound."""
    return sum(value > bound for value in values)


def clip_leading_(weight: Tensor, block: Block, limit: float, ceiling: float) -> int:
    """W - U_C (Theta_C - L) V_C^T in place, for the values above `ceiling`; their number."""
    count = number_above(block.values, ceiling)
    if count:
        excess = weight.new_tensor([value - limit for value in block.values[:count]])
        subtract_low_rank_(weight, block.left[:, :count] * excess, block.right[:, :count])
    return count


#: For each pair its residual over the largest allowed one (at most 1: converged); None to give up.
Judge = Callable[[Block], list[float] | None]


class Found(NamedTuple):
    """What `converge` came to."""

    block: Block
    degree: int  #: of the sufficient filter


def chebyshev(
    weight: Tensor, x: Tensor, end: float, degree: int, before: Tensor | None = None, k: int = 0
) -> tuple[Tensor, Tensor, float]:
    """T_(k + degree)(2 W^T W / end^2 - I) and T_(k + degree - 1) of some columns, and the former's largest norm.

    x (n, c) and `before`: T_k and, for k > 0, T_(k - 1). Both are overwritten.
    """
    if before is None:
        before = torch.empty_like(x)
    if compiled.takes(weight, x, before) and weight.stride(1) == 1 and x.is_contiguous():
        largest, scale = torch.empty((), dtype=torch.float64), torch.tensor(2 / end**2, dtype=torch.float64)
        counts = [*weight.shape, x.shape[1], k, degree, weight.stride(0)]
        compiled.call("gruclip_chebyshev", [x, before, largest, weight, scale], counts, torch.get_num_threads())
        return x, before, float(largest)
    for step in range(k, k + degree):
        following = weight.mT @ (weight @ x) * (2 / end**2) - x
        x, before = following if step == 0 else 2 * following - before, x
    return x, before, float(torch.linalg.vector_norm(x, dim=0).max())


def converge(weight: Tensor, columns: Tensor, judge: Judge, end: float = 0.0, degree: int = 0) -> Found | None:
    """Rayleigh-Ritz on a subspace that is filtered until `judge` is content with it; None where it gives up.

    Chebyshev's polynomial of W^T W keeps what belongs to singular values up to `end` below 1 and lets the rest grow, by
    the degree times `growth`; `end` is an estimate of what the subspace leaves out, not below the smallest Ritz value.
    `degree`: that of a filter before the first look, if `end` is known.
    """
    done, most, size = 0, FIRST_DEGREES, math.inf
    for _ in range(MAX_ROUNDS):
        while degree:
            now = min(degree, most)
            # Columns that are no Ritz vectors all turn to the largest value's.
            basis = orthonormal(columns, rounds=2 if size > LEANING else 1)
            filtered, _, size = chebyshev(weight, basis, end, now)
            if not size < MAX_FILTERED:
                break  # a value so large that one look tells more
            columns, degree, done, most = filtered, degree - now, done + now, max(most, DEGREES)
        block = rayleigh_ritz(weight, columns)
        excess = judge(block)
        if excess is None:
            return None
        wanted = [(value, one) for value, one in zip(block.values, excess, strict=False) if not one <= 1]
        smallest, largest = (wanted or [(block.values[0], 0.0)])[-1][0], block.values[0]
        end = min(max(end, block.values[-1]), 0.99 * smallest)
        if not wanted:
            return Found(block, done - min(_spare(block, excess, end, done), done))
        if not 1e-18 * largest < end or not all(math.isfinite(one) for _, one in wanted):
            return None
        degrees = [(math.log(one) + MARGIN) / max(growth(value, end), MIN_RATE) for value, one in wanted]
        degree, columns = min(math.ceil(max(degrees)), MAX_DEGREE), block.right.contiguous()
        most = max(1, min(DEGREES, int(MAX_GROWTH / growth(largest, end))))
    return None


def _spare(block: Block, excess: list[float], end: float, done: int) -> int:
    """How many of a filter's `done` degrees were not needed for residuals that are small enough."""
    slowest = max(MIN_RATE, FIRST_RATE / (done + 1))
    rounding = ROUNDING * torch.finfo(block.residual.dtype).eps * block.values[0] ** 2
    asked = [pair for pair in zip(block.values, block.size, excess, strict=False) if pair[2] > 0]
    # Residuals at rounding level understate the spare degrees, the slowest pair's least.
    seen = [pair for pair in asked if pair[0] * pair[1] > rounding] or asked[-1:]
    slack = [-(math.log(one) + MARGIN) / max(growth(value, end), slowest) for value, _, one in seen]
    return int(max(min(slack, default=0.0), 0.0))


def growth(value: float, end: float) -> float:
    """The logarithm of the factor by which a degree amplifies a singular `value` above `end`."""
    return math.acosh(max(2 * (value / end) ** 2 - 1, 1.0)) if end > 0 else math.inf


def norm_imprecision(block: Block) -> list[float]:
    """The `Judge` ratio of the first pair where only sigma_1 is wanted."""
    return [block.size[0] / (NORM_RESIDUAL * max(block.values[0], sys.float_info.min))]


def imprecision(block: Block, target: Target, rest: int) -> list[float]:
    """The `Judge` ratios of the pairs above the ceiling, by (7) of README.md with the value of pair `rest` for mu;
    where none are above, of the first."""
    count = number_above(block.values, target.ceiling)
    if count == 0:
        return norm_imprecision(block)
    squares, seconds = _error_parts(block, target, min(block.values[rest], target.limit))
    precise = precision(block, target)
    # What is of second order shrinks with the square of the residual, too.
    room, further = water_level(squares, precise**2), water_level(seconds, precise)
    return [math.sqrt(max(one / room, two / further)) for one, two in zip(squares, seconds, strict=True)]


def precision(block: Block, target: Target) -> float:
    """What each of the two sums of (7) may be."""
    return PRECISION[block.residual.dtype] * max(target.frobenius, target.limit)


def error(block: Block, target: Target, mu: float) -> float:
    """(7): the distance from the projection of what comes of clipping the values above the ceiling."""
    squares, seconds = _error_parts(block, target, mu)
    return math.sqrt(sum(squares)) + sum(seconds)


def _error_parts(block: Block, target: Target, mu: float) -> tuple[list[float], list[float]]:
    """What each pair above the ceiling adds to the square of the first sum of (7), and to the second one."""
    limit, squares, seconds = target.limit, [], []
    for value, size in zip(block.values, block.size, strict=True):
        if value > target.ceiling:
            gap = max(value - mu, MIN_GAP * limit)
            squares.append((size * min((value - limit) / gap, 1.0)) ** 2)
            seconds.append(size**2 / gap)
    return squares, seconds


def water_level(parts: list[float], whole: float) -> float:
    """The cap for which the parts, each cut to it, sum to `whole`; where they sum to less, the largest part scaled up
    by the same factor."""
    left = whole
    for done, part in enumerate(sorted(parts)):
        share = left / (len(parts) - done)
        if part > share:
            return share
        left -= part
    return max(max(parts) * whole / max(sum(parts), sys.float_info.min), sys.float_info.min)


def elementwise_max(one: list[float], other: list[float]) -> list[float]:
    """The larger of two demands on each pair."""
    return [max(pair) for pair in itertools.zip_longest(one, other, fillvalue=0.0)]
