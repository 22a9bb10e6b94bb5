"""The leading singular triplets of a matrix on a subspace that grows until they are precise enough: Rayleigh-Ritz."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.kernels import compiled
from gruclip.spectral.thin import there_and_back, thin_product

#: Columns at most, as a share of min(m, n): a decomposition is cheaper then.
WIDEST_SHARE = 0.4
#: Residuals that join the basis at once, and how often they may.
EXPANSION, MOST_EXPANSIONS = 16, 24
#: Steps of the Krylov space of the residuals that join at once, at most.
MOST_KRYLOV = 6
#: A residual is taken to be too large by this factor at most, and a Krylov step to shrink it by e to this at least.
LARGEST_EXCESS, SLOWEST_RATE = 1e9, 0.5
#: Smallest value, relative to the largest, whose residual comes from W^T W Q.
SMALLEST_VALUE = 0.02
#: sigma_1 / limit up to which the difference W - U_C (Theta_C - L) V_C^T keeps its digits in float32.
FARTHEST = 4.0
#: ||E_C||_F relative to the matrix's norm: the result's error is at most twice that.
PRECISION = {torch.float32: 6e-7, torch.float64: 1e-10}
#: Residual of the leading pair, relative to its value, when nothing is clipped: its square is the error.
NORM_RESIDUAL = 5e-4


class Basis(NamedTuple):
    """A subspace and what the matrix does to it."""

    columns: Tensor  #: Q (n, q), orthonormal
    image: Tensor  #: W Q (m, q)
    back: Tensor  #: W^T W Q (n, q)

    @classmethod
    def of(cls, weight: Tensor, columns: Tensor) -> Basis:
        return cls(columns, *there_and_back(weight, columns))


class Block(NamedTuple):
    """The leading k Ritz triplets of W on a basis Q of q columns."""

    values: list[float]  #: Theta, descending
    left: Tensor  #: U (m, k)
    right: Tensor  #: V (n, k)
    residual: Tensor  #: E^T = W^T U - V Theta (n, k)
    size: list[float]  #: the norms of its columns


def orthonormal(columns: Tensor, against: Tensor | None = None) -> Tensor:
    """An orthonormal basis of the columns' part orthogonal to `against`, orthonormal itself; any directions where
    columns have none of their own."""
    others = columns.new_empty(columns.shape[0], 0) if against is None else against.contiguous()
    # QR takes more columns than there are dimensions, too, and gives as many as there are.
    if compiled.takes(columns, others) and columns.shape[1] + others.shape[1] <= columns.shape[0]:
        basis = columns.clone(memory_format=torch.contiguous_format)
        compiled.call("gruclip_orthonormalise", [basis, others], [*basis.shape, others.shape[1]])
        if not math.isnan(basis[0, 0]):
            return basis
    return torch.linalg.qr(torch.cat((others, columns), 1))[0][:, others.shape[1] :]


def gram(columns: Tensor) -> Tensor:
    """X^T X in float64."""
    if compiled.takes(columns):
        m, q = columns.shape
        made = columns.new_empty(q, q, dtype=torch.float64)
        compiled.call("gruclip_gram", [made, columns.contiguous()], [m, q], torch.get_num_threads())
        return made
    wide = columns.double()
    return wide.mT @ wide


def ritz_values(basis: Basis) -> tuple[list[float], Tensor]:
    """The singular values of W Q, descending, and its right singular vectors (q, q), float64."""
    squares, Y = torch.linalg.eigh(gram(basis.image))
    return [math.sqrt(max(square, 0.0)) for square in reversed(squares.tolist())], Y.flip(1)


def ritz_triplets(weight: Tensor, basis: Basis, values: list[float], Y: Tensor) -> Block:
    """The triplets of the leading ones of `ritz_values`, and their residuals."""
    # W^T U: from what is at hand, but for values so small that their division would lose digits.
    at_hand = values[-1] > SMALLEST_VALUE * values[0]
    theta = torch.tensor(values, dtype=torch.float64, device=weight.device)
    if at_hand and compiled.takes(*basis):
        (m, q), n, k = basis.image.shape, basis.columns.shape[0], len(values)
        left, right, residual = (weight.new_empty(rows, k) for rows in (m, n, n))
        size = torch.empty_like(theta)
        made: list[Tensor | None] = [left, right, residual, size, *(part.contiguous() for part in basis), Y, theta]
        compiled.call("gruclip_ritz_triplets", made, [m, n, q, k, *Y.stride()], torch.get_num_threads())
        return Block(values, left, right, residual, size.tolist())
    Y = Y[:, : len(values)]
    # By no less than the rounding of the image: what is left of a value that is zero must not become infinite.
    single = torch.finfo(torch.float32)
    scaled = (Y / theta.clamp(min=max(single.eps * values[0], single.tiny))).to(weight.dtype)
    left, right = basis.image @ scaled, basis.columns @ Y.to(weight.dtype)
    pulled = basis.back @ scaled if at_hand else thin_product(weight.mT, left)
    residual = pulled - right * theta.to(weight.dtype)
    return Block(values, left, right, residual, torch.linalg.vector_norm(residual, dim=0).tolist())


def number_above(values: list[float], bound: float) -> int:
    """How many of the values lie above a bound."""
    return sum(value > bound for value in values)


def clip_leading(weight: Tensor, block: Block, limit: float, ceiling: float) -> int:
    """W - U_C (Theta_C - L) V_C^T in place, for the values above `ceiling`; their number."""
    count = number_above(block.values, ceiling)
    if count:
        excess = weight.new_tensor([value - limit for value in block.values[:count]])
        weight.addmm_(block.left[:, :count] * excess, block.right[:, :count].mT, alpha=-1)
    return count


#: Of the leading pairs, how many times too large their residuals are, or None to give up.
Judge = Callable[[Block], list[float] | None]


def converge(
    weight: Tensor, columns: Tensor, ceiling: float, imprecise: Judge, uncertain: Judge | None = None
) -> Block | None:
    """Rayleigh-Ritz on a basis that grows by the residuals of the pairs that need it, until none does.

    `imprecise` is asked of the pairs above `ceiling` and the next one, which is quickly done; when none of these is,
    `uncertain` is asked of all pairs. Returns the pairs that were judged last; None if one of the two says so, and
    where the basis would grow too wide.
    """
    widest = max(WIDEST_SHARE * min(weight.shape), columns.shape[1])
    basis = Basis.of(weight, orthonormal(columns))
    rate, before, steps = 0.0, math.inf, 0
    for _ in range(MOST_EXPANSIONS):
        values, Y = ritz_values(basis)
        block = ritz_triplets(weight, basis, values[: number_above(values, ceiling) + 1], Y)
        excess = imprecise(block)
        if uncertain is not None and excess is not None and all(one <= 1 for one in excess):
            block = ritz_triplets(weight, basis, values, Y)
            excess = uncertain(block)
        if excess is None:
            return None
        chosen = [index for index, one in enumerate(excess) if not one <= 1][:EXPANSION]
        if not chosen:
            return block
        new = block.residual[:, chosen] / weight.new_tensor([block.size[index] for index in chosen])
        now = min(max(excess), LARGEST_EXCESS)
        # How much smaller a step makes the residuals, by the last steps if there were any.
        rate = math.log(before / now) / steps if steps and now < before else _expected_rate(values, chosen[-1])
        before, steps = now, max(1, min(math.ceil(math.log(now) / rate), MOST_KRYLOV))
        if basis.columns.shape[1] + steps * new.shape[1] > widest:
            return None
        basis = _expanded(weight, basis, new, steps)
    return None


def _expanded(weight: Tensor, basis: Basis, new: Tensor, steps: int) -> Basis:
    """The basis and so many steps of the Krylov space of W^T W that begins with `new` (n, k)."""
    (m, q), (n, k) = basis.image.shape, new.shape
    if compiled.takes(weight, *basis, new) and weight.stride(1) == 1 and q + steps * k <= n:
        grown = Basis(*(part.new_empty(part.shape[0], q + steps * k) for part in basis))
        made: list[Tensor | None] = [*grown, *(part.contiguous() for part in basis), weight, new.contiguous()]
        compiled.call("gruclip_expand", made, [m, n, q, k, steps, weight.stride(0)], torch.get_num_threads())
        if not math.isnan(grown.columns[0, 0]):
            return grown
    blocks = [basis]
    for _ in range(steps):
        blocks.append(Basis.of(weight, orthonormal(new, torch.cat([block.columns for block in blocks], 1))))
        # The next columns are there as soon as the last ones have been pulled back.
        new = blocks[-1].back
    return Basis(*(torch.cat(parts, 1) for parts in zip(*blocks, strict=True)))


def _expected_rate(values: list[float], last: int) -> float:
    """The logarithm of the factor by which a Krylov step shrinks the residuals of the pairs up to `last`.

    Chebyshev's polynomial grows by so much beyond a spectrum that begins at the next Ritz value; squared, since what
    lies between zero and that value is seldom spread out evenly.
    """
    here, rest = values[last], values[min(last + 1, len(values) - 1)]
    return max(2 * math.acosh(2 * (here / rest) ** 2 - 1), SLOWEST_RATE) if here > rest > 0 else SLOWEST_RATE


def excess_for_precision(block: Block, norm: float, limit: float, ceiling: float) -> list[float]:
    """How many times too large the residuals of the pairs above the limit are for the result; if none is above, that
    of the first for sigma_1. Zero for the others."""
    count = number_above(block.values, ceiling)
    precise = PRECISION[block.residual.dtype] * max(norm, limit) / max(count, 1) ** 0.5
    if count == 0:
        precise = NORM_RESIDUAL * max(block.values[0], sys.float_info.min)
    return [size / precise if index < max(count, 1) else 0.0 for index, size in enumerate(block.size)]
