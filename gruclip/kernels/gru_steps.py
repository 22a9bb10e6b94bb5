"""The steps of the paper's GRU, forward and backward: by torch's operations, and with fewer kernels on a GPU.

A step is two products, and elementwise work between them. By torch's operations that is 6 kernels forward and 7
backward, 10 and 11 in bf16 with its casts; with Triton's kernels (`fused`, `gru_steps_triton`) 4 and 4, without
backward's arrays over all steps. In bf16 these also compute the products, 2 and 2: with so few rows the cost
of a product is reading its weights, for which cuBLAS took three to six times as long as memory bandwidth allows.
Torch's operations are the specification, and taken wherever the kernels do not go.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gruclip.kernels import fused
from gruclip.kernels.products import repeated_product


class Recurrence(NamedTuple):
    """All steps of a layer: what `forward_` takes and, in the same memory, leaves."""

    gates: Tensor  #: (..., T, B, 2n), what the inputs give to r and z; then r and z
    candidate: Tensor  #: (..., T, B, n), what they give to c; then c
    states: Tensor  #: (..., T + 1, B, n), of which the first is given
    weight_hh: Tensor  #: (..., 3n, n)
    keep: Tensor | None  #: (..., T, B)


class StepGradients(NamedTuple):
    """Gradients of the sums in the gates, with the other factors of the gradients of weight_hh."""

    gates: Tensor  #: (..., T, B, 2n), of r's and z's
    candidate: Tensor  #: (..., T, B, n)
    h: Tensor  #: (..., T, B, n), the states before the steps, after resets
    rh: Tensor  #: (..., T, B, n), r h
    h0: Tensor  #: (..., B, n)


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of both gates, (..., 2n, k), and those of the candidate, (..., n, k)."""
    n = weight.shape[-2] // 3
    return weight[..., : 2 * n, :], weight[..., 2 * n :, :]


def _is_fused(recurrence: Recurrence, compute: torch.dtype | None) -> bool:
    *arrays, weight_hh, _ = recurrence
    single = all(array.dtype == torch.float32 for array in arrays)
    weights = compute == torch.bfloat16 or (compute in (None, torch.float32) and weight_hh.dtype == torch.float32)
    return single and weights and weight_hh.shape[-1] <= fused.MAX_UNITS and fused.takes(*arrays)


def forward_(recurrence: Recurrence, compute: torch.dtype | None) -> None:
    """Take all steps in place."""
    if _is_fused(recurrence, compute):
        _forward_fused_(recurrence, compute)
        return
    gates, candidate, states, weight_hh, keep = recurrence
    *_, steps, batch, n = candidate.shape
    times_gates, times_candidate = (repeated_product(w.mT, batch, compute) for w in split(weight_hh))
    h = states[..., 0, :, :]
    # The sums of a step become its gates in place.
    for rz, r, z, c, h_next, kept in zip(
        gates.unbind(-3),
        gates[..., :n].unbind(-3),
        gates[..., n:].unbind(-3),
        candidate.unbind(-3),
        states[..., 1:, :, :].unbind(-3),
        _reset_steps(keep, steps),
        strict=True,
    ):
        if kept is not None:
            h = h * kept
        torch.sigmoid(times_gates(h, rz), out=rz)
        torch.tanh(times_candidate(r * h, c), out=c)
        h = torch.lerp(c, h, z, out=h_next)


def backward(grad: Tensor, recurrence: Recurrence, compute: torch.dtype | None, rounds: bool) -> StepGradients:
    """For `grad` (..., T, B, n), that of the states after the first.

    rounds: the gradients of the sums are only factors of products, and may have the operands' dtype.
    """
    if _is_fused(recurrence, compute):
        return _backward_fused(grad, recurrence, compute, rounds)
    gates, c, states, weight_hh, keep = recurrence
    *_, steps, batch, n = grad.shape
    r, z = gates[..., :n], gates[..., n:]
    h = states[..., :-1, :, :]
    if keep is not None:
        h = h * keep.unsqueeze(-1)

    # What multiplies dh, or d(r h), in each gate's gradient, for all steps at once.
    by_candidate = (1 - z) * (1 - c * c)
    by_update = (h - c) * z * (1 - z)
    by_reset = h * r * (1 - r)

    d_gates, d_candidate = torch.empty_like(gates), torch.empty_like(c)
    times_gates, times_candidate = (repeated_product(w, batch, compute) for w in split(weight_hh))
    dh = grad[..., -1, :, :]
    before = (torch.zeros_like(dh), *grad.unbind(-3)[:-1])
    per_step = zip(
        before,
        r.unbind(-3),
        z.unbind(-3),
        by_candidate.unbind(-3),
        by_update.unbind(-3),
        by_reset.unbind(-3),
        d_gates.unbind(-3),
        d_gates[..., :n].unbind(-3),
        d_gates[..., n:].unbind(-3),
        d_candidate.unbind(-3),
        _reset_steps(keep, steps),
        strict=True,
    )
    # dh is the whole gradient of h_t: what comes from the output and what comes from the next step.
    for g, r_t, z_t, f_c, f_z, f_r, d_rz, d_r, d_z, d_c, kept in reversed(list(per_step)):
        torch.mul(dh, f_z, out=d_z)
        d_rh = times_candidate(torch.mul(dh, f_c, out=d_c), None)
        torch.mul(d_rh, f_r, out=d_r)
        if kept is None:
            dh = times_gates(d_rz, torch.addcmul(g, dh, z_t).addcmul_(d_rh, r_t))
        else:
            dh = torch.addcmul(g, times_gates(d_rz, (dh * z_t).addcmul_(d_rh, r_t)), kept)
    return StepGradients(d_gates, d_candidate, h, r * h, dh)


def _reset_steps(keep: Tensor | None, steps: int) -> list[Tensor | None]:
    """For each step the factor (..., B, 1) of the state before it, or None where no state is reset."""
    if keep is None:
        return [None] * steps
    factors = keep.unsqueeze(-1).unbind(-3)
    if keep.device.type != "cpu" or keep.dim() > 2:
        return list(factors)  # to look would make the host wait, and of several runs one has a reset at most steps
    any_reset = (keep == 0).any(-1)
    return [factor if reset else None for factor, reset in zip(factors, any_reset.tolist(), strict=True)]


def _forward_fused_(recurrence: Recurrence, compute: torch.dtype | None) -> None:
    """`forward_` in four kernels a step: a product, both gates and r h, a product, the candidate and the state. In bf16
    in two: each takes its product itself."""
    gates, candidate, states, weight_hh, keep = recurrence
    steps, keep = candidate.shape[-3], None if keep is None else keep.to(states.dtype).contiguous()
    rounded = compute == torch.bfloat16
    first = states[..., 0, :, :]
    # What the products read, in their dtype, and r h beside it.
    dtype = torch.bfloat16 if rounded else states.dtype
    h = torch.empty_like(candidate[..., 0, :, :], dtype=dtype, memory_format=torch.contiguous_format)
    h.copy_(first if keep is None else first * keep[..., 0, :, None])
    rh = torch.empty_like(h)
    weight = weight_hh.to(dtype).contiguous()
    w_gates, w_candidate = (w.mT for w in split(weight))
    for step, rz, c in zip(range(steps), gates.unbind(-3), candidate.unbind(-3), strict=True):
        where: dict[str, Any] = {"keep": keep, "step": step, "steps": steps}
        if rounded:
            fused.product_step_("gates_by_product", weight, h, gates, states, rh, **where)
            fused.product_step_("state_by_product", weight, rh, gates, candidate, states, h, **where)
        else:
            _add_product(rz, h, w_gates)
            fused.step_("gates_of_step", gates, states, rh, **where)
            _add_product(c, rh, w_candidate)
            fused.step_("state_of_step", gates, candidate, states, h, **where)


def _backward_fused(grad: Tensor, recurrence: Recurrence, compute: torch.dtype | None, rounds: bool) -> StepGradients:
    """`backward` in four kernels a step: the gradients of z's and c's sums, a product, r's and what goes to the state
    before, a product. In bf16 in two, a product with what follows it."""
    gates, candidate, states, weight_hh, keep = recurrence
    grad, keep = grad.contiguous(), None if keep is None else keep.to(states.dtype).contiguous()
    rounded = compute == torch.bfloat16
    dtype = torch.bfloat16 if rounded else states.dtype
    of_sums = dtype if rounds else states.dtype
    d_gates, d_candidate = torch.empty_like(gates, dtype=of_sums), torch.empty_like(candidate, dtype=of_sums)
    h, rh = (torch.empty_like(candidate, dtype=dtype) for _ in range(2))
    weight = weight_hh.to(dtype).contiguous()
    w_gates, w_candidate = split(weight)
    # The gradient of the state after a step, but for what comes from the output.
    d_state = torch.zeros_like(grad[..., 0, :, :], memory_format=torch.contiguous_format)
    of_candidate = grad, gates, candidate, states, d_gates, d_candidate, d_state
    of_reset = gates, states, d_gates, h, rh, d_state
    steps = grad.shape[-3]
    where: dict[str, Any] = {"keep": keep, "steps": steps}
    if rounded:
        fused.step_("candidate_gradient", *of_candidate, step=steps - 1, **where)
        for step in reversed(range(steps)):
            fused.product_step_("reset_gradient_by_product", weight, d_candidate, *of_reset, step=step, **where)
            # Of the step before, or at last of the first state.
            fused.product_step_("candidate_gradient_by_product", weight, *of_candidate, step=step, **where)
        return StepGradients(d_gates, d_candidate, h, rh, d_state)
    for step, d_rz, d_c in reversed(list(zip(range(steps), d_gates.unbind(-3), d_candidate.unbind(-3), strict=True))):
        fused.step_("candidate_gradient", *of_candidate, step=step, **where)
        fused.step_("reset_gradient", d_c @ w_candidate, *of_reset, step=step, **where)
        _add_product(d_state, d_rz, w_gates)
    return StepGradients(d_gates, d_candidate, h, rh, d_state if keep is None else d_state.mul_(keep[..., 0, :, None]))


def _add_product(c: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``c += x @ weight``, of one matrix or a batch."""
    return c.addmm_(x, weight) if c.dim() == 2 else c.baddbmm_(x, weight)
