"""Negative log-likelihoods of the two output layers, summed over a window, one number a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gruclip.kernels import compiled, derivatives, dropout, fused
from gruclip.kernels.dropout import product_of_kept, product_where_kept
from gruclip.kernels.products import matmul, operand, product


def softmax_nll(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    compute: torch.dtype | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Sum over the rows of ``-log softmax((h * mask) weight + bias)[target]``, in nats, for each run: (R,).

    h (R, M, n), weight (R, n, V), bias (R, V), targets (R, M) or (1, M), weights None or as targets
    (no gradient is defined with them), mask (R, M, n): dropout's factors, None without. The logits become the
    probabilities and these the gradient in one buffer, so that a (M, V) array is allocated once; `compute` is its
    dtype and the products', where the processor has such products. What the mask sets to zero takes no time on the CPU
    where `dropout.pays` or, in bf16, `dropout.pays_in_bf16`.
    """
    native = h.shape[0] == 1 and compute in (None, torch.float32, torch.bfloat16) and compiled.takes(h, weight, bias)
    if mask is not None and not (native and _skips(mask, weight, compute)):
        h, mask = h * mask, None
    if h.shape[0] > 1 or h.device.type != "cpu":
        return _SoftmaxNLL.apply(h, weight, bias, targets.expand(h.shape[:2]), weights, compute)
    # squeeze, not [0]: the backward of an index copies the gradient into an array of zeros.
    arguments = [None if tensor is None else tensor.squeeze(0) for tensor in (h, weight, bias, targets, weights)]
    if native:
        return _CompiledSoftmaxNLL.apply(*arguments, compute, None if mask is None else mask.squeeze(0)).unsqueeze(0)
    return _SoftmaxNLL.apply(*arguments, compute).unsqueeze(0)


def _skips(mask: Tensor, weight: Tensor, compute: torch.dtype | None) -> bool:
    """Whether what the mask sets to zero is left out of the products."""
    return dropout.pays_in_bf16(mask, weight) if compute is torch.bfloat16 else dropout.pays(mask)


class _SoftmaxNLL(torch.autograd.Function):
    """Shapes as in `softmax_nll`, all with or all without the leading axis R."""

    @staticmethod
    @derivatives.forward
    def forward(  # type: ignore[override]
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        compute: torch.dtype | None,
    ) -> Tensor:
        ctx.weight_dtype = weight.dtype
        h, weight = operand(h, compute), operand(weight, compute)
        logits = matmul(h, weight)
        ctx.is_gradient = logits.dim() == 3 and fused.takes_logits(logits)
        if ctx.is_gradient:
            nll = fused.softmax_nll_(logits, bias, targets, gradient=any(ctx.needs_input_grad))
        else:
            logits += bias.unsqueeze(-2).to(logits.dtype)
            target = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1).to(bias.dtype)
            largest = logits.amax(-1).to(bias.dtype)
            probabilities = torch.softmax(logits, -1, out=logits)
            # log sum exp: the largest logit's probability is at least 1 / V, so its logarithm is exact enough.
            nll = largest - probabilities.amax(-1).to(bias.dtype).log() - target
        if weights is not None:
            nll = nll * weights
        ctx.save_for_backward(h, weight, targets)
        ctx.buffer, ctx.dtype = logits, bias.dtype
        return nll.sum(-1)

    @staticmethod
    @derivatives.backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        h, weight, targets = ctx.saved_tensors
        d_logits, ctx.buffer = ctx.buffer, None
        if not ctx.is_gradient:
            rows = d_logits.flatten(0, -2)
            # By index: `scatter_add_` passes over the whole array in bf16.
            rows[torch.arange(rows.shape[0], device=rows.device), targets.flatten()] -= 1
        # Scale the small arrays by `grad`, not the (M, V) one.
        factor = grad.unsqueeze(-1).unsqueeze(-1)
        d_h = matmul(d_logits, weight.mT).to(ctx.dtype) * factor
        d_weight = matmul((h * factor.to(h.dtype)).mT, d_logits).to(ctx.weight_dtype)
        d_bias = d_logits.sum(-2).to(ctx.dtype) * grad.unsqueeze(-1)
        return d_h, d_weight, d_bias, None, None, None


class _CompiledSoftmaxNLL(torch.autograd.Function):
    """`_SoftmaxNLL` for one run of float32 parameters, by the compiled kernel."""

    @staticmethod
    @derivatives.forward
    def forward(  # type: ignore[override]
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        compute: torch.dtype | None,
        mask: Tensor | None,
    ) -> Tensor:
        if targets.numel():
            low, high = (int(end) for end in targets.aminmax())
            if low < 0 or high >= weight.shape[1]:
                raise IndexError(f"targets from {low} to {high}: should be from 0 to {weight.shape[1] - 1}")
        h = operand(h if mask is None else h * mask, compute)
        weight = operand(weight, compute)
        logits = matmul(h, weight) if mask is None else product_of_kept(h, weight)
        nll, d_bias = bias.new_empty(h.shape[0]), torch.empty_like(bias) if any(ctx.needs_input_grad) else None
        compiled.call(
            "gruclip_softmax_nll",
            [logits, bias.contiguous(), targets.contiguous(), nll, d_bias],
            list(logits.shape),
            logits.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )
        if weights is not None:
            nll *= weights
        ctx.save_for_backward(h, weight, mask)
        ctx.d_logits, ctx.d_bias, ctx.compute = logits, d_bias, compute
        return nll.sum()

    @staticmethod
    @derivatives.backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        h, weight, mask = ctx.saved_tensors
        d_logits, ctx.d_logits = operand(ctx.d_logits, ctx.compute), None
        # Row-major: oneDNN multiplies the transpose in bf16 a fifth slower.
        factor = operand(h * grad, ctx.compute).mT.contiguous()
        if mask is None:
            d_h, d_weight = matmul(d_logits, weight.mT), matmul(factor, d_logits)
        else:
            d_h = product_where_kept(d_logits, weight.mT, mask)
            d_weight = product_of_kept(factor, d_logits, out=d_h.new_empty(weight.shape))
        return d_h.to(grad.dtype) * grad, d_weight.to(grad.dtype), ctx.d_bias * grad, None, None, None, None


def logistic_nll(h: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over rows and notes of the logistic negative log-likelihood, in nats, for each run: (R,).

    h (R, M, n), weight (R, n, 88), bias (R, 88), targets (R, M, 88) or (1, M, 88) of zeros and ones, weights (R, M) or
    (1, M).
    """
    logits = product(h, weight) + bias.unsqueeze(-2)
    targets = targets.expand_as(logits)
    nll = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)
    if weights is not None:
        nll = nll * weights
    return nll.sum(-1)
