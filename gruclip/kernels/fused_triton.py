"""The Triton kernels of `fused`. TRITON_INTERPRET=1 runs them on the CPU, where it is set before this is imported."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import tensor as T  # of annotations, which the compiler evaluates: it refuses typing.Any


@triton.jit
def softmax_nll(
    logits: T, bias: T, targets: T, nll: T, rows: T, words: T, target_stride: T,
    GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A program for each row: its negative log-likelihood, and in place its gradient by the logits."""
    row, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < words
    first = logits + (run * rows + row) * words
    target = tl.load(targets + run * target_stride + row)
    x = tl.load(first + columns, mask=inside, other=float("-inf")).to(tl.float32)
    x += tl.load(bias + run * words + columns, mask=inside, other=0.0)
    largest = tl.max(x, 0)
    powers = tl.exp(x - largest)
    total = tl.sum(powers, 0)
    of_target = tl.sum(tl.where(columns == target, x, 0.0), 0)
    tl.store(nll + run * rows + row, largest + tl.log(total) - of_target)
    if GRADIENT:
        gradient = powers / total - tl.where(columns == target, 1.0, 0.0)
        tl.store(first + columns, gradient.to(logits.dtype.element_ty), mask=inside)


@triton.jit
def random_factors(seeds: T, out: T, numbers: T, threshold: T, factor: T, BLOCK: tl.constexpr) -> None:
    """A program for BLOCK random words of a run, each of which decides four numbers."""
    run = tl.program_id(1).to(tl.int64)
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(seeds + run).to(tl.uint64, bitcast=True) + (word + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    for quarter in tl.static_range(4):
        # A number of 16 bits, read as one with a sign.
        half = ((z >> (16 * quarter)) & 0xFFFF).to(tl.int32)
        half = tl.where(half >= 0x8000, half - 0x10000, half)
        place = 4 * word + quarter
        value = tl.where(half < threshold, factor, 0.0)
        tl.store(out + run * numbers + place, value.to(out.dtype.element_ty), mask=place < numbers)


@triton.jit
def update(parameter: T, gradient: T, step_sizes: T, copy: T, size: T, COPY: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """A program for BLOCK numbers of a run: the parameter after the step, and its rounded copy."""
    run = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, place = index < size, run * size + index
    value = tl.load(parameter + place, mask=inside)
    value -= tl.load(step_sizes + run) * tl.load(gradient + place, mask=inside).to(tl.float32)
    tl.store(parameter + place, value, mask=inside)
    if COPY:
        tl.store(copy + place, value.to(copy.dtype.element_ty), mask=inside)


@triton.jit
def row_norms(array: T, norms: T, width: T, BLOCKS: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """A program for each row, of so many BLOCKS."""
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros((BLOCK,), dtype=tl.float64)
    for block in range(BLOCKS):
        index = block * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(array + row * width + index, mask=index < width, other=0.0).to(tl.float64)
        squares += value * value
    tl.store(norms + row, tl.sqrt(tl.sum(squares, 0)))
