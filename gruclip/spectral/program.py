"""Clipping by a tracked subspace as a fixed program, for whole batches on a GPU: the host waits for nothing.

The method of `tracked` with a number of columns, which is the state's, and degrees that no matrix changes. The carried
subspace and a sketch of the change are filtered, the thin matrix that W makes of them is clipped by the polynomials of
`products`, and the difference goes back. Decompositions become Cholesky factorisations of q x q matrices; the
certificate (17) and the precision (18) are (8) and (7) in a basis of any kind, the roots come from (19). The numbers
are the equations of README.md.

Products with W are in the matrices' own dtype, the two whose digits count in sums of few terms; q x q work, and the
Gram matrices that it begins with, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.spectral.bound import ALPHA, PROBES
from gruclip.spectral.certificate import GUESS, HIGHEST_BULK, SHARE
from gruclip.spectral.products import MARGIN, ClipResult, number_positive, positive_part, roots, sign_polynomials
from gruclip.spectral.state import CARRIED, RECENT, SubspaceState, gaussian
from gruclip.spectral.subspace import NORM_RESIDUAL, PRECISION
from gruclip.spectral.tracked import HELD, NEAR, SKETCH

#: q, with those of the sketch, at least; and directions that a state may hold instead, so that q is whole tiles of 64,
#: as long as q is at most this share of min(m, n), from which on little is saved.
COLUMNS = CARRIED + SKETCH
WIDER, WIDEST = (120, 184), 1 / 3
#: Degrees of the filter, before each of which the columns are spread: few at first, since values far above the limit
#: leave no digits of the others; and of the bound's polynomial.
DEGREES, BOUND_DEGREE = (2, 4, 4, 3), 12
#: Values of the thin matrix, in limits, at most; and the polynomials of (15) and (19) that clip it.
FARTHEST = 16.0
SIGN = sign_polynomials(1e-9, flattenings=1)
ROOT = sign_polynomials(1 / (FARTHEST * (1 + MARGIN)), flattenings=1)
#: Squarings of its Gram matrix: for the power that brings the leading columns first, and beyond it for its norm.
ORDERING, SQUARINGS = 4, (5, 5)
#: Added to that power, and to a Gram matrix of unit columns, so that they have Cholesky factors.
FLOOR, SHIFT = 1e-6, 1e-11
#: Of a sum, that are added up in float32 where its digits count (`RUN` in gruclip/kernels/panels.h).
TERMS = 32
#: Of random directions in a sketch, relative to it: where nothing has changed they take its place.
STIR = 1e-3


def widths(m: int, n: int) -> list[int]:
    """How many directions a state may hold of each matrix (m, n), rising."""
    return [CARRIED, *(carried for carried in WIDER if carried + SKETCH <= WIDEST * min(m, n))]


@contextmanager
def full_products() -> Iterator[None]:
    """No float32 product from TF32's ten bits, whatever the process has chosen."""
    products = torch.backends.cuda.matmul
    chosen = products.fp32_precision
    products.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision = chosen


def clip_by_program_(weight: Tensor, limits: Tensor, tolerance: float, state: SubspaceState) -> ClipResult:
    """Clip a batch (..., m, n) in place, each matrix at its limit (...), a tensor on the same device; infinity for a
    matrix that is only measured.

    A spectral norm up to limit (1 + tolerance) counts as inside. `state` is of a batch of this shape.
    """
    with full_products():
        done = _clip(weight.reshape(-1, *weight.shape[-2:]), limits.reshape(-1).double(), tolerance, state)
    weight.copy_(done[0].view_as(weight))
    return ClipResult(*(part.view(weight.shape[:-2]) for part in done[1]))


def _clip(weight: Tensor, limits: Tensor, tolerance: float, state: SubspaceState) -> tuple[Tensor, ClipResult]:
    # By a power of two, which rounds nothing: squares of W must be numbers of its dtype.
    largest = torch.linalg.vector_norm(weight, ord=torch.inf, dim=(-2, -1)).double()
    finite, limited = torch.isfinite(largest), limits < torch.inf
    unit = torch.where(limited, limits, largest).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.ldexp(torch.ones_like(unit), -torch.frexp(unit).exponent)
    W = weight * _over(scale).to(weight.dtype)
    size = torch.linalg.vector_norm(W, dim=(-2, -1)).double()
    # Nothing of a matrix that is only measured is above twice its norm.
    limit = torch.where(limited, limits * scale, 2 * size.clamp(min=torch.finfo(torch.float32).tiny))
    ceiling = limit * (1 + tolerance)

    # The subspace.
    sketching, probing = state.draws * 2 + 1, state.draws * 2 + 2
    n = W.shape[-1]
    vectors = gaussian(sketching, n, SKETCH).to(W.dtype)
    moved = W @ vectors - (state.previous @ vectors) * _over(scale).to(W.dtype)
    sketch = _unit(W.mT @ moved) + (STIR / n**0.5) * vectors
    X = torch.cat((sketch, state.right), -1)
    # Not below the values' root mean square, nor above what so many values can be at most.
    end = torch.maximum(state.bulk * scale, size / min(W.shape[1:]) ** 0.5)
    end = torch.minimum(end, torch.minimum(NEAR * limit, size / state.carried**0.5))
    end = end.clamp(min=torch.finfo(torch.float32).eps)
    for degree in DEGREES:
        X = _chebyshev(W, _spread(X), end, degree)
    X = _orthonormal(X)

    # What W makes of it, clipped.
    image = _product(W, X)
    squares = _gram(image)
    norm = _power(squares, ORDERING, *SQUARINGS)[1]
    made = positive_part(squares / _over(limit**2), norm / limit, SIGN, tolerance)
    factor, above = roots(made.above, norm / limit, ROOT)
    identity = torch.eye(X.shape[-1], dtype=torch.float64, device=X.device)
    loss = torch.where(_over(made.inside), 0.0, factor - identity)
    clipped = torch.baddbmm(W, image @ loss.to(W.dtype), X.mT)

    # The leading directions first.
    turn = _ordered(factor @ squares @ factor)
    X = X @ turn.to(X.dtype)
    image = _product(clipped, X)
    back = clipped.mT @ image
    basis = Basis(X, _gram(image), _gram(back - X @ (X.mT @ back)))
    beta, inside = _certificate(clipped, basis, limit, ceiling, end, gaussian(probing, n, PROBES))
    above, sign = (turn.mT @ part @ turn for part in (above, made.sign))
    precise = _imprecision(basis, above, sign, limit, beta) <= PRECISION[W.dtype] * torch.maximum(size, limit)

    # That of the first column, whose square is the error of a norm.
    measured = _diagonal(basis.coupling)[:, 0].clamp(min=0).sqrt() <= NORM_RESIDUAL * norm**2
    reached = norm <= FARTHEST * limit
    certified = finite & made.precise & reached & torch.where(limited, inside & (made.inside | precise), measured)
    certified = certified & torch.isfinite(size)
    changed = certified & ~made.inside
    result = torch.where(_over(changed), clipped * _over(1 / scale).to(W.dtype), weight)

    bulk = _lengths(basis.squares)[:, -SKETCH] / scale
    # No column has come to nothing, or to NaN.
    whole = torch.linalg.vector_norm(X, dim=(-2, -1)).square() > X.shape[-1] - 0.5
    usable = whole & torch.isfinite(bulk) & reached
    state.right.copy_(torch.where(_over(usable), X[..., :-SKETCH], state.right))
    # Of the others `redo_uncertified_` takes what it makes of them.
    state.previous.copy_(torch.where(_over(certified), result, state.previous))
    # A Ritz value is an estimate from below, and among many values near the limit one that falls too far.
    bulk = torch.where(changed, torch.maximum(bulk, HELD * state.bulk), bulk)
    state.bulk.copy_(torch.where(usable, bulk, state.bulk))
    state.draws.add_(1)
    state.missed.lerp_((finite & ~certified).double(), RECENT)
    after = torch.where(certified & limited, torch.minimum(norm, limit), norm) / scale
    count = torch.where(changed, number_positive(made.sign), 0)
    return result, ClipResult(count, torch.where(finite, after, torch.nan), certified, finite, torch.zeros_like(finite))


def _product(W: Tensor, x: Tensor) -> Tensor:
    """W x, of sums of `TERMS` terms that are added up in float64: no error grows with the number of equal terms."""
    parts = -(-W.shape[-1] // TERMS)
    missing = parts * TERMS - W.shape[-1]
    left = torch.nn.functional.pad(W, (0, missing)).unflatten(-1, (parts, TERMS)).transpose(-2, -3)
    right = torch.nn.functional.pad(x, (0, 0, 0, missing)).unflatten(-2, (parts, TERMS))
    return (left @ right).sum(-3, dtype=torch.float64).to(W.dtype)


class Basis(NamedTuple):
    """Orthonormal columns X, leading directions first, and what the clipped matrix does to them, float64."""

    columns: Tensor  #: X (R, n, q)
    squares: Tensor  #: X^T W^T W X (R, q, q)
    coupling: Tensor  #: J^T J (R, q, q), J = (I - X X^T) W^T W X


def _certificate(
    W: Tensor, basis: Basis, limit: Tensor, ceiling: Tensor, end: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """The bound of what the first columns leave out, and whether (17) shows that sigma_1(W) <= ceiling.

    Of as many of the columns as have small residuals, an estimate of which needs no bound.
    """
    X, H, J = basis
    highest = HIGHEST_BULK * limit
    room = (ceiling.square()[:, None] - _diagonal(H)).clamp(min=torch.finfo(torch.float64).tiny)
    shares = _diagonal(J) / ((ceiling.square() - highest.square())[:, None] * room)
    counted = (shares.cumsum(-1) <= SHARE).double()
    counted[:, -SKETCH:].zero_()
    left_out = torch.maximum(((1 - counted) * _lengths(H)).amax(-1), end)
    left_out = torch.minimum(left_out, limit)
    leading = X * counted[:, None].to(X.dtype)
    beta = _bound(W, leading, left_out + GUESS * (limit - left_out), vectors)
    # (17) for the columns that are counted, and 1 for the others.
    coupling = J + (H * (1 - counted)[:, None]) @ H
    schur = _over(ceiling.square()) * _gram(X) - H - coupling / _over(ceiling.square() - beta.square())
    schur = schur * counted[:, None] * counted[:, :, None] + torch.diag_embed(1 - counted)
    return beta, (torch.linalg.cholesky_ex(schur).info == 0) & (beta <= highest)


def _imprecision(basis: Basis, above: Tensor, sign: Tensor, limit: Tensor, beta: Tensor) -> Tensor:
    """The error (18); above (R, q, q): max(Theta, L) / L, and sign: that of Theta - L."""
    identity = torch.eye(above.shape[-1], dtype=above.dtype, device=above.device)
    root = _inverse_factor(_over(limit) * above - _over(torch.minimum(beta, HIGHEST_BULK * limit)) * identity)
    inverse = root @ root.mT
    factor, positive = (above - identity) @ inverse, (identity + sign) / 2
    first = ((factor @ basis.coupling) * factor).sum((-2, -1)).clamp(min=0).sqrt()
    second = ((positive @ basis.coupling @ positive) * inverse).sum((-2, -1)) / limit**2
    return first + second


def _lengths(squares: Tensor) -> Tensor:
    return _diagonal(squares).clamp(min=0).sqrt()


def _chebyshev(W: Tensor, x: Tensor, end: Tensor, degree: int, apart: Tensor | None = None) -> Tensor:
    """T_degree(2 A / end^2 - I) x, A = (I - P) W^T W (I - P), of columns in the range of I - P, P on `apart`."""
    scale, before = _over(2 / end**2).to(W.dtype), x
    for step in range(degree):
        product = W.mT @ (W @ x)
        if apart is not None:
            product = product - apart @ (apart.mT @ product)
        following = product * scale - x
        x, before = following if step == 0 else 2 * following - before, x
    return x


def _bound(W: Tensor, apart: Tensor, end: Tensor, vectors: Tensor) -> Tensor:
    """The mu of equation (10)."""
    vectors = vectors.to(W.dtype)
    x = _chebyshev(W, vectors - apart @ (apart.mT @ vectors), end, BOUND_DEGREE, apart)
    largest = torch.linalg.vector_norm(x, dim=-2, dtype=torch.float64).amax(-1)
    grown = torch.cosh(torch.acosh((largest / ALPHA).clamp(min=1.0)) / BOUND_DEGREE)
    return end * ((1 + grown) / 2).sqrt()


def _orthonormal(x: Tensor) -> Tensor:
    """By `_spread`, twice: what rounding leaves after the first is gone after the second."""
    return _spread(_spread(x))


def _spread(x: Tensor) -> Tensor:
    """Columns that span the same, by the Cholesky factor of the Gram matrix: orthonormal but for rounding times their
    condition, which is enough to filter on."""
    x = _unit(x)
    gram = _gram(x)
    gram.diagonal(dim1=-2, dim2=-1).add_(SHIFT)
    return x @ _inverse_factor(gram).to(x.dtype)


def _inverse_factor(matrix: Tensor) -> Tensor:
    """R^-1 of the Cholesky factor R of a positive definite matrix R^T R."""
    factor = torch.linalg.cholesky_ex(matrix, upper=True).L
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(factor)
    return torch.linalg.solve_triangular(factor, identity, upper=True)


def _ordered(squares: Tensor) -> Tensor:
    """An orthogonal Q (..., q, q) whose first columns span leading eigenvectors of `squares`, by powers of it."""
    power = _power(squares, ORDERING)[0]
    power.diagonal(dim1=-2, dim2=-1).add_(FLOOR)
    return _orthonormal(power @ _spread(power))


def _power(squares: Tensor, *squarings: int) -> tuple[Tensor, Tensor]:
    """A high power of a matrix M = B^T B, of Frobenius norm 1, and sigma_1 of B by its norm."""
    power, logarithm, exponent = squares, torch.zeros_like(squares[:, 0, 0]), 1
    tiny = torch.finfo(squares.dtype).tiny
    for count in (0, *squarings):
        for _ in range(count):
            power, exponent = power @ power, 2 * exponent
        size = torch.linalg.vector_norm(power, dim=(-2, -1)).clamp(min=tiny)
        power, logarithm = power / _over(size), logarithm + size.log() / exponent
    return power, (logarithm / 2).exp()


def _unit(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
    return x / length.clamp(min=torch.finfo(x.dtype).tiny)


def _gram(x: Tensor) -> Tensor:
    wide = x.double()
    return wide.mT @ wide


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)


def _over(vector: Tensor) -> Tensor:
    return vector[:, None, None]
