"""`gru_layer`'s forward and backward as one differentiable layer, by itself and under torch's transforms.

By itself it is an autograd function. Under `torch.compile`, `torch.export` and the transforms of `torch.func` it is the
operator ``gruclip::gru_layer``, which they ask for shapes, for gradients and for many calls at once; it computes the
same bits, in 1.4 times the time where a layer has next to nothing to do. Of a batch of calls (`torch.vmap`) with
weights of their own each is a run of a stack; with the same weights their batches are one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gruclip.kernels import derivatives, gru_layer
from gruclip.kernels.gru_layer import Gradients, Inputs, Saved

Dims = tuple[int | None, ...]


def layer(inputs: Inputs, compute: torch.dtype | None) -> Tensor:
    """As `gruclip.gru.gru_layer`; a mask only for the compiled kernels, and under no transform."""
    if derivatives.is_transformed():
        call = _in_functorch if derivatives.in_functorch() or derivatives.in_forward_mode() else operator
        return call(*inputs[:-1], compute)[0]
    return GRULayer.apply(*inputs, compute)


class GRULayer(torch.autograd.Function):
    """The layer by itself."""

    jvp = staticmethod(derivatives.refuse_forward)

    @staticmethod
    @derivatives.forward
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        inputs, compute = Inputs(*arguments[:-1]), arguments[-1]
        saved = gru_layer.forward(inputs, compute)
        ctx.save_for_backward(*saved)
        ctx.compute, ctx.has_bias = compute, inputs.bias is not None
        return saved.states[:, 1:].clone()  # what its user does to it must not reach the backward pass

    @staticmethod
    @derivatives.backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved, wants = Saved(*ctx.saved_tensors), (ctx.needs_input_grad[0], ctx.has_bias)
        if derivatives.is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad):
            gradients = _call_backward(grad, saved, ctx.compute, *wants)
        else:
            gradients = gru_layer.backward(grad, saved, ctx.compute, *wants)
        return (*gradients, None, None, None)


@torch.library.custom_op("gruclip::gru_layer", mutates_args=())
def operator(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    compute: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and what its gradient is made of: all states (R, T + 1, B, n), and r, z and c, (R, T, B, 3n)."""
    with derivatives.without_autocast(x.device):
        saved = gru_layer.forward(Inputs(x, h0, weight_ih, weight_hh, bias, keep), compute)
    return saved.states[:, 1:].clone(), saved.states, _all_gates(saved)


def _all_gates(saved: Saved) -> Tensor:
    """r, z and c, (R, T, B, 3n)."""
    return saved.gates if saved.candidate is None else torch.cat((saved.gates, saved.candidate), -1)


@torch.library.custom_op("gruclip::gru_layer_backward", mutates_args=())
def operator_backward(
    grad: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    keep: Tensor | None,
    states: Tensor,
    gates: Tensor,
    compute: torch.dtype | None,
    wants_x: bool,
    wants_bias: bool,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`gru_layer.backward`, always with an axis for groups; unwanted gradients are empty."""
    n = grad.shape[-1]
    gates, candidate = gates.contiguous(), None
    if not gru_layer.is_compiled(compute, grad, x, weight_ih, weight_hh, keep):
        gates, candidate = (part.contiguous() for part in gates.split((2 * n, n), -1))
    saved = Saved(x, weight_ih, weight_hh, keep, None, states.contiguous(), gates, candidate)
    with derivatives.without_autocast(grad.device):
        d_x, d_h0, *of_weights = gru_layer.backward(grad, saved, compute, wants_x, wants_bias, groups)
    if groups == 1:
        of_weights = [None if gradient is None else gradient.unsqueeze(1) for gradient in of_weights]
    # An operator returns no None, and no tensor twice.
    gradients = (grad.new_empty(0) if gradient is None else gradient for gradient in (d_x, d_h0, *of_weights))
    return tuple(gradients)  # type: ignore[return-value]


def _call_backward(
    grad: Tensor, saved: Saved, compute: torch.dtype | None, wants_x: bool, wants_bias: bool
) -> Gradients:
    """`gru_layer.backward` by the operator."""
    x, weight_ih, weight_hh, keep, mask, states, *_ = saved
    call = _Backward.apply if derivatives.in_functorch() else operator_backward
    d_x, d_h0, d_weight_ih, d_weight_hh, d_bias = call(
        grad, x, weight_ih, weight_hh, keep, states, _all_gates(saved), compute, wants_x, wants_bias, 1
    )
    return Gradients(
        None if not wants_x else d_x if mask is None else d_x * mask,
        d_h0,
        d_weight_ih.squeeze(1),
        d_weight_hh.squeeze(1),
        d_bias.squeeze(1) if wants_bias else None,
    )


@operator.register_fake
def _(x: Tensor, h0: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    runs, steps, batch, _inputs = x.shape
    n = h0.shape[-1]
    return (
        x.new_empty(runs, steps, batch, n),
        x.new_empty(runs, steps + 1, batch, n),
        x.new_empty(runs, steps, batch, 3 * n),
    )


@operator_backward.register_fake
def _(grad: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, wants_x, wants_bias, groups = others
    runs, _steps, batch, n = grad.shape
    return (
        x.new_empty(x.shape if wants_x else 0),
        grad.new_empty(runs, batch, n),
        grad.new_empty(runs, groups, 3 * n, x.shape[-1]),
        grad.new_empty(runs, groups, 3 * n, n),
        grad.new_empty((runs, groups, 3 * n) if wants_bias else 0),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _, weight_ih, weight_hh, bias, keep, compute = inputs
    _, states, gates = output
    ctx.save_for_backward(x, weight_ih, weight_hh, keep, states, gates)
    ctx.mark_non_differentiable(states, gates)
    ctx.set_materialize_grads(False)
    ctx.compute, ctx.has_bias = compute, bias is not None


def _gradient(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight_ih, weight_hh, keep, states, gates = ctx.saved_tensors
    saved = Saved(x, weight_ih, weight_hh, keep, None, states, gates, None)
    return (*_call_backward(grad, saved, ctx.compute, ctx.needs_input_grad[0], ctx.has_bias), None, None)


operator.register_autograd(_gradient, setup_context=_remember)
operator_backward.register_autograd(derivatives.refuse_second)


class _Layer(torch.autograd.Function):
    """The operator for the transforms of `torch.func`, which do not take the formula that is registered with it."""

    generate_vmap_rule = True
    forward, setup_context, backward = staticmethod(operator), staticmethod(_remember), staticmethod(_gradient)
    jvp = staticmethod(derivatives.refuse_forward)


class _Backward(torch.autograd.Function):
    """Its gradient, for them too."""

    generate_vmap_rule = True
    forward, backward = staticmethod(operator_backward), staticmethod(derivatives.refuse_second)
    setup_context = staticmethod(lambda ctx, inputs, output: None)


@torch._disable_dynamo
def _in_functorch(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator under `torch.func`; left to Python by `torch.compile`, which traces no `vmap` over a function."""
    return _Layer.apply(*arguments)


def _of_any_size(rule: Callable[..., tuple[list[Tensor], list[int | None]]]) -> Callable[..., Any]:
    """A vmap rule given the number of calls; of no calls at all it gives what is left of one's when that is gone."""

    @functools.wraps(rule)
    def of_any_size(info: Any, dims: Dims, *arguments: Any) -> tuple[list[Tensor], list[int | None]]:
        if info.batch_size:
            return rule(info.batch_size, dims, *arguments)
        of_one = [
            argument if dim is None else argument.new_zeros(*argument.shape[:dim], 1, *argument.shape[dim + 1 :])
            for argument, dim in zip(arguments, dims, strict=True)
        ]
        done, axes = rule(1, dims, *of_one)
        return [one if axis is None else one.narrow(axis, 0, 0) for one, axis in zip(done, axes, strict=True)], axes

    return of_any_size


def _in_front(size: int, dim: int | None, tensor: Tensor) -> Tensor:
    """A tensor with the axis that is mapped over, `size` long, as its first."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _as_runs(size: int, dims: Dims, arguments: Sequence[Any]) -> list[Any]:
    """Tensors with the axis that is mapped over as part of that of the runs."""
    return [
        _in_front(size, dim, argument).flatten(0, 1) if isinstance(argument, Tensor) else argument
        for dim, argument in zip(dims, arguments, strict=True)
    ]


def _as_rows(size: int, dim: int | None, tensor: Tensor | None, batch: int = -2) -> Tensor | None:
    """A tensor with the axis that is mapped over as part of the batch's, which is counted from the end."""
    return None if tensor is None else _in_front(size, dim, tensor).movedim(0, batch - 1).flatten(batch - 1, batch)


@operator.register_vmap
@_of_any_size
def _(size: int, dims: Dims, *arguments: Any) -> tuple[list[Tensor], list[int | None]]:
    if any(dim is not None for dim in dims[2:5]):  # weights of their own
        results = operator(*_as_runs(size, dims, arguments))
        return [result.unflatten(0, (size, -1)) for result in results], [0, 0, 0]
    x, h0, *weights, keep, compute = arguments
    x, h0, keep = _as_rows(size, dims[0], x), _as_rows(size, dims[1], h0), _as_rows(size, dims[5], keep, -1)
    results = operator(x, h0, *weights, keep, compute)
    return [result.unflatten(-2, (size, -1)) for result in results], [2, 2, 2]


@operator_backward.register_vmap
@_of_any_size
def _(size: int, dims: Dims, *arguments: Any) -> tuple[list[Tensor], list[int | None]]:
    grad, x, weight_ih, weight_hh, keep, states, gates, compute, wants_x, wants_bias, groups = arguments
    if dims[2] is not None or dims[3] is not None:
        results = operator_backward(*_as_runs(size, dims, arguments))
        axes: list[int | None] = [0] * 5
    else:
        grad, x, states, gates = (_as_rows(size, dims[index], arguments[index]) for index in (0, 1, 5, 6))
        keep = _as_rows(size, dims[4], keep, -1)
        results = operator_backward(
            grad, x, weight_ih, weight_hh, keep, states, gates, compute, wants_x, wants_bias, size * groups
        )
        axes = [2, 1, 1, 1, 1]
    wanted = wants_x, True, True, True, wants_bias
    axes = [axis if is_wanted else None for axis, is_wanted in zip(axes, wanted, strict=True)]
    return [
        result if axis is None else result.unflatten(axis, (size, -1))
        for result, axis in zip(results, axes, strict=True)
    ], axes
