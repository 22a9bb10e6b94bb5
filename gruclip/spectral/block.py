"""Clipping by a tracked subspace, certified: a few thin products a step instead of a decomposition.

Notation, for one matrix W (m, n): Q an orthonormal basis of the tracked subspace (n, q), P its projector;
W Q = U Theta Y^T, V = Q Y the Ritz vectors, so W V = U Theta exactly; E = (W^T U - V Theta) their residuals,
which are orthogonal to V. In the bases [U, .] and [V, .] the matrix reads

    W = [[Theta, E^T], [0, M]],        ||M||_2 <= ||W (I - P)||_2 <= beta.

*The result.* Let C be the Ritz values above the limit L. W - U_C (Theta_C - L) V_C^T differs from the exact
projection by at most 2 ||E_C||_F, because the projection onto a convex set is nonexpansive: without E_C the
two are equal as soon as the rest is inside.

*The rest is inside.* With Theta' = min(Theta, L), kappa = L^2 / (L^2 - beta^2) and beta < L, the Schur complement of
L^2 I - W' W'^T shows that sigma_1(W') <= L if and, for worst M, only if

    L^2 I - Theta'^2 - kappa E^T E >= 0,

a q x q matrix. So a residual e costs the norm kappa e^2 / 2L only.

*The bulk.* beta comes from a reference: a matrix W_0 and a subspace P_0 inside P for which a Cholesky
factorisation of mu^2 I - (I - P_0) W_0^T W_0 (I - P_0) has proved ||W_0 (I - P_0)||_2 <= mu (or a full
decomposition gave mu). Then, as Weyl's inequality has it, beta = mu + ||(W - W_0)(I - P)||_F. The factorisation
is repeated when beta comes near L. Nothing is left to chance.

Cost of a step: 4 m n q + 2 m n c per expansion by c residuals, against some 20 n^3 for an SVD.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.products import matmul

#: Columns of the reference subspace P_0: at least, and at most as a share of min(m, n).
FEWEST, LARGEST_SHARE = 8, 0.2
#: Columns carried beside it, for what has moved since the reference was taken.
EXTRA = 16
#: Residuals that join the basis at once, and how often they may.
EXPANSION, MOST_EXPANSIONS = 16, 8
#: The bulk may come this near to the limit (beta / L).
HIGHEST_BULK = 0.985
#: Residual of the leading pair, relative to its value, when nothing is clipped: its square is the error.
NORM_RESIDUAL = 1e-3


class Tracked(NamedTuple):
    """What is carried for one matrix."""

    basis: Tensor  #: (n, q), orthonormal, P_0 first
    frozen: int  #: columns of P_0
    reference: Tensor  #: W_0 (m, n)
    bulk: float  #: mu


class Ritz(NamedTuple):
    values: Tensor  #: (q,) float64, descending
    left: Tensor  #: (m, q)
    right: Tensor  #: (n, q)


def orthonormal(columns: Tensor, against: Tensor | None = None) -> Tensor:
    """An orthonormal basis of the columns' part orthogonal to `against`; twice, for rounding."""
    if against is not None:
        for _ in range(2):
            columns = torch.linalg.qr(columns - against @ (against.mT @ columns))[0]
        return columns
    return torch.linalg.qr(columns)[0]


def rayleigh_ritz(basis: Tensor, image: Tensor) -> Ritz:
    """Singular triplets of W restricted to a basis Q, from its image W Q."""
    wide = image.double()
    squares, Y = torch.linalg.eigh(wide.mT @ wide)
    values = squares.flip(0).clamp(min=0).sqrt()
    Y = Y.flip(1)
    left = image @ (Y / values.clamp(min=torch.finfo(torch.float64).tiny)).to(image.dtype)
    return Ritz(values, left, basis @ Y.to(basis.dtype))


def start(weight: Tensor, limit: float, right: Tensor, values: Tensor) -> Tracked | None:
    """Track `weight` from its right singular vectors (n, r) and values, both complete and descending.

    None where too many values lie near the limit for the block to be worth its cost.
    """
    largest = int(LARGEST_SHARE * min(weight.shape))
    near = int((values > 0.9 * limit).sum()) if limit < torch.inf else 0
    frozen = max(near, FEWEST)
    if frozen + EXTRA > largest:
        return None
    basis = right[:, : frozen + EXTRA].to(weight.dtype).contiguous()
    return Tracked(basis, frozen, weight.clone(), float(values[frozen]))


def certify(weight: Tensor, right: Tensor, bulk: float) -> bool:
    """Whether ||W (I - P)||_2 <= bulk, for the projector P on orthonormal columns: proved by factorisation."""
    Y = matmul(weight.mT, weight @ right)
    Y -= right @ ((right.mT @ Y) / 2)
    shifted = matmul(weight.mT, weight).neg_()
    shifted.addmm_(torch.cat((right, Y), 1), torch.cat((Y, right), 1).mT)
    # Rounding of the product and of the factorisation: n eps ||W||^2, covered by the margin of the caller.
    shifted.diagonal().add_(bulk * bulk)
    return int(torch.linalg.cholesky_ex(shifted)[1]) == 0


def clip(weight: Tensor, limit: float, tracked: Tracked, tolerance: float) -> tuple[int, float, Tracked] | None:
    """Clip `weight` in place; values clipped, sigma_1 after it, and what to carry. None: not certified, unchanged."""
    frozen, dtype = tracked.frozen, weight.dtype
    ceiling = limit * (1 + tolerance)
    drift = weight - tracked.reference
    drift_squared = float(torch.linalg.vector_norm(drift, dtype=torch.float64)) ** 2
    scale = max(float(torch.linalg.vector_norm(weight)), limit if limit < torch.inf else 0.0)
    precise = (2.5e-7 if dtype == torch.float32 else 1e-10) * scale

    basis = orthonormal(tracked.basis)
    image = weight @ basis
    for _ in range(MOST_EXPANSIONS):
        values, left, right = rayleigh_ritz(basis, image)
        wanted = max(int((values > 0.95 * limit).sum()), 1)
        residual = weight.mT @ left[:, :wanted] - right[:, :wanted] * values[:wanted].to(dtype)
        size = torch.linalg.vector_norm(residual, dim=0).double()
        above = values[:wanted] > ceiling
        target = torch.full_like(size, precise / wanted**0.5)
        # What a value inside the limit may be off without passing it, and what the norm may be off.
        inside = (ceiling**2 - values[:wanted] ** 2).clamp(min=0).mul(0.02).sqrt().clamp(min=precise)
        target = torch.where(above, target, inside)
        if not bool(above.any()):
            target[0] = min(float(target[0]), NORM_RESIDUAL * float(values[0]))
        open_pairs = (size > target).nonzero().flatten()
        if open_pairs.numel() == 0:
            break
        worst = open_pairs[(size / target)[open_pairs].argsort(descending=True)[:EXPANSION]]
        new = orthonormal(residual[:, worst] / size[worst].to(dtype), basis)
        basis, image = torch.cat((basis, new), 1), torch.cat((image, weight @ new), 1)
    else:
        return None

    bulk = tracked.bulk + drift_squared**0.5
    if bulk > HIGHEST_BULK * limit:
        outside = drift_squared - float(torch.linalg.vector_norm(drift @ basis, dtype=torch.float64)) ** 2
        bulk = tracked.bulk + max(outside, 0.0) ** 0.5
    if bulk > HIGHEST_BULK * limit:
        return None
    return _finish(weight, limit, tolerance, tracked, Ritz(values, left, right), bulk)
