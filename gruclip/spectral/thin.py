"""Products and norms that read a matrix once, where it lies: what the subspace methods are made of."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gruclip.kernels import compiled

#: Terms of a sum added in float32 before float64 takes over, where digits count (panels.h): for up to FEW_COLUMNS
#: columns, and for more, whose values are not far above the limit.
RUN, FEW_COLUMNS, LONG_RUN = 8, 64, 32
#: Elements from which our kernel is faster than torch's product, and columns it subtracts at once.
LARGE, MAX_COLUMNS = 300_000, 256


def thin_product(weight: Tensor, columns: Tensor, roughly: bool = False) -> Tensor:
    """W X for a few columns X. Its error does not grow with the number of equal terms in a sum; `roughly`: it may."""
    if compiled.takes(weight, columns):
        (m, n), width = weight.shape, columns.shape[1]
        product = columns.new_empty(m, width)
        run = max(n, 1) if roughly else RUN if width <= FEW_COLUMNS else LONG_RUN
        made: list[Tensor | None] = [product, weight, columns.contiguous()]
        compiled.call("gruclip_thin_product", made, [m, n, width, *weight.stride(), run], torch.get_num_threads())
        return product
    # Transposed, since MKL is up to eight times slower the other way round.
    if roughly:
        return (columns.mT.contiguous() @ weight.mT).mT
    return (columns.mT.double().contiguous() @ weight.mT.double()).mT.to(weight.dtype)


def subtract_low_rank_(weight: Tensor, left: Tensor, right: Tensor) -> None:
    """W -= X Y^T in place, for columns X and Y."""
    if weight.stride(1) != 1:
        weight, left, right = weight.mT, right, left
    if weight.numel() >= LARGE and weight.stride(1) == 1 and compiled.takes(weight, left, right):
        # Copied: rows that are a power of two apart evict each other from the cache.
        whole = left.shape[1] <= MAX_COLUMNS
        for x, y in zip(left.split(MAX_COLUMNS, 1), right.split(MAX_COLUMNS, 1), strict=True):
            x = x if whole else x.contiguous()
            counts = [*weight.shape, x.shape[1], weight.stride(0), *x.stride(), *y.stride()]
            compiled.call("gruclip_take_off", [weight, x, y], counts, torch.get_num_threads())
        if not weight.is_inference():
            increment_version(weight)  # so that autograd knows, as of torch's own operations in place
    else:
        for x, y in zip(left.split(LONG_RUN, 1), right.split(LONG_RUN, 1), strict=True):
            weight.addmm_(x, y.mT, alpha=-1)


def normal_product(weight: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """W X and W^T W X for a few columns X, in one pass over W."""
    if compiled.takes(weight, columns) and weight.stride(1) == 1:
        (m, n), width = weight.shape, columns.shape[1]
        image, back = columns.new_empty(m, width), columns.new_empty(n, width)
        made: list[Tensor | None] = [image, back, weight, columns.contiguous()]
        compiled.call("gruclip_there_and_back", made, [m, n, width, weight.stride(0)], torch.get_num_threads())
        return image, back
    image = thin_product(weight, columns)
    return image, thin_product(weight.mT, image)


def distance(a: Tensor, b: Tensor | None = None) -> float:
    """||a - b||_F, without the difference of two whole matrices in memory; ||a||_F without b."""
    if compiled.takes(a, b) and a.stride(1) == 1 and (b is None or b.stride(1) == 1):
        squared = a.new_empty((), dtype=torch.float64)
        counts = [*a.shape, a.stride(0), 0 if b is None else b.stride(0)]
        compiled.call("gruclip_squared_distance", [squared, a, b], counts, torch.get_num_threads())
        return math.sqrt(float(squared))
    parts = zip(a.split(128), itertools.repeat(None) if b is None else b.split(128), strict=False)
    # In float64: torch's own float32 sums of so many squares lose digits that a certificate counts on.
    norms = (torch.linalg.vector_norm(x if y is None else x - y, dtype=torch.float64) for x, y in parts)
    return math.hypot(*map(float, norms))


def column_squares(a: Tensor) -> Tensor:
    """The squared norm of each column, in float64."""
    if compiled.takes(a) and 1 in a.stride():
        squares = a.new_empty(a.shape[1], dtype=torch.float64)
        compiled.call("gruclip_column_squares", [squares, a], [*a.shape, *a.stride()], torch.get_num_threads())
        return squares
    return torch.linalg.vector_norm(a, dim=0, dtype=torch.float64).square()


def column_gram(columns: Tensor) -> Tensor:
    """X^T X in float64."""
    if compiled.takes(columns):
        m, q = columns.shape
        made = columns.new_empty(q, q, dtype=torch.float64)
        compiled.call("gruclip_gram", [made, columns.contiguous()], [m, q], torch.get_num_threads())
        return made
    wide = columns.double()
    return wide.mT @ wide
