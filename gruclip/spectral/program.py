"""Clipping by a tracked subspace as a fixed program, for whole batches on a GPU: nothing that the host has to wait for.

The method of `tracked` with a number of columns and degrees that no matrix changes. The carried subspace and a sketch of
the change are filtered, the thin matrix that W makes of them is clipped by the polynomials of `products`, and the
difference goes back. Decompositions become Cholesky factorisations of q x q matrices; the certificate (17) and the
precision (18) are (8) and (7) in a basis of any kind. The numbers are the equations of README.md.

Products with W are in the matrices' own dtype; q x q work, and the Gram matrices that it begins with, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gruclip.kernels.dropout import random_bits
from gruclip.spectral.bound import ALPHA, PROBES
from gruclip.spectral.products import Polynomials, Projected, clipping_factor, number_positive
from gruclip.spectral.state import SpectralState
from gruclip.spectral.subspace import NORM_RESIDUAL, PRECISION
from gruclip.spectral.tracked import GUESS, HIGHEST_BULK, NEAR, SHARE, SKETCH

#: Columns carried from step to step, beside which there are those of the sketch; and the least of min(m, n).
CARRIED, SMALLEST = 56, 256
#: Degrees of the filter, between two of which the basis is made orthonormal; and of the bound's polynomial.
DEGREES, BOUND_DEGREE = (2, 4, 4, 2), 12
#: Clip the thin matrix.
POLYNOMIALS = Polynomials.of(farthest=8.0, resolution=2e-9, flattenings=1, pieces=14)
#: Squarings of its Gram matrix: for the power that brings the leading columns first, and beyond it for its norm.
ORDERING, SQUARINGS = 4, (5, 5)
#: Added to that power, and to a Gram matrix of unit columns, so that they have Cholesky factors.
FLOOR, SHIFT = 1e-6, 1e-11
#: Of random directions in a sketch, relative to it: where nothing has changed they take its place.
STIR = 1e-3


class SubspaceState:
    """What `clip_singular_values_deferred_` carries from step to step for the matrices (..., m, n) of a batch.

    Tensors on their device, written in place. A new state knows nothing.
    """

    def __init__(self, weight: Tensor) -> None:
        *batch, m, n = weight.shape
        count, device = math.prod(batch), weight.device
        #: (R, n, k): the leading right singular directions.
        self.right = torch.zeros(count, n, CARRIED, dtype=weight.dtype, device=device)
        #: (R, m, n): the matrices after the last step.
        self.previous = torch.zeros(count, m, n, dtype=weight.dtype, device=device)
        #: (R,): the largest value that the directions leave out, by an estimate.
        self.bulk = torch.zeros(count, dtype=torch.float64, device=device)
        #: (R,): how often random vectors were drawn.
        self.draws = torch.zeros(count, dtype=torch.int64, device=device)
        self.right.copy_(gaussian(self.draws, n, CARRIED))

    def _entries(self, index: int) -> dict[str, Tensor]:
        """Views."""
        return {name: getattr(self, name)[index] for name in ("right", "previous", "bulk", "draws")}

    def index_select(self, index: int | Sequence[int]) -> SpectralState:
        """What is known of some of the matrices, in the order of `index`, as views."""
        return SpectralState([self._entries(i) for i in ([index] if isinstance(index, int) else index)])

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors, by ``"<matrix>.<entry>"``."""
        return self.index_select(range(len(self.draws))).state_dict()

    def load_state_dict(
        self, saved: Mapping[str, Tensor], index: int | None = None, device: torch.device | None = None
    ) -> None:
        """Take what `state_dict` gave; with `index`, one matrix's for the matrix there. Where nothing was saved, or
        something of another algorithm's, nothing is known."""
        for position in range(len(self.draws)) if index is None else [index]:
            found = {name: saved.get(f"{position if index is None else 0}.{name}") for name in self._entries(position)}
            for name, held in self._entries(position).items():
                value = found[name]
                fits = all(new is not None and new.shape == old.shape for new, old in
                           zip(found.values(), self._entries(position).values(), strict=True))  # fmt: skip
                if fits and value is not None:
                    held.copy_(value)
                elif name == "right":
                    held.copy_(gaussian(torch.zeros_like(self.draws[:1]), *held.shape)[0])
                else:
                    held.zero_()


def gaussian(seeds: Tensor, rows: int, columns: int) -> Tensor:
    """(R, rows, columns) standard Gaussian numbers, float32, the same for equal seeds (R,): Box and Muller's."""
    bits = random_bits(seeds, -(-rows * columns // 2))
    radius = ((((bits >> 40) & 0xFFFFFF) + 1).float() * 2**-24).log().mul(-2).sqrt()
    angle = (bits & 0xFFFFFF).float() * (2 * math.pi * 2**-24)
    both = torch.cat((radius * angle.cos(), radius * angle.sin()), 1)
    return both[:, : rows * columns].view(-1, rows, columns)


@contextmanager
def full_products() -> Iterator[None]:
    """No float32 product from TF32's ten bits, whatever the process has chosen."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


def clip_by_program_(weight: Tensor, limits: Tensor, tolerance: float, state: SubspaceState) -> Projected:
    """Clip a batch (..., m, n) in place, each matrix at its limit (...), a tensor on the same device; infinity for a
    matrix that is only measured.

    A spectral norm up to limit (1 + tolerance) counts as inside. `state` is of a batch of this shape.
    """
    with full_products():
        done = _clip(weight.reshape(-1, *weight.shape[-2:]), limits.reshape(-1).double(), tolerance, state)
    weight.copy_(done[0].view_as(weight))
    return Projected(*(part.view(weight.shape[:-2]) for part in done[1]))


def _clip(weight: Tensor, limits: Tensor, tolerance: float, state: SubspaceState) -> tuple[Tensor, Projected]:
    finite = torch.isfinite(weight).all(-1).all(-1)
    tiny = torch.finfo(torch.float64).tiny
    clean = torch.where(_over(finite), weight, 0.0)
    size = torch.linalg.vector_norm(clean, dim=(-2, -1), dtype=torch.float64)
    # By a power of two, which rounds nothing: squares of W must be numbers of its dtype.
    unit = torch.where(limits < torch.inf, limits, size).clamp(min=tiny)
    scale = torch.ldexp(torch.ones_like(unit), -torch.frexp(unit).exponent)
    limit, size = torch.where(limits < torch.inf, limits, 2 * size.clamp(min=tiny)) * scale, size * scale
    W = clean * _over(scale).to(clean.dtype)
    ceiling = limit * (1 + tolerance)

    # The subspace.
    sketching, probing = state.draws * 2 + 1, state.draws * 2 + 2
    n = W.shape[-1]
    vectors = gaussian(sketching, n, SKETCH).to(W.dtype)
    moved = W @ vectors - (state.previous * _over(scale).to(W.dtype)) @ vectors
    sketch = _unit(W.mT @ moved) + (STIR / n**0.5) * vectors
    X = _orthonormal(torch.cat((sketch, state.right), -1))
    # Not below the values' root mean square.
    end = torch.minimum(torch.maximum(state.bulk * scale, size / min(W.shape[1:]) ** 0.5), NEAR * limit)
    end = end.clamp(min=torch.finfo(torch.float32).eps)
    for degree in DEGREES:
        X = _orthonormal(chebyshev(W, X, end, degree)[0])

    # What W makes of it, clipped.
    squares = _gram(W @ X)
    norm = _power(squares, ORDERING, *SQUARINGS)[1]
    made = clipping_factor(squares / _over(limit**2), norm / limit, POLYNOMIALS, tolerance)
    identity = torch.eye(X.shape[-1], dtype=torch.float64, device=X.device)
    loss = torch.where(_over(made.inside), 0.0, made.factor - identity)
    clipped = W + ((W @ X) @ loss.to(W.dtype)) @ X.mT

    # The leading directions first.
    turn = _ordered(made.factor @ squares @ made.factor)
    X = X @ turn.to(X.dtype)
    image = clipped @ X
    back = clipped.mT @ image
    rest = back - X @ (X.mT @ back)
    H, G = _gram(image), _gram(rest)

    # The certificate.
    room = ceiling.square()[:, None] - _diagonal(H)
    gap = (ceiling.square() - (HIGHEST_BULK * limit).square())[:, None]
    shares = _diagonal(G) / (gap * room.clamp(min=tiny))
    counted = (shares.cumsum(-1) <= SHARE).double()
    counted[:, CARRIED:] = 0
    lengths = _diagonal(H).clamp(min=0).sqrt()
    left_out = torch.maximum(((1 - counted) * lengths).amax(-1), end)
    leading = X * counted[:, None].to(X.dtype)
    beta = _bound(clipped, leading, left_out + GUESS * (limit - left_out).clamp(min=0), gaussian(probing, n, PROBES))
    within = _over(ceiling**2 - beta**2)
    spoiled = G + (H * (1 - counted)[:, None]) @ H
    schur = _over(ceiling**2) * _gram(X) - H - spoiled / within
    schur = schur * counted[:, None] * counted[:, :, None] + torch.diag_embed(1 - counted)
    inside = (torch.linalg.cholesky_ex(schur).info == 0) & (beta <= HIGHEST_BULK * limit)

    # The precision.
    factor, sign = (turn.mT @ part @ turn for part in (made.factor, made.sign))
    above = turn.mT @ (made.above @ made.factor + made.factor) @ turn  # max(Theta, L) / L
    inverse = torch.linalg.inv_ex(_over(limit) * above - _over(beta.clamp(max=HIGHEST_BULK * limit)) * identity).inverse
    first = (above - identity) @ inverse
    positive = (identity + sign) / 2
    first_order = ((first @ G) * first).sum((-2, -1)).clamp(min=0).sqrt()
    second_order = ((positive @ G @ positive) * inverse).sum((-2, -1)) / limit**2
    precise = first_order + second_order <= PRECISION[W.dtype] * torch.maximum(size, limit)

    certified = finite & made.precise & inside & (made.inside | precise)
    changed = certified & ~made.inside
    result = torch.where(_over(changed), clipped / _over(scale).to(W.dtype), weight)
    _DEBUG.update(made=made.precise, inside=inside, beta=beta / limit, precise=(first_order, second_order, PRECISION[W.dtype] * torch.maximum(size, limit)), counted=counted.sum(-1), lengths=lengths / limit[:, None], end=end / limit, norm=norm / limit, G=_diagonal(G).sqrt() / limit[:, None], shares=shares, chol=torch.linalg.cholesky_ex(schur).info)

    usable = finite & torch.isfinite(X).all(-1).all(-1)
    state.right.copy_(torch.where(_over(usable), X[..., :CARRIED], state.right))
    state.previous.copy_(torch.where(_over(finite), result, state.previous))
    state.bulk.copy_(torch.where(usable, torch.minimum(lengths[:, CARRIED], NEAR * limit) / scale, state.bulk))
    state.draws.add_(1)
    after = torch.where(finite, torch.where(certified, torch.minimum(norm, limit), norm) / scale, torch.nan)
    return result, Projected(torch.where(changed, number_positive(made.sign), 0), after, certified, finite)


_DEBUG = {}


def chebyshev(
    W: Tensor, x: Tensor, end: Tensor, degree: int, apart: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """T_degree and T_(degree - 1) of 2 A / end^2 - I on columns x, A = (I - P) W^T W (I - P); P projects on `apart`."""
    scale, before = _over(2 / end**2).to(W.dtype), x
    for step in range(degree):
        product = W.mT @ (W @ x)
        if apart is not None:
            product = product - apart @ (apart.mT @ product)
        following = product * scale - x
        x, before = following if step == 0 else 2 * following - before, x
    return x, before


def _bound(W: Tensor, apart: Tensor, end: Tensor, vectors: Tensor) -> Tensor:
    """The mu of equation (10)."""
    vectors = vectors.to(W.dtype)
    x, _ = chebyshev(W, vectors - apart @ (apart.mT @ vectors), end, BOUND_DEGREE, apart)
    largest = torch.linalg.vector_norm(x, dim=-2, dtype=torch.float64).amax(-1)
    grown = torch.cosh(torch.acosh((largest / ALPHA).clamp(min=1.0)) / BOUND_DEGREE)
    return end * ((1 + grown) / 2).sqrt()


def _orthonormal(x: Tensor) -> Tensor:
    """By the Cholesky factor of the Gram matrix, twice."""
    for _ in range(2):
        x = _unit(x)
        gram = _gram(x)
        gram.diagonal(dim1=-2, dim2=-1).add_(SHIFT)
        factor = torch.linalg.cholesky_ex(gram).L.mT
        identity = torch.eye(x.shape[-1], dtype=gram.dtype, device=x.device).expand_as(factor)
        x = x @ torch.linalg.solve_triangular(factor, identity, upper=True).to(x.dtype)
    return x


def _ordered(squares: Tensor) -> Tensor:
    """An orthogonal Q (..., q, q) whose first columns span leading eigenvectors of `squares`, by powers of it."""
    power = _power(squares, ORDERING)[0]
    power.diagonal(dim1=-2, dim2=-1).add_(FLOOR)
    return _orthonormal(power @ _orthonormal(power))


def _power(squares: Tensor, *squarings: int) -> tuple[Tensor, Tensor]:
    """A high power of a matrix M = B^T B, of Frobenius norm 1, and sigma_1 of B by its norm."""
    power, logarithm, exponent = squares, 0.0, 1
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
