"""The leading singular triplets of a matrix on a subspace that grows until they are precise enough: Rayleigh-Ritz."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.thin import thin_product

#: Columns at most, as a share of min(m, n): a decomposition is cheaper then.
WIDEST_SHARE = 0.4
#: Residuals that join the basis at once, and how often they may.
EXPANSION, MOST_EXPANSIONS = 16, 24
#: Columns that join for each pair and Rayleigh-Ritz step.
KRYLOV = 2
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
        image = thin_product(weight, columns)
        return cls(columns, image, thin_product(weight.mT, image))

    def joined(self, other: Basis) -> Basis:
        return Basis(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))


class Block(NamedTuple):
    """The Ritz triplets of W on a basis Q."""

    values: Tensor  #: Theta (q,), float64, descending
    left: Tensor  #: U (m, q)
    right: Tensor  #: V (n, q)
    residual: Tensor  #: E^T = W^T U - V Theta (n, q)
    size: Tensor  #: the norms of its columns, float64
    basis: Basis


def orthonormal(columns: Tensor, against: Tensor | None = None) -> Tensor:
    """An orthonormal basis of the columns' part orthogonal to `against`; twice, for rounding."""
    if against is not None:
        for _ in range(2):
            columns = torch.linalg.qr(columns - against @ (against.mT @ columns))[0]
        return columns
    return torch.linalg.qr(columns)[0]


def rayleigh_ritz(weight: Tensor, basis: Basis) -> Block:
    """The singular triplets of W restricted to a basis, and their residuals."""
    wide = basis.image.double()
    squares, Y = torch.linalg.eigh(wide.mT @ wide)
    values, Y = squares.flip(0).clamp(min=0).sqrt(), Y.flip(1)
    scaled = (Y / values.clamp(min=torch.finfo(torch.float64).tiny)).to(weight.dtype)
    left, right = basis.image @ scaled, basis.columns @ Y.to(weight.dtype)
    # W^T U: from what is at hand, but for values so small that their division would lose digits.
    pulled = basis.back @ scaled if values[-1] > SMALLEST_VALUE * values[0] else thin_product(weight.mT, left)
    residual = pulled - right * values.to(weight.dtype)
    return Block(values, left, right, residual, torch.linalg.vector_norm(residual, dim=0).double(), basis)


def clip_leading(weight: Tensor, block: Block, limit: float, ceiling: float) -> int:
    """W - U_C (Theta_C - L) V_C^T in place, for the values above `ceiling`; their number."""
    count = int((block.values > ceiling).sum())
    if count:
        excess = (block.values[:count] - limit).to(weight.dtype)
        weight.addmm_(block.left[:, :count] * excess, block.right[:, :count].mT, alpha=-1)
    return count


def converge(weight: Tensor, columns: Tensor, needed: Callable[[Block], Tensor | None]) -> Block | None:
    """Rayleigh-Ritz on a basis that grows by the residuals of the pairs that are `needed` (a mask), until none is.

    None if `needed` says so, and where the basis would grow too wide.
    """
    widest = max(WIDEST_SHARE * min(weight.shape), columns.shape[1])
    basis = Basis.of(weight, orthonormal(columns))
    for _ in range(MOST_EXPANSIONS):
        block = rayleigh_ritz(weight, basis)
        mask = needed(block)
        if mask is None:
            return None
        chosen = mask.nonzero().flatten()[:EXPANSION]
        if chosen.numel() == 0:
            return block
        # A Krylov space of the residuals: its next columns are there as soon as the last ones have been pulled back.
        new = block.residual[:, chosen] / block.size[chosen].to(weight.dtype)
        for _ in range(KRYLOV):
            if basis.columns.shape[1] + new.shape[1] > widest:
                return None
            joined = Basis.of(weight, orthonormal(new, basis.columns))
            basis, new = basis.joined(joined), joined.back
    return None


def needed_for_precision(block: Block, norm: float, limit: float, ceiling: float) -> Tensor:
    """The pairs above the limit whose residuals are too large for the result; if none is above, for sigma_1."""
    above = block.values > ceiling
    if bool(above[0]):
        precise = PRECISION[block.residual.dtype] * max(norm, limit)
        return above & (block.size > precise / float(above.sum()) ** 0.5)
    above[0] = block.size[0] > NORM_RESIDUAL * block.values[0]
    return above
