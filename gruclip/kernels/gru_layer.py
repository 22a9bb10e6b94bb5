"""The paper's GRU with derivatives of its own: by torch's operations, and by the compiled kernels.

`GRULayer` runs on any device, in any floating dtype, for one run or several side by side; `CompiledGRULayer` computes
the same for one run in float32 on the CPU. Both are held to `gruclip.gru.plain_gru`, which reads like the equations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gruclip.kernels import compiled, derivatives
from gruclip.kernels.dropout import product_of_kept
from gruclip.kernels.products import matmul, repeated_product


def _rows(sequence: Tensor) -> Tensor:
    """(..., T, B, k) as the rows of a matrix, (..., T B, k)."""
    return sequence.flatten(-3, -2)


def _reset_steps(keep: Tensor | None, steps: int) -> list[Tensor | None]:
    """For each step the factor (..., B, 1) of the state before it, or None where no state is reset."""
    if keep is None:
        return [None] * steps
    factors = keep.unsqueeze(-1).unbind(-3)
    if keep.device.type != "cpu" or keep.dim() > 2:
        return list(factors)  # to look would make the host wait, and of several runs one has a reset at most steps
    any_reset = (keep == 0).any(-1)
    return [factor if reset else None for factor, reset in zip(factors, any_reset.tolist(), strict=True)]


class GRULayer(torch.autograd.Function):
    """Shapes as in `plain_gru`, all with or all without the leading axis R."""

    @staticmethod
    @derivatives.forward
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        compute: torch.dtype | None,
    ) -> Tensor:
        *lead, steps, batch, _ = x.shape
        n = h0.shape[-1]
        gates, candidate = (
            matmul(_rows(x), weight.mT, compute).unflatten(-2, (steps, batch)) for weight in _split(weight_ih)
        )
        if bias is not None:
            gates += bias[..., None, None, : 2 * n]
            candidate += bias[..., None, None, 2 * n :]
        states = x.new_empty(*lead, steps + 1, batch, n)
        states[..., 0, :, :] = h0

        times_gates, times_candidate = (repeated_product(w.mT, batch, compute) for w in _split(weight_hh))
        h = h0
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

        ctx.save_for_backward(x, weight_ih, weight_hh, keep, gates, candidate, states)
        ctx.compute, ctx.has_bias = compute, bias is not None
        return states[..., 1:, :, :].clone()

    @staticmethod
    @derivatives.backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight_ih, weight_hh, keep, gates, c, states = ctx.saved_tensors
        compute = ctx.compute
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
        times_gates, times_candidate = (repeated_product(w, batch, compute) for w in _split(weight_hh))
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

        d_parts = _rows(d_gates), _rows(d_candidate)
        d_x = None
        if ctx.needs_input_grad[0]:
            w_gates, w_candidate = _split(weight_ih)
            d_x = matmul(d_parts[0], w_gates, compute).add_(matmul(d_parts[1], w_candidate, compute)).view_as(x)
        inputs = _rows(x)
        d_weight_ih = torch.cat([matmul(d.mT, inputs, compute) for d in d_parts], dim=-2)
        factors = _rows(h), _rows(r * h)
        d_weight_hh = torch.cat([matmul(d.mT, f, compute) for d, f in zip(d_parts, factors, strict=True)], dim=-2)
        d_bias = torch.cat([d.sum(-2) for d in d_parts], dim=-1) if ctx.has_bias else None
        return d_x, dh, d_weight_ih, d_weight_hh, d_bias, None, None


def _split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of both gates, (..., 2n, k), and those of the candidate, (..., n, k)."""
    n = weight.shape[-2] // 3
    return weight[..., : 2 * n, :], weight[..., 2 * n :, :]


class CompiledGRULayer(torch.autograd.Function):
    """One run: x and mask (T, B, k), h0 (B, n), weight_ih (3n, k), weight_hh (3n, n), bias (3n,), keep (T, B); states
    (T, B, n). With a mask the input is x * mask, and what is zero in it takes no time where it is read.

    The recurrence is one call forward and one backward; what does not recur is one product over all steps.
    """

    @staticmethod
    @derivatives.forward
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor | None,
        keep: Tensor | None,
        compute: torch.dtype | None,
        mask: Tensor | None,
    ) -> Tensor:
        steps, batch, _ = x.shape
        n = h0.shape[-1]
        x = x if mask is None else x * mask
        inputs = x.reshape(steps * batch, -1)
        gates = matmul(inputs, weight_ih.mT, compute) if mask is None else product_of_kept(inputs, weight_ih.mT)
        if bias is not None:
            gates += bias
        states = x.new_empty(steps + 1, batch, n)
        states[0] = h0
        keep = None if keep is None else keep.expand(steps, batch).contiguous()
        weight_hh = weight_hh.contiguous()
        compiled.call(
            "gruclip_gru_forward",
            [gates, states, keep, weight_hh],
            [steps, batch, n],
            torch.get_num_threads(),
            compute == torch.bfloat16,
        )
        ctx.save_for_backward(x, weight_ih, weight_hh, keep, gates, states, mask)
        ctx.compute, ctx.has_bias = compute, bias is not None
        return states[1:].clone()  # what its user does to it must not reach the backward pass

    @staticmethod
    @derivatives.backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight_ih, weight_hh, keep, gates, states, mask = ctx.saved_tensors
        compute = ctx.compute
        steps, batch, n = grad.shape
        d_sums, d_h0 = grad.new_empty(steps * batch, 3 * n), grad.new_empty(batch, n)
        h, rh = grad.new_empty(2, steps * batch, n)
        compiled.call(
            "gruclip_gru_backward",
            [grad.contiguous(), gates, states, keep, weight_hh, d_sums, h, rh, d_h0],
            [steps, batch, n],
            torch.get_num_threads(),
            compute == torch.bfloat16,
        )
        inputs, d_x = x.reshape(steps * batch, -1), None
        if ctx.needs_input_grad[0]:
            # Dense with a mask, too: of so short sums half cost as much as all.
            d_x = matmul(d_sums, weight_ih, compute).view_as(x)
            d_x = d_x if mask is None else d_x.mul_(mask)
        if mask is None:
            d_weight_ih = matmul(d_sums.mT, inputs, compute)
        else:
            d_weight_ih = torch.empty_like(weight_ih)
            product_of_kept(inputs.mT, d_sums, out=d_weight_ih.mT)
        d_weight_hh = torch.empty_like(weight_hh)
        matmul(d_sums[:, : 2 * n].mT, h, compute, out=d_weight_hh[: 2 * n])
        matmul(d_sums[:, 2 * n :].mT, rh, compute, out=d_weight_hh[2 * n :])
        d_bias = d_sums.sum(0) if ctx.has_bias else None
        return d_x, d_h0, d_weight_ih, d_weight_hh, d_bias, None, None, None
