"""The paper's GRU over all time steps, forward and backward: by torch's operations, and by the compiled kernels.

`forward` and `backward` take what is the fastest for their tensors: torch's operations on any device, in any floating
dtype, for one run or several side by side; the compiled kernels for one run in float32 on the CPU. Both are held to
`gruclip.gru.plain_gru`, which reads like the equations. `gru_operator` makes a differentiable layer of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gruclip.kernels import compiled, gru_steps
from gruclip.kernels.dropout import product_of_kept
from gruclip.kernels.products import matmul, operand


class Saved(NamedTuple):
    """What the backward pass reads; without the leading axis R where there is one run."""

    x: Tensor  #: (R, T, B, k), times the mask
    weight_ih: Tensor  #: (R, 3n, k)
    weight_hh: Tensor  #: (R, 3n, n)
    keep: Tensor | None  #: (R, T, B)
    mask: Tensor | None  #: (R, T, B, k)
    states: Tensor  #: (R, T + 1, B, n), with the one before the first step
    gates: Tensor  #: r, z, c, (R, T, B, 3n), by the compiled kernels; by torch r and z, (R, T, B, 2n)
    candidate: Tensor | None  #: c, (R, T, B, n)


class Gradients(NamedTuple):
    """In the shapes of what they belong to; None where not wanted. Those of weights and bias: see `backward`."""

    x: Tensor | None
    h0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor | None


def is_compiled(compute: torch.dtype | None, *tensors: Tensor | None) -> bool:
    """Whether a layer of these tensors is computed by the compiled kernels, run by run."""
    return compute in (None, torch.float32, torch.bfloat16) and compiled.takes(*tensors)


def forward(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    compute: torch.dtype | None,
    mask: Tensor | None = None,
) -> Saved:
    """Arguments as of `gruclip.gru.gru_layer`, whose result is in the states; a mask only of one run, compiled."""
    by_kernels = is_compiled(compute, x, h0, weight_ih, weight_hh, bias, keep)
    if x.shape[0] == 1:
        # A single run goes through two-dimensional products: the same bits alone and in any stack.
        x, h0, weight_ih, weight_hh = x.squeeze(0), h0.squeeze(0), weight_ih.squeeze(0), weight_hh.squeeze(0)
        bias, keep, mask = (None if tensor is None else tensor.squeeze(0) for tensor in (bias, keep, mask))
        if by_kernels:
            return _forward_compiled(x, h0, weight_ih, weight_hh, bias, keep, mask, compute)
    elif by_kernels:
        keep = None if keep is None else keep.expand(x.shape[:-1]).contiguous()
        weight_hh = weight_hh.contiguous()
        each = _each_run(x, h0, weight_ih, weight_hh, bias, keep)
        runs = [_forward_compiled(*run, None, compute) for run in each]  # type: ignore[call-arg]
        states, gates = torch.stack([run.states for run in runs]), torch.stack([run.gates for run in runs])
        return Saved(x, weight_ih, weight_hh, keep, None, states, gates, None)
    return _forward_by_torch(x, h0, weight_ih, weight_hh, bias, keep, compute)


def backward(
    grad: Tensor, saved: Saved, compute: torch.dtype | None, wants_x: bool, wants_bias: bool, groups: int = 1
) -> Gradients:
    """Gradients for `grad` (R, T, B, n), that of the result.

    groups: the batch falls into so many equal parts, one after the other, and each has gradients of the weights and the
    bias of its own: (R, groups, 3n, k). With one there is no such axis.
    """
    options = compute, wants_x, wants_bias, groups
    by_kernels = saved.candidate is None
    if grad.shape[0] == 1:
        run = _backward_compiled if by_kernels else _backward_by_torch
        gradients = run(grad.squeeze(0), saved, *options)
        return Gradients(*[None if gradient is None else gradient.unsqueeze(0) for gradient in gradients])  # type: ignore
    if by_kernels:
        runs = [_backward_compiled(one, Saved(*of_one), *options) for one, *of_one in _each_run(grad, *saved)]
        return Gradients(*[None if parts[0] is None else torch.stack(parts) for parts in zip(*runs, strict=True)])  # type: ignore
    return _backward_by_torch(grad, saved, *options)


def _each_run(*tensors: Tensor | None) -> Iterator[list[Any]]:
    """Each run's slices of (R, ...) tensors; None stays None."""
    first = next(tensor for tensor in tensors if tensor is not None)
    for run in range(len(first)):
        yield [None if tensor is None else tensor[run] for tensor in tensors]


def _rows(sequence: Tensor, groups: int = 1) -> Tensor:
    """(..., T, B, k) as the rows of a matrix, (..., T B, k); or of one a group, (..., groups, T B / groups, k)."""
    if groups == 1:
        return sequence.flatten(-3, -2)
    return sequence.unflatten(-2, (groups, -1)).movedim(-3, -4).flatten(-3, -2)


def _forward_by_torch(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    compute: torch.dtype | None,
) -> Saved:
    *lead, steps, batch, _ = x.shape
    n = h0.shape[-1]
    gates, candidate = (
        matmul(_rows(x), weight.mT, compute).unflatten(-2, (steps, batch)) for weight in gru_steps.split(weight_ih)
    )
    if bias is not None:
        gates += bias[..., None, None, : 2 * n]
        candidate += bias[..., None, None, 2 * n :]
    states = x.new_empty(*lead, steps + 1, batch, n)
    states[..., 0, :, :] = h0

    gru_steps.forward_(gates, candidate, states, weight_hh, keep, compute)
    return Saved(x, weight_ih, weight_hh, keep, None, states, gates, candidate)


def _backward_by_torch(
    grad: Tensor, saved: Saved, compute: torch.dtype | None, wants_x: bool, wants_bias: bool, groups: int
) -> Gradients:
    x, weight_ih, weight_hh, keep, _, states, gates, c = saved
    assert c is not None
    d = gru_steps.backward(grad, gates, c, states, weight_hh, keep, compute, rounds=not wants_bias)
    d_x = None
    if wants_x:
        w_gates, w_candidate = gru_steps.split(weight_ih)
        d_x = matmul(_rows(d.gates), w_gates, compute).to(x.dtype)
        d_x = d_x.add_(matmul(_rows(d.candidate), w_candidate, compute)).view_as(x)
    d_parts = _rows(d.gates, groups), _rows(d.candidate, groups)
    inputs, factors = operand(_rows(x, groups), compute), (_rows(d.h, groups), _rows(d.rh, groups))
    d_weight_ih = torch.cat([matmul(part.mT, inputs, compute) for part in d_parts], dim=-2).to(weight_ih.dtype)
    d_weight_hh = torch.cat([matmul(p.mT, f, compute) for p, f in zip(d_parts, factors, strict=True)], dim=-2)
    d_weight_hh = d_weight_hh.to(weight_hh.dtype)
    d_bias = torch.cat([part.sum(-2) for part in d_parts], dim=-1) if wants_bias else None
    return Gradients(d_x, d.h0, d_weight_ih, d_weight_hh, d_bias)


def _forward_compiled(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    mask: Tensor | None,
    compute: torch.dtype | None,
) -> Saved:
    """The recurrence is one call; what is zero in the mask takes no time where the input is read."""
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
    return Saved(x, weight_ih, weight_hh, keep, mask, states, gates.view(steps, batch, 3 * n), None)


def _backward_compiled(
    grad: Tensor, saved: Saved, compute: torch.dtype | None, wants_x: bool, wants_bias: bool, groups: int
) -> Gradients:
    """The recurrence is one call; what does not recur is one product over all steps."""
    x, weight_ih, weight_hh, keep, mask, states, gates, _ = saved
    steps, batch, n = grad.shape
    d_sums, d_h0 = grad.new_empty(steps * batch, 3 * n), grad.new_empty(batch, n)
    h, rh = grad.new_empty(2, steps * batch, n)
    compiled.call(
        "gruclip_gru_backward",
        [grad.resolve_neg().contiguous(), gates, states, keep, weight_hh, d_sums, h, rh, d_h0],
        [steps, batch, n],
        torch.get_num_threads(),
        compute == torch.bfloat16,
    )
    inputs, d_x = x.reshape(steps * batch, -1), None
    if wants_x:
        # Dense with a mask, too: of so short sums half cost as much as all.
        d_x = matmul(d_sums, weight_ih, compute).view_as(x)
        d_x = d_x if mask is None else d_x.mul_(mask)
    if groups > 1:
        d_sums, inputs, h, rh = (_rows(rows.view(steps, batch, -1), groups) for rows in (d_sums, inputs, h, rh))
    if mask is None:
        d_weight_ih = matmul(d_sums.mT, inputs, compute)
    else:
        d_weight_ih = torch.empty_like(weight_ih)
        product_of_kept(inputs.mT, d_sums, out=d_weight_ih.mT)
    d_weight_hh = d_sums.new_empty(*d_sums.shape[:-2], 3 * n, n)
    matmul(d_sums[..., : 2 * n].mT, h, compute, out=d_weight_hh[..., : 2 * n, :])
    matmul(d_sums[..., 2 * n :].mT, rh, compute, out=d_weight_hh[..., 2 * n :, :])
    d_bias = d_sums.sum(-2) if wants_bias else None
    return Gradients(d_x, d_h0, d_weight_ih, d_weight_hh, d_bias)
