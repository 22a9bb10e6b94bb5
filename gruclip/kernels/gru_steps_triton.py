"""The Triton kernels of `gru_steps`: what is between a step's products, and in bf16 the products with it.

Arrays (R, T, B, k), states (R, T + 1, B, n), those of one step (R, B, k), keep (R, T, B), weight (R, 3n, n) with the
rows of r, z and c; gates hold r and z, 2n. TRITON_INTERPRET=1 runs them on the CPU, as in `fused_triton`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import tensor as T

#: One kernel for all sizes, but where the products are in it for all of these but n: few in all.
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
def _places(run: T, row: T, unit: T, step: T, steps: T, batch: T, n: T) -> tuple[T, ...]:
    """Offsets of each number of a step: in the step, in an array, in the states, in the gates (of r) and in keep; and
    which exist."""
    size, at, place = batch * n, run * steps + step, row * n + unit
    inside = (row < batch) & (unit < n)
    return (
        run * size + place, at * size + place, (at + run) * size + place, 2 * at * size + row * n + place,
        at * batch + row, inside,
    )  # fmt: skip


@triton.jit
def _state(states: T, keep: T, in_states: T, in_keep: T, inside: T, KEEP: tl.constexpr) -> T:
    h = tl.load(states + in_states, mask=inside, other=0.0)
    if KEEP:
        h *= tl.load(keep + in_keep, mask=inside, other=0.0)
    return h


# -- what is done with a step's sums, for the numbers of a program, wherever their products come from --------


@triton.jit
def _gates(
    gates: T, states: T, rh: T, keep: T, add_r: T, add_z: T, run: T, row: T, unit: T,
    step: T, steps: T, batch: T, n: T, KEEP: tl.constexpr,
) -> None:  # fmt: skip
    """r and z in the place of their sums, and r h to rh (R, B, n)."""
    place, _, in_states, in_gates, in_keep, inside = _places(run, row, unit, step, steps, batch, n)
    r = _sigmoid(tl.load(gates + in_gates, mask=inside, other=0.0) + add_r)
    z = _sigmoid(tl.load(gates + in_gates + n, mask=inside, other=0.0) + add_z)
    tl.store(gates + in_gates, r, mask=inside)
    tl.store(gates + in_gates + n, z, mask=inside)
    h = _state(states, keep, in_states, in_keep, inside, KEEP)
    tl.store(rh + place, (r * h).to(rh.dtype.element_ty), mask=inside)


@triton.jit
def _next_state(
    gates: T, candidate: T, states: T, after: T, keep: T, add: T, run: T, row: T, unit: T,
    step: T, steps: T, batch: T, n: T, KEEP: tl.constexpr,
) -> None:  # fmt: skip
    """c in the place of its sum, the state after the step, and to `after` (R, B, n) what the next step reads of it."""
    place, here, in_states, in_gates, in_keep, inside = _places(run, row, unit, step, steps, batch, n)
    c = _tanh(tl.load(candidate + here, mask=inside, other=0.0) + add)
    tl.store(candidate + here, c, mask=inside)
    z = tl.load(gates + in_gates + n, mask=inside, other=0.0)
    h = _state(states, keep, in_states, in_keep, inside, KEEP)
    # As torch.lerp has it.
    h = tl.where(z < 0.5, c + z * (h - c), h - (h - c) * (1 - z))
    tl.store(states + in_states + batch * n, h, mask=inside)
    if KEEP:
        h *= tl.load(keep + in_keep + batch, mask=inside & (step + 1 < steps), other=0.0)
    tl.store(after + place, h.to(after.dtype.element_ty), mask=inside)


@triton.jit
def _candidate_gradient(
    grad: T, gates: T, candidate: T, states: T, d_gates: T, d_candidate: T, d_state: T, keep: T, add: T, run: T, row: T,
    unit: T, step: T, steps: T, batch: T, n: T, KEEP: tl.constexpr,
) -> None:  # fmt: skip
    """The whole gradient of the state after the step, in d_state (R, B, n), and those of z's and c's sums; of step -1
    the first alone, of the state before all steps."""
    place, here, in_states, in_gates, in_keep, inside = _places(run, row, unit, step, steps, batch, n)
    dh = tl.load(d_state + place, mask=inside, other=0.0) + add
    if KEEP:
        dh *= tl.load(keep + in_keep + batch, mask=inside & (step + 1 < steps), other=0.0)
    exists = inside & (step >= 0)
    dh += tl.load(grad + here, mask=exists, other=0.0)
    tl.store(d_state + place, dh, mask=inside)
    z, c = tl.load(gates + in_gates + n, mask=exists, other=0.0), tl.load(candidate + here, mask=exists, other=0.0)
    h = _state(states, keep, in_states, in_keep, exists, KEEP)
    tl.store(d_gates + in_gates + n, (dh * ((h - c) * z * (1 - z))).to(d_gates.dtype.element_ty), mask=exists)
    tl.store(d_candidate + here, (dh * ((1 - z) * (1 - c * c))).to(d_candidate.dtype.element_ty), mask=exists)


@triton.jit
def _reset_gradient(
    gates: T, states: T, d_gates: T, before: T, rh: T, d_state: T, keep: T, d_rh: T, run: T, row: T,
    unit: T, step: T, steps: T, batch: T, n: T, KEEP: tl.constexpr,
) -> None:  # fmt: skip
    """The gradient of r's sum; in d_state what goes to the state before, but for the gates' product; and the other
    factors of the weights' gradients, the state before the step and r times it."""
    place, here, in_states, in_gates, in_keep, inside = _places(run, row, unit, step, steps, batch, n)
    r, z = tl.load(gates + in_gates, mask=inside, other=0.0), tl.load(gates + in_gates + n, mask=inside, other=0.0)
    h = _state(states, keep, in_states, in_keep, inside, KEEP)
    tl.store(d_gates + in_gates, (d_rh * (h * r * (1 - r))).to(d_gates.dtype.element_ty), mask=inside)
    dh = tl.load(d_state + place, mask=inside, other=0.0)
    tl.store(d_state + place, dh * z + d_rh * r, mask=inside)
    tl.store(before + here, h.to(before.dtype.element_ty), mask=inside)
    tl.store(rh + here, (r * h).to(rh.dtype.element_ty), mask=inside)


# -- after products that have added theirs: a program for BLOCK of the B n numbers of a run -------------------


@triton.jit
def _numbers(n: T, BLOCK: tl.constexpr) -> tuple[T, ...]:
    """The run of a program, and row and unit of each number."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(1).to(tl.int64), place // n, place % n


@triton.jit(do_not_specialize=SIZES)
def gates_of_step(
    gates: T, states: T, rh: T, keep: T, step: T, steps: T, batch: T, n: T, KEEP: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    run, row, unit = _numbers(n, BLOCK)
    _gates(gates, states, rh, keep, 0.0, 0.0, run, row, unit, step, steps, batch, n, KEEP)


@triton.jit(do_not_specialize=SIZES)
def state_of_step(
    gates: T, candidate: T, states: T, after: T, keep: T, step: T, steps: T, batch: T, n: T,
    KEEP: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    run, row, unit = _numbers(n, BLOCK)
    _next_state(gates, candidate, states, after, keep, 0.0, run, row, unit, step, steps, batch, n, KEEP)


@triton.jit(do_not_specialize=SIZES)
def candidate_gradient(
    grad: T, gates: T, candidate: T, states: T, d_gates: T, d_candidate: T, d_state: T, keep: T,
    step: T, steps: T, batch: T, n: T, KEEP: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    run, row, unit = _numbers(n, BLOCK)
    _candidate_gradient(
        grad, gates, candidate, states, d_gates, d_candidate, d_state, keep, 0.0, run, row, unit,
        step, steps, batch, n, KEEP,
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def reset_gradient(
    d_rh: T, gates: T, states: T, d_gates: T, before: T, rh: T, d_state: T, keep: T,
    step: T, steps: T, batch: T, n: T, KEEP: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    run, row, unit = _numbers(n, BLOCK)
    place, _, _, _, _, inside = _places(run, row, unit, step, steps, batch, n)
    d = tl.load(d_rh + place, mask=inside, other=0.0)
    _reset_gradient(
        gates, states, d_gates, before, rh, d_state, keep, d, run, row, unit, step, steps, batch, n, KEEP
    )  # fmt: skip


# -- with their products, of factors in bf16 and summed in float32 --------------------------------------------
#
# A program for ROWS of the batch and UNITS of a run, over all of the sum, K terms at a time. It writes those numbers
# alone. What its product reads of others' numbers no program of the same start writes: h and r h lie apart, and so do
# the gradients of two steps. A kernel is for one n, by which the compiler knows how wide a load of the weights may be,
# and the interpreter how long the loop is. WIDE: for the latter, which would multiply bf16's bits as whole numbers.


@triton.jit
def _tile(ROWS: tl.constexpr, UNITS: tl.constexpr) -> tuple[T, ...]:
    """The run of a program, its rows (ROWS, 1) and units (1, UNITS)."""
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    unit = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    return tl.program_id(1).to(tl.int64), row[:, None], unit[None, :]


@triton.jit
def _dot(x: T, w: T, sums: T, WIDE: tl.constexpr) -> T:
    x = x.to(w.dtype)
    if WIDE:
        x, w = x.to(tl.float32), w.to(tl.float32)
    return tl.dot(x, w, sums)


@triton.jit
def _product(
    x: T, weight: T, row: T, unit: T, batch: T, n: tl.constexpr, terms: tl.constexpr, of_unit: tl.constexpr,
    of_term: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
) -> T:  # fmt: skip
    """x (batch, terms) times the weights, of which a unit's and a term's are `of_unit` and `of_term` apart."""
    sums = tl.zeros((ROWS, UNITS), dtype=tl.float32)
    for first in range(0, terms, K):
        k = first + tl.arange(0, K)
        a = tl.load(x + row * terms + k[None, :], mask=(row < batch) & (k[None, :] < terms), other=0.0)
        places = unit * of_unit + k[:, None] * of_term
        w = tl.load(weight + places, mask=(unit < n) & (k[:, None] < terms), other=0.0)
        sums = _dot(a, w, sums, WIDE)
    return sums


@triton.jit(do_not_specialize=SIZES[:3])
def gates_by_product(
    weight: T, h: T, gates: T, states: T, rh: T, keep: T, step: T, steps: T, batch: T, n: tl.constexpr,
    KEEP: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """`gates_of_step` of what h (R, B, n), the rounded state, adds to the sums."""
    run, row, unit = _tile(ROWS, UNITS)
    x, of_r = h + run * batch * n, weight + run * 3 * n * n
    of_z = of_r + n * n
    add_r = tl.zeros((ROWS, UNITS), dtype=tl.float32)
    add_z = tl.zeros((ROWS, UNITS), dtype=tl.float32)
    for first in range(0, n, K):
        k = first + tl.arange(0, K)
        a = tl.load(x + row * n + k[None, :], mask=(row < batch) & (k[None, :] < n), other=0.0)
        places, exists = unit * n + k[:, None], (unit < n) & (k[:, None] < n)
        add_r = _dot(a, tl.load(of_r + places, mask=exists, other=0.0), add_r, WIDE)
        add_z = _dot(a, tl.load(of_z + places, mask=exists, other=0.0), add_z, WIDE)
    _gates(gates, states, rh, keep, add_r, add_z, run, row, unit, step, steps, batch, n, KEEP)


@triton.jit(do_not_specialize=SIZES[:3])
def state_by_product(
    weight: T, rh: T, gates: T, candidate: T, states: T, after: T, keep: T, step: T, steps: T, batch: T,
    n: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """`state_of_step` of what rh (R, B, n) adds to the candidate's sum."""
    run, row, unit = _tile(ROWS, UNITS)
    x, of_c = rh + run * batch * n, weight + (run * 3 + 2) * n * n
    add = _product(x, of_c, row, unit, batch, n, n, n, 1, ROWS, UNITS, K, WIDE)
    _next_state(gates, candidate, states, after, keep, add, run, row, unit, step, steps, batch, n, KEEP)


@triton.jit(do_not_specialize=SIZES[:3])
def reset_gradient_by_product(
    weight: T, d_candidate: T, gates: T, states: T, d_gates: T, before: T, rh: T, d_state: T, keep: T,
    step: T, steps: T, batch: T, n: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr,
    UNITS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """`reset_gradient` of d(r h) by the gradient of the candidate's sum."""
    run, row, unit = _tile(ROWS, UNITS)
    x, of_c = d_candidate + (run * steps + step) * batch * n, weight + (run * 3 + 2) * n * n
    d_rh = _product(x, of_c, row, unit, batch, n, n, 1, n, ROWS, UNITS, K, WIDE)
    _reset_gradient(
        gates, states, d_gates, before, rh, d_state, keep, d_rh, run, row, unit, step, steps, batch, n, KEEP
    )  # fmt: skip


@triton.jit(do_not_specialize=SIZES[:3])
def candidate_gradient_by_product(
    weight: T, grad: T, gates: T, candidate: T, states: T, d_gates: T, d_candidate: T, d_state: T, keep: T,
    step: T, steps: T, batch: T, n: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr,
    UNITS: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr,
) -> None:  # fmt: skip
    """`candidate_gradient` of the step before this one, of what the gradients of this one's gates add to the state's;
    of step 0 the gradient of the first state."""
    run, row, unit = _tile(ROWS, UNITS)
    x, of_gates = d_gates + 2 * (run * steps + step) * batch * n, weight + run * 3 * n * n
    add = _product(x, of_gates, row, unit, batch, n, 2 * n, 1, n, ROWS, UNITS, K, WIDE)
    _candidate_gradient(
        grad, gates, candidate, states, d_gates, d_candidate, d_state, keep, add, run, row, unit,
        step - 1, steps, batch, n, KEEP,
    )  # fmt: skip
