"""What `gruclip.spectral.program` does to q columns of a matrix: one kernel each on a GPU, several by torch.

Each function has the plain operations beside its call, as those of `fused`. Batches of R matrices: W (R, m, n), columns
(R, n, q), what they make of each other (R, q, q). Kernels of matrices q x q take q = `SIDE`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gruclip.kernels import fused

#: Of A100, H100 and H200.
CARDS = ((8, 0), (9, 0))
#: q of a matrix that one program has in its registers; columns that W is multiplied with are a multiple of it, or few.
SIDE, FEW = 64, 16
#: Of a product with W a program takes so many rows, and where there are few programs, fewer; terms at a time, also of a
#: Gram matrix, and its tiles.
ROWS, FEW_ROWS, TERMS, TILE = 64, 16, 32, 32
FEW_PROGRAMS = 132
#: The rows of W should be whole multiples of so many numbers, or no load takes 16 bytes at once.
STEP = 16
#: Squarings after which torch's operations make the norm 1 again: q^-(2^4) is far from the least number.
NORMED = 5
#: Squared lengths up to which a column is taken for zero.
MIN_SQUARE = 1e-60

Polynomials = Sequence[tuple[float, float, float]]


def takes(array: Tensor) -> bool:
    """Whether the kernels take such an array, float32 or float64: on cards whose tensor cores have float64 and for
    which Triton makes use of it."""
    if array.dtype not in (torch.float32, torch.float64) or not fused.runs_on(array.device):
        return False
    return fused.INTERPRETED or (
        torch.version.cuda is not None and torch.cuda.get_device_capability(array.device) in CARDS
    )


def _takes_square(matrix: Tensor) -> bool:
    return matrix.dtype == torch.float64 and matrix.shape[-1] == SIDE and takes(matrix)


def filter_step(W: Tensor, x: Tensor, before: Tensor | None, scale: Tensor) -> Tensor:
    """``2 (scale W^T W x - x) - before``, or ``scale W^T W x - x`` for None: a Chebyshev step. x (R, n, q),
    scale (R,)."""
    if _takes_thin(W, x):
        factor, x = (1.0 if before is None else 2.0), _apart(x)
        return _product(W.mT, _product(W, x, scale), base=x, before=before, factor=factor)
    image = W @ x
    image *= scale[:, None, None]
    if before is None:
        return (W.mT @ image).sub_(x)
    return torch.add(before, x, alpha=2).baddbmm_(W.mT, image, beta=-1, alpha=2)


def exact_product(W: Tensor, x: Tensor) -> Tensor:
    """W x in float64, rounded once; x (R, n, q)."""
    if _takes_thin(W, x):
        return _product(W, _apart(x), exact=True)
    return (W.double() @ x.double()).to(W.dtype)


def _takes_thin(W: Tensor, x: Tensor) -> bool:
    columns = x.shape[-1]
    return takes(W) and W.dtype == torch.float32 and W.is_contiguous() and (columns == FEW or columns % SIDE == 0)


def _apart(x: Tensor) -> Tensor:
    """Columns (R, n, q), the numbers of each one after another in memory."""
    return x.mT.contiguous().mT


def _product(
    A: Tensor, x: Tensor, scale: Tensor | None = None, base: Tensor | None = None, before: Tensor | None = None,
    factor: float = 1.0, exact: bool = False,
) -> Tensor:  # fmt: skip
    runs, rows, terms = A.shape
    columns = x.shape[-1]
    width = min(columns, SIDE)
    programs = runs * (columns // width)
    tile = ROWS if programs * -(-rows // ROWS) >= FEW_PROGRAMS else FEW_ROWS
    out = x.new_empty(runs, columns, rows).mT
    fused.launch(
        "thin_product", (programs * -(-rows // tile),), A, x, x if scale is None else scale,
        x if base is None else base, x if before is None else _apart(before), out, rows=rows, terms=terms,
        row_stride=A.stride(1), term_stride=A.stride(2), SCALED=scale is not None, FACTOR=factor,
        BASE=base is not None, BEFORE=before is not None, EXACT=exact, COLUMNS=columns, WIDTH=width, ROWS=tile,
        TERMS=TERMS, num_warps=4, num_stages=4,
    )  # fmt: skip
    return out


def gram(x: Tensor) -> Tensor:
    """x^T x in float64 (R, q, q) for x (R, n, q)."""
    runs, rows, columns = x.shape
    if takes(x) and columns % TILE == 0 and (x.is_contiguous() or x.mT.is_contiguous()):
        out, tiles = x.new_empty(runs, columns, columns, dtype=torch.float64), columns // TILE
        fused.launch(
            "column_gram", (runs, tiles, tiles), x, out, rows=rows, row_stride=x.stride(1), column_stride=x.stride(2),
            COLUMNS=columns, TILE=TILE, ROWS=TERMS, num_warps=4,
        )  # fmt: skip
        return out
    wide = x.double()
    return wide.mT @ wide


def inverse_factor(matrix: Tensor, shift: float | None = None) -> Tensor:
    """R^-1 (R, q, q) of the Cholesky factor R of a positive definite matrix, R^T R.

    With a `shift` M is scaled to a diagonal of 1 first, and the shift added to that: D R^-1, with which columns of the
    Gram matrix M become nearly orthonormal.
    """
    if _takes_square(matrix):
        out = matrix.new_empty(matrix.shape)
        fused.launch(
            "inverse_factor", (len(matrix),), matrix.contiguous(), out, UNIT=shift is not None, SHIFT=shift or 0.0,
            LEAST=MIN_SQUARE, Q=SIDE, num_warps=4,
        )  # fmt: skip
        return out
    size = None
    if shift is not None:
        square = matrix.diagonal(dim1=-2, dim2=-1)
        size = torch.where(square > MIN_SQUARE, square.rsqrt(), 0.0)
        matrix = matrix * size[:, None] * size[:, :, None]
        matrix.diagonal(dim1=-2, dim2=-1).add_(shift)
    factor = torch.linalg.cholesky_ex(matrix, upper=True).L
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=True)
    return inverse if size is None else inverse.mul_(size[:, :, None])


def is_positive_definite(matrix: Tensor) -> Tensor:
    """Whether each of some symmetric matrices (R, q, q) has a Cholesky factor."""
    if _takes_square(matrix):
        return inverse_factor(matrix).diagonal(dim1=-2, dim2=-1).isfinite().all(-1)
    factor, info = torch.linalg.cholesky_ex(matrix)
    return (info == 0) & factor.diagonal(dim1=-2, dim2=-1).isfinite().all(-1)


def sign(x: Tensor, polynomials: Polynomials) -> Tensor:
    """The odd polynomials a x + b x^3 + c x^5 of symmetric matrices (R, q, q), one after another."""
    if _takes_square(x):
        out = x.new_empty(x.shape)
        numbers = coefficients(x.device, tuple(polynomials))
        fused.launch(
            "sign", (len(x),), x.contiguous(), numbers, out, count=len(numbers), Q=SIDE, num_warps=4, num_stages=1
        )
        return out
    for a, b, c in polynomials:
        square = x @ x
        x = torch.baddbmm(x, x, torch.baddbmm(square, square, square, beta=b, alpha=c), beta=a)
    return x


def coupled_roots(x: Tensor, polynomials: Polynomials) -> tuple[Tensor, Tensor]:
    """x^(1/2) and x^(-1/2) for symmetric matrices (R, q, q) with values in what the polynomials take to 1."""
    if _takes_square(x):
        root, inverse = x.new_empty(x.shape), x.new_empty(x.shape)
        numbers = coefficients(x.device, tuple(polynomials))
        fused.launch(
            "coupled_roots", (len(x),), x.contiguous(), numbers, root, inverse, count=len(numbers), Q=SIDE,
            num_warps=4, num_stages=1,
        )  # fmt: skip
        return root, inverse
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    made = None
    for a, b, c in polynomials:
        both = x if made is None else made @ x
        step = torch.baddbmm(both, both, both, beta=b, alpha=c)
        x = torch.baddbmm(x, x, step, beta=a)
        made = a * identity + step if made is None else torch.baddbmm(made, step, made, beta=a)
    assert made is not None
    return x, made


def high_power(x: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """M^(2^squarings) of Frobenius norm 1 for M = B^T B (R, q, q), float64, and sigma_1 of B by its norm (R,)."""
    tiny = torch.finfo(x.dtype).tiny
    if _takes_square(x):
        power, logarithm = x.new_empty(x.shape), x.new_empty(len(x))
        fused.launch(
            "high_power", (len(x),), x.contiguous(), power, logarithm, squarings=squarings, LEAST=tiny, Q=SIDE,
            num_warps=4,
        )  # fmt: skip
        return power, logarithm.div_(2).exp_()
    power, logarithm = x, torch.zeros_like(x[:, 0, 0])
    for number in range(squarings + 1):
        power = power @ power if number else power
        if number % NORMED == 0 or number == squarings:
            size = torch.linalg.vector_norm(power, dim=(-2, -1)).clamp(min=tiny)
            power, logarithm = power / size[:, None, None], logarithm + size.log() / 2**number
    return power, (logarithm / 2).exp()


@functools.cache
def coefficients(device: torch.device, polynomials: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Kept, since a graph cannot copy from the host's memory: whoever captures one has called once before."""
    return torch.tensor(polynomials, dtype=torch.float64, device="cpu").to(device)
