"""The Triton kernels of `program`. TRITON_INTERPRET=1 runs them on the CPU, as in `fused_triton`.

Batches of R matrices: W (R, m, n), a few columns (R, n, q), what they make of each other (R, q, q). The numbers of a
column lie one after another, as the terms of a sum do for tensor cores. One program has all of a matrix q x q, or a
tile of what is longer. A kernel is for one shape, by which the compiler knows how wide a load may be.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import tensor as T


@triton.jit
def thin_product(
    weight: T, x: T, scales: T, base: T, before: T, out: T,
    rows: tl.constexpr, terms: tl.constexpr, row_stride: tl.constexpr, term_stride: tl.constexpr,
    SCALED: tl.constexpr, FACTOR: tl.constexpr, BASE: tl.constexpr, BEFORE: tl.constexpr, EXACT: tl.constexpr,
    COLUMNS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TERMS: tl.constexpr,
) -> None:  # fmt: skip
    """A program for ROWS x WIDTH of FACTOR (scale A x - base) - before, A (rows, terms) the matrix or its transpose by
    its strides; the programs of a matrix follow each other, those of its rows last. EXACT: in float64, rounded once;
    else in three parts of TF32, which is nearly float32's precision. Both by tensor cores.
    """
    number = tl.program_id(0)
    tiles: tl.constexpr = COLUMNS // WIDTH
    run = (number // (tiles * tl.cdiv(rows, ROWS))).to(tl.int64)
    row = number // tiles % tl.cdiv(rows, ROWS) * ROWS + tl.arange(0, ROWS)
    column = number % tiles * WIDTH + tl.arange(0, WIDTH)
    first, here = weight + run * rows * terms, x + run * terms * COLUMNS
    total = tl.zeros((ROWS, WIDTH), dtype=tl.float64 if EXACT else tl.float32)
    for start in range(0, terms, TERMS):
        at = start + tl.arange(0, TERMS)
        a = tl.load(
            first + row[:, None] * row_stride + at[None, :] * term_stride,
            mask=(row < rows)[:, None] & (at < terms)[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(here + at[:, None] + column[None, :] * terms, mask=(at < terms)[:, None], other=0.0)
        if EXACT:
            total = tl.dot(a.to(tl.float64), b.to(tl.float64), total, out_dtype=tl.float64)
        else:
            total = tl.dot(a, b, total, input_precision="tf32x3")
    if SCALED:
        total *= tl.load(scales + run)
    place = run * rows * COLUMNS + row[:, None] + column[None, :] * rows
    inside = (row < rows)[:, None]
    if BASE:
        total -= tl.load(base + place, mask=inside, other=0.0)
    total *= FACTOR
    if BEFORE:
        total -= tl.load(before + place, mask=inside, other=0.0)
    tl.store(out + place, total.to(tl.float32), mask=inside)


@triton.jit
def column_gram(
    x: T, out: T, rows: tl.constexpr, row_stride: tl.constexpr, column_stride: tl.constexpr,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """A program for TILE x TILE of x^T x in float64, x (R, rows, COLUMNS) by its strides."""
    run = tl.program_id(0).to(tl.int64)
    left = tl.program_id(1) * TILE + tl.arange(0, TILE)
    right = tl.program_id(2) * TILE + tl.arange(0, TILE)
    first = x + run * rows * COLUMNS
    total = tl.zeros((TILE, TILE), dtype=tl.float64)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < rows
        a = tl.load(first + row[None, :] * row_stride + left[:, None] * column_stride, mask=inside[None, :], other=0.0)
        b = tl.load(first + row[:, None] * row_stride + right[None, :] * column_stride, mask=inside[:, None], other=0.0)
        total = tl.dot(a.to(tl.float64), b.to(tl.float64), total, out_dtype=tl.float64)
    place = run * COLUMNS * COLUMNS + left[:, None] * COLUMNS + right[None, :]
    tl.store(out + place, total)


@triton.jit
def _inverse_lower(m: T, H: tl.constexpr) -> T:
    """L^-1 for a symmetric m = L L^T (H, H): row by row what makes a column zero below is taken off, of m and of I. One
    array has both: what is left of `step` is the inverse's. Of the block that is left row and column are the same.
    """
    row, column = tl.arange(0, H)[:, None], tl.arange(0, H)[None, :]
    for step in range(H):
        here, there = row == step, column == step
        line = tl.sum(tl.where(here, m, 0.0), 0, keep_dims=True)
        root = 1 / tl.sqrt(tl.sum(tl.sum(tl.where(there, line, 0.0), 1), 0))
        line *= root
        below = tl.where(row > step, tl.trans(line), 0.0)
        line = tl.where(there, root, line)
        m = tl.where(here, line, tl.where(there, 0.0, m) - below * line)
    return tl.where(row >= column, m, 0.0)


@triton.jit
def _unit(square: T, UNIT: tl.constexpr, LEAST: tl.constexpr) -> T:
    """What makes a column of this squared length 1, or without UNIT 1."""
    size = tl.where(square > LEAST, 1 / tl.sqrt(square), 0.0)
    if not UNIT:
        size = tl.zeros_like(size) + 1
    return size


@triton.jit
def inverse_factor(
    matrix: T, out: T, UNIT: tl.constexpr, SHIFT: tl.constexpr, LEAST: tl.constexpr, Q: tl.constexpr
) -> None:
    """A program for D R^-1 of a matrix, R^T R = D M D + SHIFT I; D = I, or with UNIT what makes M's diagonal 1. All of
    it is no number where a pivot is not positive.

    By halves [[A, B], [B^T, C]]: with S^-1 and T^-1 of A = S S^T and C - (S^-1 B)^T S^-1 B = T T^T.
    """
    H: tl.constexpr = Q // 2
    at = tl.arange(0, H)
    first = matrix + tl.program_id(0).to(tl.int64) * Q * Q
    place, diagonal = at[:, None] * Q + at[None, :], at[:, None] == at[None, :]
    one = _unit(tl.load(first + at * (Q + 1)), UNIT, LEAST)
    two = _unit(tl.load(first + (at + H) * (Q + 1)), UNIT, LEAST)
    a = tl.load(first + place) * one[:, None] * one[None, :]
    b = tl.load(first + place + H) * one[:, None] * two[None, :]
    c = tl.load(first + place + H * Q + H) * two[:, None] * two[None, :]
    upper = _inverse_lower(tl.where(diagonal, a + SHIFT, a), H)
    b = tl.dot(upper, b, out_dtype=tl.float64)
    c = tl.where(diagonal, c + SHIFT, c) - tl.dot(tl.trans(b), b, out_dtype=tl.float64)
    lower = _inverse_lower(c, H)
    b = tl.dot(tl.dot(tl.trans(upper), b, out_dtype=tl.float64), tl.trans(lower), out_dtype=tl.float64)
    result = out + tl.program_id(0).to(tl.int64) * Q * Q
    tl.store(result + place, tl.trans(upper) * one[:, None])
    tl.store(result + place + H, -b * one[:, None])
    tl.store(result + place + H * Q, tl.zeros((H, H), dtype=tl.float64))
    tl.store(result + place + H * Q + H, tl.trans(lower) * two[:, None])


@triton.jit
def _polynomial(square: T, polynomials: T, number: T) -> tuple[T, T]:
    """a, and b square + c square^2, of a polynomial a x + b x^3 + c x^5."""
    first = polynomials + 3 * number
    a, b, c = tl.load(first), tl.load(first + 1), tl.load(first + 2)
    return a, b * square + c * tl.dot(square, square, out_dtype=tl.float64)


@triton.jit
def sign(x: T, polynomials: T, out: T, count: tl.constexpr, Q: tl.constexpr) -> None:
    """A program for the odd polynomials a x + b x^3 + c x^5 of a symmetric matrix, one after another."""
    run = tl.program_id(0).to(tl.int64)
    place = run * Q * Q + tl.arange(0, Q)[:, None] * Q + tl.arange(0, Q)[None, :]
    s = tl.load(x + place)
    for number in range(count):
        a, step = _polynomial(tl.dot(s, s, out_dtype=tl.float64), polynomials, number)
        s = a * s + tl.dot(s, step, out_dtype=tl.float64)
    tl.store(out + place, s)


@triton.jit
def coupled_roots(x: T, polynomials: T, roots: T, inverses: T, count: tl.constexpr, Q: tl.constexpr) -> None:
    """A program for the coupled iteration that takes x to its root and I to that one's inverse."""
    run = tl.program_id(0).to(tl.int64)
    row, column = tl.arange(0, Q)[:, None], tl.arange(0, Q)[None, :]
    place = run * Q * Q + row * Q + column
    root = tl.load(x + place)
    inverse = tl.where(row == column, 1.0, 0.0).to(tl.float64)
    for number in range(count):
        a, step = _polynomial(tl.dot(inverse, root, out_dtype=tl.float64), polynomials, number)
        root = a * root + tl.dot(root, step, out_dtype=tl.float64)
        inverse = a * inverse + tl.dot(step, inverse, out_dtype=tl.float64)
    tl.store(roots + place, root)
    tl.store(inverses + place, inverse)


@triton.jit
def _norm(x: T, LEAST: tl.constexpr) -> T:
    """||x||_F, at least LEAST, and no number where x has none: tl.maximum would hide that."""
    size = tl.sqrt(tl.sum(tl.sum(x * x, 1), 0))
    return tl.where(size < LEAST, LEAST, size)


@triton.jit
def high_power(x: T, out: T, logarithms: T, squarings: tl.constexpr, LEAST: tl.constexpr, Q: tl.constexpr) -> None:
    """A program for M^(2^squarings) at Frobenius norm 1, and log ||M^(2^squarings)||_F / 2^squarings."""
    run = tl.program_id(0).to(tl.int64)
    place = run * Q * Q + tl.arange(0, Q)[:, None] * Q + tl.arange(0, Q)[None, :]
    power = tl.load(x + place)
    size = _norm(power, LEAST)
    logarithm, share = tl.log(size), tl.full((), 1.0, dtype=tl.float64)
    power *= 1 / size
    for _ in range(squarings):
        power = tl.dot(power, power, out_dtype=tl.float64)
        size, share = _norm(power, LEAST), share / 2
        logarithm += tl.log(size) * share
        power *= 1 / size
    tl.store(out + place, power)
    tl.store(logarithms + run, logarithm)
