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


# -- a step of the paper's GRU between its products ---------------------------------------------------------
#
# Arrays (R, T, B, k), states (R, T + 1, B, n), those of one step (R, B, k), keep (R, T, B); gates hold r and z, 2n.
# A program for BLOCK of the B n numbers of a run.

#: One kernel for all sizes: none is compiled in the middle of a capture, and few in all.
SIZES = ["step", "steps", "batch", "n"]


@triton.jit
def _sigmoid(x: T) -> T:
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x: T) -> T:
    """Precise to the last bits near 0, too: by the polynomial of Cephes' tanhf."""
    square, size = x * x, tl.abs(x)
    series = (-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2
    series = (series * square + 1.33314422036e-1) * square - 3.33332819422e-1
    far = 1 - 2 / (tl.exp(2 * size) + 1)
    return tl.where(size < 0.625, x + x * square * series, tl.where(x < 0, -far, far))


@triton.jit
def _places(step: T, steps: T, batch: T, n: T, BLOCK: tl.constexpr) -> tuple[T, ...]:
    """For each number: its place among those of a step, in an array, in the states and, of r, among the gates of a step
    and in the gates; its place in keep; which exist."""
    run = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = place // n
    size, at = batch * n, run * steps + step
    of_r = row * n + place
    return (
        run * size + place, at * size + place, (at + run) * size + place,
        2 * run * size + of_r, 2 * at * size + of_r, at * batch + row, place < size,
    )  # fmt: skip


@triton.jit
def _state(states: T, keep: T, in_states: T, in_keep: T, inside: T, KEEP: tl.constexpr) -> T:
    h = tl.load(states + in_states, mask=inside, other=0.0)
    if KEEP:
        h *= tl.load(keep + in_keep, mask=inside, other=0.0)
    return h


@triton.jit(do_not_specialize=SIZES)
def gates_of_step(
    gates: T, product: T, states: T, rh: T, keep: T, step: T, steps: T, batch: T, n: T,
    ADD: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """r and z in the place of their sums, and r h to rh (R, B, n)."""
    place, _, in_states, of_r, in_gates, in_keep, inside = _places(step, steps, batch, n, BLOCK)
    r, z = tl.load(gates + in_gates, mask=inside, other=0.0), tl.load(gates + in_gates + n, mask=inside, other=0.0)
    if ADD:
        r += tl.load(product + of_r, mask=inside, other=0.0).to(tl.float32)
        z += tl.load(product + of_r + n, mask=inside, other=0.0).to(tl.float32)
    r, z = _sigmoid(r), _sigmoid(z)
    tl.store(gates + in_gates, r, mask=inside)
    tl.store(gates + in_gates + n, z, mask=inside)
    h = _state(states, keep, in_states, in_keep, inside, KEEP)
    tl.store(rh + place, (r * h).to(rh.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def state_of_step(
    gates: T, candidate: T, product: T, states: T, after: T, keep: T, step: T, steps: T, batch: T,
    n: T, ADD: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """c in the place of its sum, the state after the step, and to `after` (R, B, n) what the next step reads of it."""
    place, here, in_states, _, in_gates, in_keep, inside = _places(step, steps, batch, n, BLOCK)
    c = tl.load(candidate + here, mask=inside, other=0.0)
    if ADD:
        c += tl.load(product + place, mask=inside, other=0.0).to(tl.float32)
    c = _tanh(c)
    tl.store(candidate + here, c, mask=inside)
    z = tl.load(gates + in_gates + n, mask=inside, other=0.0)
    h = _state(states, keep, in_states, in_keep, inside, KEEP)
    # As torch.lerp has it.
    h = tl.where(z < 0.5, c + z * (h - c), h - (h - c) * (1 - z))
    tl.store(states + in_states + batch * n, h, mask=inside)
    if KEEP:
        h *= tl.load(keep + in_keep + batch, mask=inside & (step + 1 < steps), other=0.0)
    tl.store(after + place, h.to(after.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def candidate_gradient(
    grad: T, product: T, gates: T, candidate: T, states: T, d_gates: T, d_candidate: T, d_state: T,
    keep: T, step: T, steps: T, batch: T, n: T,
    ADD: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The whole gradient of the state after the step, in d_state (R, B, n), and those of z's and c's sums."""
    place, here, in_states, _, in_gates, in_keep, inside = _places(step, steps, batch, n, BLOCK)
    dh = tl.load(d_state + place, mask=inside, other=0.0)
    if ADD:
        dh += tl.load(product + place, mask=inside, other=0.0).to(tl.float32)
    if KEEP:
        dh *= tl.load(keep + in_keep + batch, mask=inside & (step + 1 < steps), other=0.0)
    dh += tl.load(grad + here, mask=inside, other=0.0)
    tl.store(d_state + place, dh, mask=inside)
    z, c = tl.load(gates + in_gates + n, mask=inside, other=0.0), tl.load(candidate + here, mask=inside, other=0.0)
    h = _state(states, keep, in_states, in_keep, inside, KEEP)
    tl.store(d_gates + in_gates + n, (dh * ((h - c) * z * (1 - z))).to(d_gates.dtype.element_ty), mask=inside)
    tl.store(d_candidate + here, (dh * ((1 - z) * (1 - c * c))).to(d_candidate.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def reset_gradient(
    d_rh: T, gates: T, states: T, d_gates: T, before: T, rh: T, d_state: T, keep: T, step: T,
    steps: T, batch: T, n: T, ADD: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The gradient of r's sum; in d_state what goes to the state before, but for the gates' product; and the other
    factors of the weights' gradients, the state before the step and r times it."""
    place, here, in_states, _, in_gates, in_keep, inside = _places(step, steps, batch, n, BLOCK)
    r, z = tl.load(gates + in_gates, mask=inside, other=0.0), tl.load(gates + in_gates + n, mask=inside, other=0.0)
    h = _state(states, keep, in_states, in_keep, inside, KEEP)
    d = tl.load(d_rh + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(d_gates + in_gates, (d * (h * r * (1 - r))).to(d_gates.dtype.element_ty), mask=inside)
    dh = tl.load(d_state + place, mask=inside, other=0.0)
    tl.store(d_state + place, dh * z + d * r, mask=inside)
    tl.store(before + here, h.to(before.dtype.element_ty), mask=inside)
    tl.store(rh + here, (r * h).to(rh.dtype.element_ty), mask=inside)
