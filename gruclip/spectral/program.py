"""Clipping by a tracked subspace as a fixed program, for whole batches on a GPU: the host waits for nothing.

The method of `tracked` with degrees and a number of columns (the state's) that depend on no matrix. The carried
subspace and a sketch of the change are filtered, their image under W is clipped by the polynomials of
`products`, and the difference is added to W. Decompositions become Cholesky factorisations of q x q matrices; the
certificate (17) and the precision (18) are (8) and (7) in a basis of any kind, the roots come from (19). The numbers
are the equations of README.md.

Products with W are in the matrices' own dtype, the two whose digits count more precise; q x q work, and the Gram
matrices that it begins with, in float64. `gruclip.kernels.program` has what is one kernel each on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.kernels.program import (
    STEP,
    exact_product,
    filter_step,
    gram,
    high_power,
    inverse_factor,
    is_positive_definite,
)
from gruclip.spectral.bound import ALPHA, PROBES
from gruclip.spectral.certificate import GUESS, MAX_BETA, SHARE
from gruclip.spectral.products import (
    MARGIN,
    ClipResult,
    number_positive,
    per_matrix,
    positive_part,
    roots,
    sign_polynomials,
)
from gruclip.spectral.state import CARRIED, RECENT, SubspaceState, gaussian
from gruclip.spectral.subspace import NEAR, NORM_RESIDUAL, PRECISION
from gruclip.spectral.tracked import MIN_BULK_RATIO, SKETCH

#: q at least, the sketch included; and wider states' directions, for which q is a multiple of 64, allowed while q is at
#: most this share of min(m, n), beyond which little is saved.
COLUMNS = CARRIED + SKETCH
WIDER, MAX_SHARE = (120, 184), 1 / 3
#: Degrees of the filter, each after a step of Cholesky QR: low at first, since values far above the limit drown the
#: others in rounding; and of the bound's polynomial.
DEGREES, BOUND_DEGREE = (2, 4, 4, 3), 12
#: Values of the thin matrix, in limits, at most; and the polynomials of (15) and (19) that clip it.
MAX_RATIO = 16.0
SIGN = sign_polynomials(1e-9, flattenings=1)
ROOT = sign_polynomials(1 / (MAX_RATIO * (1 + MARGIN)), flattenings=1)
#: Squarings of its Gram matrix: for the power that brings the leading columns first, and for its norm.
ORDERING, SQUARINGS = 4, 14
#: Added to that power, and to a Gram matrix of unit columns, so that they have Cholesky factors.
FLOOR, SHIFT = 1e-6, 1e-11
#: Of random directions in a sketch, relative to it: where nothing has changed they take its place.
STIR = 1e-3


def widths(m: int, n: int) -> list[int]:
    """How many directions a state may hold of each matrix (m, n), rising."""
    return [CARRIED, *(carried for carried in WIDER if carried + SKETCH <= MAX_SHARE * min(m, n))]


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
    matrices = weight.reshape(-1, *weight.shape[-2:])
    with full_products():
        result = _clip_(matrices, limits.reshape(-1).double(), tolerance, state)
    if matrices.data_ptr() != weight.data_ptr():
        weight.copy_(matrices.view_as(weight))
    return ClipResult(*(part.view(weight.shape[:-2]) for part in result))


def _clip_(weight: Tensor, limits: Tensor, tolerance: float, state: SubspaceState) -> ClipResult:
    matrices, m, n = weight.shape
    # By a power of two, which is exact, so that squares of W are in its dtype's range.
    largest = torch.linalg.vector_norm(weight, ord=torch.inf, dim=(-2, -1)).double()
    finite, limited = torch.isfinite(largest), limits < torch.inf
    unit = torch.where(limited, limits, largest).clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.ldexp(torch.ones_like(unit), -torch.frexp(unit).exponent)
    # Padded with zero rows and columns, so that the rows of all arrays are 16-byte aligned.
    W = weight.new_empty(matrices, m + -m % STEP, n + -n % STEP)
    torch.mul(weight, per_matrix(scale).to(W.dtype), out=W[:, :m, :n])
    W[:, m:].zero_()
    W[:, :, n:].zero_()
    size = torch.linalg.vector_norm(W, dim=(-2, -1)).double()
    # Nothing of a matrix that is only measured is above twice its norm.
    limit = torch.where(limited, limits * scale, 2 * size.clamp(min=torch.finfo(torch.float32).tiny))
    ceiling = limit * (1 + tolerance)

    # The subspace.
    vectors, probes = gaussian(state.draws * 2 + 1, n, SKETCH + PROBES).to(W.dtype).split((SKETCH, PROBES), -1)
    moved = W[:, :m, :n] @ vectors - (state.previous @ vectors) * per_matrix(scale).to(W.dtype)
    sketch = _unit(W[:, :m, :n].mT @ moved) + (STIR / n**0.5) * vectors
    X = torch.nn.functional.pad(torch.cat((sketch.mT, state.right.mT), 1), (0, -n % STEP)).mT
    # Not below the values' root mean square, nor above what so many values can be at most.
    end = torch.maximum(state.bulk * scale, size / min(m, n) ** 0.5)
    end = torch.minimum(end, torch.minimum(NEAR * limit, size / state.carried**0.5))
    end = end.clamp(min=torch.finfo(torch.float32).eps)
    for degree in DEGREES:
        X = _chebyshev(W, _cholesky_qr(X), end, degree)
    X = _cholesky_qr_twice(X)

    # What W makes of it, clipped.
    image = exact_product(W, X)
    squares = gram(image)
    norm = high_power(squares, SQUARINGS)[1]
    made = positive_part(squares / per_matrix(limit**2), norm / limit, SIGN, tolerance)
    factor, root = roots(made.above, norm / limit, ROOT)
    identity = torch.eye(X.shape[-1], dtype=torch.float64, device=X.device)
    loss = torch.where(per_matrix(made.inside), 0.0, factor - identity)
    clipped = torch.baddbmm(W, image @ loss.to(W.dtype), X.mT)

    # The leading directions first.
    turn = _ordered(factor @ squares @ factor)
    X = (turn.mT.to(X.dtype) @ X.mT).mT
    image = exact_product(clipped, X)
    back = clipped.mT @ image
    basis = Basis(X, image, gram(X), gram(image), gram(back - X @ (X.mT @ back)))
    probes = torch.nn.functional.pad(probes.mT, (0, -n % STEP)).mT
    beta, inside = _certificate(clipped, basis, limit, ceiling, end, probes)
    root, sign = (turn.mT @ part @ turn for part in (root, made.sign))
    precise = _imprecision(basis, root, sign, limit, beta, norm) <= PRECISION[W.dtype] * torch.maximum(size, limit)

    # The first residual, whose square is the error of the norm.
    measured = _diagonal(basis.coupling)[:, 0].clamp(min=0).sqrt() <= NORM_RESIDUAL * norm**2
    reached = norm <= MAX_RATIO * limit
    certified = finite & made.precise & reached & torch.where(limited, inside & (made.inside | precise), measured)
    certified = certified & torch.isfinite(size)
    changed = certified & ~made.inside
    result = clipped[:, :m, :n].mul_(per_matrix(1 / scale).to(W.dtype))
    torch.where(per_matrix(changed), result, weight, out=weight)

    bulk = _lengths(basis.squares)[:, -SKETCH] / scale
    # No column is zero or NaN.
    whole = torch.linalg.vector_norm(X, dim=(-2, -1)).square() > X.shape[-1] - 0.5
    usable = whole & torch.isfinite(bulk) & reached
    state.right.copy_(torch.where(per_matrix(usable), X[:, :n, :-SKETCH], state.right))
    # For the others `redo_uncertified_` stores its result.
    torch.where(per_matrix(certified), weight, state.previous, out=state.previous)
    # A Ritz value is a lower bound, and with many values near the limit far too low.
    bulk = torch.where(changed, torch.maximum(bulk, MIN_BULK_RATIO * state.bulk), bulk)
    state.bulk.copy_(torch.where(usable, bulk, state.bulk))
    state.draws.add_(1)
    state.missed.lerp_((finite & ~certified).double(), RECENT)
    after = torch.where(certified & limited, torch.minimum(norm, limit), norm) / scale
    count = torch.where(changed, number_positive(made.sign), 0)
    return ClipResult(count, torch.where(finite, after, torch.nan), certified, finite, torch.zeros_like(finite))


class Basis(NamedTuple):
    """Orthonormal columns X, leading directions first, and what the clipped matrix does to them, float64."""

    columns: Tensor  #: X (R, n, q)
    image: Tensor  #: W X (R, m, q)
    gram: Tensor  #: X^T X (R, q, q)
    squares: Tensor  #: X^T W^T W X (R, q, q)
    coupling: Tensor  #: J^T J (R, q, q), J = (I - X X^T) W^T W X


def _certificate(
    W: Tensor, basis: Basis, limit: Tensor, ceiling: Tensor, end: Tensor, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """The bound of what the first columns leave out, and whether (17) shows that sigma_1(W) <= ceiling.

    By as many first columns as have small residuals, judged with MAX_BETA for beta.
    """
    X, image, G, H, J = basis
    highest = MAX_BETA * limit
    room = (ceiling.square()[:, None] - _diagonal(H)).clamp(min=torch.finfo(torch.float64).tiny)
    shares = _diagonal(J) / ((ceiling.square() - highest.square())[:, None] * room)
    counted = (shares.cumsum(-1) <= SHARE).double()
    counted[:, -SKETCH:].zero_()
    left_out = torch.maximum(((1 - counted) * _lengths(H)).amax(-1), end)
    left_out = torch.minimum(left_out, limit)
    rest = torch.baddbmm(W, image * counted[:, None].to(X.dtype), X.mT, alpha=-1)
    beta = _bound(rest, left_out + GUESS * (limit - left_out), vectors)
    # (17) for the counted columns, the identity for the others; F^T F for X that is not quite orthonormal.
    others = H * (1 - counted)[:, :, None]
    leaning = others.mT @ (H - G @ H)
    coupling = J + others.mT @ G @ others + leaning + leaning.mT
    schur = per_matrix(ceiling.square()) * G - H - coupling / per_matrix(ceiling.square() - beta.square())
    schur = schur * counted[:, None] * counted[:, :, None] + torch.diag_embed(1 - counted)
    return beta, is_positive_definite(schur) & (beta <= highest)


def _imprecision(basis: Basis, root: Tensor, sign: Tensor, limit: Tensor, beta: Tensor, norm: Tensor) -> Tensor:
    """The error (18), plus X's deviation from orthonormality; root (R, q, q): max(Theta, L) / L; sign: that of
    Theta - L; norm (R,): sigma_1 before."""
    identity = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    gap = per_matrix(limit) * root - per_matrix(torch.minimum(beta, MAX_BETA * limit)) * identity
    triangular = inverse_factor(gap)
    inverse = triangular @ triangular.mT
    factor, positive = (root - identity) @ inverse, (identity + sign) / 2
    first = ((factor @ basis.coupling) * factor).sum((-2, -1)).clamp(min=0).sqrt()
    second = ((positive @ basis.coupling @ positive) * inverse).sum((-2, -1)) / limit**2
    return first + second + norm * torch.linalg.matrix_norm(basis.gram - identity)


def _lengths(squares: Tensor) -> Tensor:
    return _diagonal(squares).clamp(min=0).sqrt()


def _chebyshev(W: Tensor, x: Tensor, end: Tensor, degree: int) -> Tensor:
    """T_degree(2 W^T W / end^2 - I) x."""
    scale, before = (2 / end**2).to(W.dtype), None
    for _ in range(degree):
        x, before = filter_step(W, x, before, scale), x
    return x


def _bound(rest: Tensor, end: Tensor, vectors: Tensor) -> Tensor:
    """The mu of equation (10), an upper bound of the norm of `rest`."""
    x = _chebyshev(rest, vectors, end, BOUND_DEGREE)
    largest = torch.linalg.vector_norm(x, dim=-2, dtype=torch.float64).amax(-1)
    grown = torch.cosh(torch.acosh((largest / ALPHA).clamp(min=1.0)) / BOUND_DEGREE)
    return end * ((1 + grown) / 2).sqrt()


def _cholesky_qr_twice(x: Tensor) -> Tensor:
    """By `_cholesky_qr`, twice: what rounding leaves after the first is gone after the second."""
    return _cholesky_qr(_cholesky_qr(x))


def _cholesky_qr(x: Tensor) -> Tensor:
    """One step of Cholesky QR: columns with the same span, orthonormal but for rounding times their condition, which
    is enough for the filter."""
    return (inverse_factor(gram(x), SHIFT).mT.to(x.dtype) @ x.mT).mT


def _ordered(squares: Tensor) -> Tensor:
    """An orthogonal Q (..., q, q) whose first columns span leading eigenvectors of `squares`, by powers of it."""
    power = high_power(squares, ORDERING)[0]
    power.diagonal(dim1=-2, dim2=-1).add_(FLOOR)
    return _cholesky_qr_twice(power @ _cholesky_qr(power))


def _unit(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
    return x / length.clamp(min=torch.finfo(x.dtype).tiny)


def _diagonal(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1)
