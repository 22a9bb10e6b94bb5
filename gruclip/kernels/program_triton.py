"""The Triton kernels of `program`. TRITON_INTERPRET=1 runs them on the CPU, as in `fused_triton`.

Batches of R matrices: W (R, m, n), a few columns (R, n, q), what they make of each other (R, q, q). One program has all
of a matrix q x q, or a tile of what is longer. A kernel is for one shape, by which the compiler knows
how wide a load may be.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import tensor as T


@triton.jit
def thin_product(
    weight: T, x: T, scales: T, base: T, before: T, out: T,
    rows: tl.constexpr, terms: tl.constexpr, row_stride: tl.constexpr, term_stride: tl.constexpr,
    SCALED: tl.constexpr, FACTOR: tl.constexpr, BASE: tl.constexpr, BEFORE: tl.constexpr,
    EXACT: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TERMS: tl.constexpr,
) -> None:  # fmt: skip
    """A program for ROWS x WIDTH of FACTOR (scale A x - base) - before, A (rows, terms) the matrix or its transpose by
    its strides. EXACT: in float64, rounded once; else in three parts of TF32, which is nearly float32's precision. Both
    by tensor cores.
    """
    run = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    term = tl.arange(0, TERMS)
    first = weight + run * rows * terms
    here = x + run * terms * COLUMNS
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float64 if EXACT else tl.float32)
    for start in range(0, terms, TERMS):
        at = start + term
        a = tl.load(
            first + row[:, None] * row_stride + at[None, :] * term_stride,
            mask=(row < rows)[:, None] & (at < terms)[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(here + at[:, None] * COLUMNS + column[None, :], mask=(at < terms)[:, None], other=0.0)
        if EXACT:
            total = tl.dot(a.to(tl.float64), b.to(tl.float64), total, out_dtype=tl.float64)
        else:
            total = tl.dot(a, b, total, input_precision="tf32x3")
    if SCALED:
        total *= tl.load(scales + run)
    place = run * rows * COLUMNS + row[:, None] * COLUMNS + column[None, :]
    inside = (row < rows)[:, None]
    if BASE:
        total -= tl.load(base + place, mask=inside, other=0.0)
    total *= FACTOR
    if BEFORE:
        total -= tl.load(before + place, mask=inside, other=0.0)
    tl.store(out + place, total.to(tl.float32), mask=inside)


@triton.jit
def column_gram(
    x: T, out: T, rows: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr
) -> None:
    """A program for TILE x TILE of x^T x in float64, x (R, rows, COLUMNS)."""
    run = tl.program_id(0).to(tl.int64)
    left = tl.program_id(1) * TILE + tl.arange(0, TILE)
    right = tl.program_id(2) * TILE + tl.arange(0, TILE)
    first = x + run * rows * COLUMNS
    total = tl.zeros((TILE, TILE), dtype=tl.float64)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < rows
        a = tl.load(first + row[None, :] * COLUMNS + left[:, None], mask=inside[None, :], other=0.0).to(tl.float64)
        b = tl.load(first + row[:, None] * COLUMNS + right[None, :], mask=inside[:, None], other=0.0).to(tl.float64)
        total = tl.dot(a, b, total, out_dtype=tl.float64)
    place = run * COLUMNS * COLUMNS + left[:, None] * COLUMNS + right[None, :]
    tl.store(out + place, total)


@triton.jit
def inverse_factor(
    matrix: T, out: T, UNIT: tl.constexpr, SHIFT: tl.constexpr, LEAST: tl.constexpr, Q: tl.constexpr
) -> None:
    """A program for D R^-1 of a matrix, R^T R = D M D + SHIFT I; D = I, or with UNIT what makes M's diagonal 1.
    NaN from a pivot on that is not positive."""
    run = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, Q)[:, None], tl.arange(0, Q)[None, :]
    place = run * Q * Q + row * Q + column
    m = tl.load(matrix + place)
    diagonal = row == column
    size = tl.zeros((Q, 1), dtype=tl.float64) + 1
    if UNIT:
        square = tl.sum(tl.where(diagonal, m, 0.0), 1, keep_dims=True)
        size = tl.where(square > LEAST, 1 / tl.sqrt(square), 0.0)
        m = m * size * tl.trans(size)
    m = tl.where(diagonal, m + SHIFT, m)
    # Of the rows below a pivot row what makes its column zero is taken off, of M and of I: L M = R, and L^-1 = R^T.
    inverse = tl.where(diagonal, 1.0, 0.0).to(tl.float64)
    for step in range(Q):
        here = row == step
        pivot = tl.sum(tl.sum(tl.where(here & (column == step), m, 0.0), 1), 0)
        root = 1 / tl.sqrt(pivot)
        below = tl.sum(tl.where(column == step, m, 0.0), 1, keep_dims=True) * root
        below = tl.where(row > step, below, 0.0)
        of_m = tl.sum(tl.where(here, m, 0.0), 0, keep_dims=True) * root
        of_inverse = tl.sum(tl.where(here, inverse, 0.0), 0, keep_dims=True) * root
        m -= below * of_m
        inverse = tl.where(here, of_inverse, inverse - below * of_inverse)
    result = tl.trans(inverse) * size
    tl.store(out + place, result.to(out.dtype.element_ty))


@triton.jit
def sign(x: T, polynomials: T, out: T, count: tl.constexpr, Q: tl.constexpr) -> None:
    """A program for the odd polynomials a x + b x^3 + c x^5 of a symmetric matrix, one after another."""
    run = tl.program_id(0).to(tl.int64)
    place = run * Q * Q + tl.arange(0, Q)[:, None] * Q + tl.arange(0, Q)[None, :]
    s = tl.load(x + place)
    for number in range(count):
        a, b = tl.load(polynomials + 3 * number), tl.load(polynomials + 3 * number + 1)
        c = tl.load(polynomials + 3 * number + 2)
        square = tl.dot(s, s, out_dtype=tl.float64)
        step = b * square + c * tl.dot(square, square, out_dtype=tl.float64)
        s = a * s + tl.dot(s, step, out_dtype=tl.float64)
    tl.store(out + place, s)


@triton.jit
def coupled_roots(x: T, polynomials: T, inverses: T, count: tl.constexpr, Q: tl.constexpr) -> None:
    """A program for the coupled iteration that takes x to its root, in its place, and I to that one's inverse."""
    run = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, Q)[:, None], tl.arange(0, Q)[None, :]
    place = run * Q * Q + row * Q + column
    root = tl.load(x + place)
    inverse = tl.where(row == column, 1.0, 0.0).to(tl.float64)
    for number in range(count):
        a, b = tl.load(polynomials + 3 * number), tl.load(polynomials + 3 * number + 1)
        c = tl.load(polynomials + 3 * number + 2)
        both = tl.dot(inverse, root, out_dtype=tl.float64)
        step = b * both + c * tl.dot(both, both, out_dtype=tl.float64)
        root = a * root + tl.dot(root, step, out_dtype=tl.float64)
        inverse = a * inverse + tl.dot(step, inverse, out_dtype=tl.float64)
    tl.store(x + place, root)
    tl.store(inverses + place, inverse)


@triton.jit
def high_power(x: T, out: T, logarithms: T, squarings: tl.constexpr, LEAST: tl.constexpr, Q: tl.constexpr) -> None:
    """A program for M^(2^squarings) at Frobenius norm 1, and log ||M^(2^squarings)||_F / 2^squarings."""
    run = tl.program_id(0).to(tl.int64)
    place = run * Q * Q + tl.arange(0, Q)[:, None] * Q + tl.arange(0, Q)[None, :]
    power = tl.load(x + place)
    logarithm, share = tl.zeros((), dtype=tl.float64), tl.zeros((), dtype=tl.float64) + 1
    for number in range(squarings + 1):
        if number > 0:
            power = tl.dot(power, power, out_dtype=tl.float64)
            share /= 2
        size = tl.maximum(tl.sqrt(tl.sum(tl.sum(power * power, 1), 0)), LEAST)
        logarithm += tl.log(size) * share
        power /= size
    tl.store(out + place, power)
    tl.store(logarithms + run, logarithm)
