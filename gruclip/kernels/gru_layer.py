"""The paper's GRU over all time steps, forward and backward: by torch's operations, and by the compiled kernels.

`forward` and `backward` take what is the fastest for their tensors: torch's operations on any device, in any floating
dtype, for one run or several side by side; the compiled kernels for one run in float32 on the CPU. Both are held to
`gruclip.gru.plain_gru`, which reads like the equations. `gru_operator` makes a differentiable layer of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gruclip.kernels import compiled, gru_steps
from gruclip.kernels.dropout import product_of_kept
from gruclip.kernels.gru_steps import Recurrence
from gruclip.kernels.products import matmul, operand


class Inputs(NamedTuple):
    """What `gruclip.gru.gru_layer` is given; without the leading axis R where torch's operations take a single run."""

    x: Tensor  #: (R, T, B, k)
    h0: Tensor  #: (R, B, n)
    weight_ih: Tensor  #: (R, 3n, k)
    weight_hh: Tensor  #: (R, 3n, n)
    bias: Tensor | None  #: (R, 3n)
    keep: Tensor | None  #: (R, T, B)
    mask: Tensor | None = None  #: (R, T, B, k), only where the compiled kernels are taken


class Saved(NamedTuple):
    """What the backward pass reads: inputs as they came, so that torch sees what became of them, and states."""

    x: Tensor  #: times the mask
    weight_ih: Tensor
    weight_hh: Tensor
    keep: Tensor | None
    mask: Tensor | None
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


def forward(inputs: Inputs, compute: torch.dtype | None) -> Saved:
    """`gruclip.gru.gru_layer`, whose result is in the states."""
    if inputs.mask is not None:
        inputs = inputs._replace(x=inputs.x * inputs.mask)
    if is_compiled(compute, *inputs):
        steps = _joined([_forward_compiled(Inputs(*run), compute) for run in _runs(inputs)])
    elif len(inputs.x) == 1:
        # By two-dimensional products: the same bits alone and in any stack.
        run = Inputs(*_each(torch.squeeze, inputs))
        steps = _each(torch.unsqueeze, _forward_by_torch(run, compute))
    else:
        steps = _forward_by_torch(inputs, compute)
    return Saved(inputs.x, inputs.weight_ih, inputs.weight_hh, inputs.keep, inputs.mask, *steps)


def backward(
    grad: Tensor, saved: Saved, compute: torch.dtype | None, wants_x: bool, wants_bias: bool, groups: int = 1
) -> Gradients:
    """Gradients for `grad` (R, T, B, n), that of the result.

    groups: the batch falls into so many equal parts, one after the other, and each has gradients of the weights and the
    bias of its own: (R, groups, 3n, k). With one there is no such axis.
    """
    options = compute, wants_x, wants_bias, groups
    if saved.candidate is None:
        runs = _runs((grad, *saved))
        return Gradients(*_joined([_backward_compiled(part, Saved(*of_run), *options) for part, *of_run in runs]))
    if len(grad) == 1:
        run = Saved(*_each(torch.squeeze, saved))
        return Gradients(*_each(torch.unsqueeze, _backward_by_torch(grad.squeeze(0), run, *options)))
    return _backward_by_torch(grad, saved, *options)


def _each(function: Callable[[Tensor, int], Tensor], tensors: Sequence[Tensor | None]) -> list[Any]:
    """`torch.squeeze` or `torch.unsqueeze` at the axis of the runs."""
    return [None if tensor is None else function(tensor, 0) for tensor in tensors]


def _runs(tensors: Sequence[Tensor | None]) -> Iterable[Sequence[Any]]:
    """A stack's tensors (R, ...) as those of R stacks of one run; the first is not None."""
    first = tensors[0]
    assert first is not None
    runs = len(first)
    if runs == 1:
        return [tensors]
    return zip(*(repeat(None) if tensor is None else tensor.chunk(runs) for tensor in tensors), strict=False)


def _joined(stacks: list[Any]) -> Sequence[Any]:
    """One stack's tensors of those of its runs, as `_runs` has them."""
    if len(stacks) == 1:
        return stacks[0]
    return [None if parts[0] is None else torch.cat(parts) for parts in zip(*stacks, strict=True)]


def _rows(sequence: Tensor, groups: int = 1) -> Tensor:
    """(..., T, B, k) as the rows of a matrix, (..., T B, k); or of one a group, (..., groups, T B / groups, k)."""
    if groups == 1:
        return sequence.flatten(-3, -2)
    return sequence.unflatten(-2, (groups, -1)).movedim(-3, -4).flatten(-3, -2)


def _forward_by_torch(inputs: Inputs, compute: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """States, gates and candidate of `Saved`."""
    x, h0, weight_ih, weight_hh, bias, keep, _ = inputs
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

    gru_steps.forward_(Recurrence(gates, candidate, states, weight_hh, keep), compute)
    return states, gates, candidate


def _backward_by_torch(
    grad: Tensor, saved: Saved, compute: torch.dtype | None, wants_x: bool, wants_bias: bool, groups: int
) -> Gradients:
    x, weight_ih, weight_hh, keep, _, states, gates, c = saved
    assert c is not None
    recurrence = Recurrence(gates, c, states, weight_hh, keep)
    d = gru_steps.backward(grad, recurrence, compute, rounds=not wants_bias)
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


def _forward_compiled(inputs: Inputs, compute: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of one run, R = 1. The recurrence is one call; what is zero in the mask takes no time where the input is read."""
    x, h0, weight_ih, weight_hh, bias, keep, mask = inputs
    _, steps, batch, _ = x.shape
    n = h0.shape[-1]
    rows, weight = x.reshape(steps * batch, -1), weight_ih.squeeze(0).mT
    gates = matmul(rows, weight, compute) if mask is None else product_of_kept(rows, weight)
    if bias is not None:
        gates += bias
    states = x.new_empty(1, steps + 1, batch, n)
    states[:, 0] = h0
    compiled.call(
        "gruclip_gru_forward",
        [gates, states, None if keep is None else keep.contiguous(), weight_hh.contiguous()],
        [steps, batch, n],
        torch.get_num_threads(),
        compute == torch.bfloat16,
    )
    return states, gates.view(1, steps, batch, 3 * n), None


def _backward_compiled(
    grad: Tensor, saved: Saved, compute: torch.dtype | None, wants_x: bool, wants_bias: bool, groups: int
) -> Gradients:
    """Of one run, R = 1. The recurrence is one call; what does not recur is one product over all steps."""
    x, weight_ih, weight_hh, keep, mask, states, gates, _ = saved
    _, steps, batch, n = grad.shape
    d_sums, d_h0 = grad.new_empty(steps * batch, 3 * n), grad.new_empty(1, batch, n)
    h, rh = grad.new_empty(2, steps * batch, n)
    grad, keep = grad.resolve_neg().contiguous(), None if keep is None else keep.contiguous()
    compiled.call(
        "gruclip_gru_backward",
        [grad, gates, states, keep, weight_hh.contiguous(), d_sums, h, rh, d_h0],
        [steps, batch, n],
        torch.get_num_threads(),
        compute == torch.bfloat16,
    )
    inputs, d_x = x.reshape(steps * batch, -1), None
    if wants_x:
        # Dense with a mask, too: of so short sums half cost as much as all.
        d_x = matmul(d_sums, weight_ih.squeeze(0), compute).view_as(x)
        d_x = d_x if mask is None else d_x.mul_(mask)
    if groups > 1:
        d_sums, inputs, h, rh = (_rows(rows.view(steps, batch, -1), groups) for rows in (d_sums, inputs, h, rh))
    if mask is None:
        d_weight_ih = matmul(d_sums.mT, inputs, compute)
    else:
        d_weight_ih = d_sums.new_empty(3 * n, inputs.shape[1])
        product_of_kept(inputs.mT, d_sums, out=d_weight_ih.mT)
    d_weight_hh = d_sums.new_empty(*d_sums.shape[:-2], 3 * n, n)
    matmul(d_sums[..., : 2 * n].mT, h, compute, out=d_weight_hh[..., : 2 * n, :])
    matmul(d_sums[..., 2 * n :].mT, rh, compute, out=d_weight_hh[..., 2 * n :, :])
    d_bias = d_sums.sum(-2).unsqueeze(0) if wants_bias else None
    return Gradients(d_x, d_h0, d_weight_ih.unsqueeze(0), d_weight_hh.unsqueeze(0), d_bias)
