"""The paper's GRU on the compiled kernels: what `gruclip.gru.gru_layer` takes for float32 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gruclip import derivatives
from gruclip.native import kernels
from gruclip.native.dropout import product_of_kept
from gruclip.products import matmul


class NativeGRULayer(torch.autograd.Function):
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
        kernels.call(
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
        kernels.call(
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
