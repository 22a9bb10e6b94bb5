"""Made matrices as training presents them to the projection: each the last one, clipped, plus an update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gruclip.spectral import SpectralState, clip_singular_values_

#: Of all but the late ones: delta 0.2's.
LIMIT = 1.8

#: Spectral norms of an update's part that pushes values over the limit, and of its noise, relative to the limit.
#: Together as on Penn Treebank (iterations 20 to 60 at rate 1): 1e-3 in spectral norm, 4e-3 in Frobenius norm.
DRIFT, NOISE = 1e-3, 4e-4

#: Share of the limit below which the values lie that are not meant to pass it.
INSIDE = 0.9

#: Of an update late in training, the limit being delta 1.4's: its Frobenius norm, its directions, the ratio of one
#: singular value to the last, the share of its left and right vectors that lies in the span of W's leading ones, and
#: the share of its directions that push outwards.
LATE_LIMIT, UPDATE_NORM, DIRECTIONS, DECAY = 0.6, 1.0, 40, 0.91
ALIGNED_LEFT, ALIGNED_RIGHT, OUTWARDS = 0.35, 0.65, 0.6
#: Singular values late in training, relative to the limit, at these shares of n.
LATE_SHARES, LATE_VALUES = (0.0, 0.038, 0.045, 0.075, 0.15, 0.31, 0.61, 1.0), (1, 1, 0.95, 0.88, 0.78, 0.64, 0.43, 0)


@dataclass(frozen=True)
class MatrixSequence:
    """Matrices before clipping, in the order of the iterations."""

    name: str
    limit: float
    matrices: Tensor  #: float32 (N, m, n)


def drifting(n: int, above: int, steps: int, rows: int | None = None) -> MatrixSequence:
    """A made sequence (rows, n), square where `rows` is not given, in which `above` values pass the limit in every
    step, by a thousandth of it, and the singular vectors turn slowly.

    The values that do not pass are spread evenly below 0.9 of the limit.
    """
    m = n if rows is None else rows
    generator = torch.Generator().manual_seed(0)
    left, right = _bases(m, n, generator)
    few = min(m, n)
    values = torch.cat((torch.full((above,), LIMIT), torch.linspace(INSIDE * LIMIT, 0, few - above)))
    weight = (left * values) @ right.mT
    outwards = DRIFT * LIMIT * left[:, :above] @ right[:, :above].mT
    state, matrices = SpectralState(), torch.empty(steps, m, n)
    for before in matrices:
        # The spectral norm of a Gaussian matrix is near m^(1/2) + n^(1/2).
        noise = torch.randn(m, n, generator=generator).mul_(NOISE * LIMIT / (m**0.5 + n**0.5))
        weight += outwards + noise
        before.copy_(weight)
        clip_singular_values_(weight, LIMIT, state=state)
    shape = f"n={n}" if m == n else f"{m} x {n}"
    return MatrixSequence(f"made, {shape}, {above} above", LIMIT, matrices)


def unknown(n: int, above: int, steps: int, rows: int | None = None) -> MatrixSequence:
    """The same matrix `steps` times, of which `above` values are spread from 1.001 to 1.3 limits and the others from 0
    to 0.9."""
    m = n if rows is None else rows
    left, right = _bases(m, n, torch.Generator().manual_seed(0))
    outside = torch.linspace(1.3 * LIMIT, 1.001 * LIMIT, above)
    values = torch.cat((outside, torch.linspace(INSIDE * LIMIT, 0, min(m, n) - above)))
    matrix = (left * values) @ right.mT
    shape = f"n={n}" if m == n else f"{m} x {n}"
    return MatrixSequence(f"one, {shape}, {above} above", LIMIT, matrix.expand(steps, m, n))


def late(n: int, steps: int) -> MatrixSequence:
    """A made sequence as in the later epochs of a run on Penn Treebank, (n, n), n >= 80.

    An update has 40 directions with decaying singular values and the Frobenius norm 1, which is 1.7 limits (measured:
    1.9 at delta 0.2 and 5.5 at 1.4, after three epochs). Its vectors lie in the span of W's leading 40 by shares as
    measured there (left 0.25 to 0.5, right 0.5 to 0.9). Six of ten directions push outwards: at n = 650 that keeps 14
    to 23 values passing the limit at every step, the largest by a third to a half of it, and 25 to 36 at 0.92 of it or
    beyond, over thirty steps.
    """
    generator = torch.Generator().manual_seed(0)
    left, right = _bases(n, n, generator)
    values = np.interp(np.arange(n) / (n - 1), LATE_SHARES, LATE_VALUES)
    weight = (left * (LATE_LIMIT * torch.from_numpy(values).float())) @ right.mT
    sizes = DECAY ** torch.arange(DIRECTIONS)
    sizes *= UPDATE_NORM / torch.linalg.vector_norm(sizes)
    matrices = torch.empty(steps, n, n)
    for before in matrices:
        turned = torch.linalg.qr(torch.randn(DIRECTIONS, DIRECTIONS, generator=generator))[0]
        signs = torch.where(torch.rand(DIRECTIONS, generator=generator) < OUTWARDS, 1.0, -1.0)
        us = _partly_in(left[:, :DIRECTIONS] @ turned, ALIGNED_LEFT, generator)
        vs = _partly_in(right[:, :DIRECTIONS] @ turned, ALIGNED_RIGHT, generator)
        weight = weight + (us * (sizes * signs)) @ vs.mT
        before.copy_(weight)
        left, found, right_t = torch.linalg.svd(weight)
        weight, right = (left * found.clamp(max=LATE_LIMIT)) @ right_t, right_t.mT
    return MatrixSequence(f"made as late in training, n={n}", LATE_LIMIT, matrices)


def _bases(m: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random orthonormal (m, k) and (n, k), k = min(m, n)."""
    few = min(m, n)
    left, right = (torch.linalg.qr(torch.randn(size, few, generator=generator))[0] for size in (m, n))
    return left, right


def _partly_in(columns: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Unit vectors, nearly, of which `share` of the square lies in `columns` and the rest in random directions."""
    others = torch.linalg.qr(torch.randn(columns.shape, generator=generator))[0]
    return share**0.5 * columns + (1 - share) ** 0.5 * others
