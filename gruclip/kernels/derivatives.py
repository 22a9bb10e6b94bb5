"""What autograd functions with derivatives of their own need: first ones only, in the dtypes they are written for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from gruclip.errors import UserError

T = TypeVar("T")


def in_functorch() -> bool:
    """Whether this call is under a transform of `torch.func`."""
    return torch._C._are_functorch_transforms_active()


def in_forward_mode() -> bool:
    """Whether this call is within `torch.autograd.forward_ad.dual_level`, as under `torch.func.linearize`."""
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether the tensors of this call stand for others, on which no kernel can be called: under `torch.compile`,
    `torch.export`, `make_fx`, `torch.jit.trace` and the transforms of `torch.func`."""
    return torch.compiler.is_compiling() or in_functorch() or is_recorded()


def is_recorded() -> bool:
    """Whether the operations of this call are written down, to be done to other tensors: under `torch.jit.trace` and
    `make_fx`, and so in `torch.export`."""
    if torch._C._len_torch_dispatch_stack():  # the cheaper question
        proxies = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
        if proxies is not None:
            return True
    return torch.jit.is_tracing()


def refuse_second(ctx: Any, *grads: Any) -> Any:
    """For the gradient of a gradient: raises `UserError`."""
    raise UserError(
        "create_graph=True: gruclip's layers have first derivatives only; gruclip.gru.plain_gru has second ones"
    )


def refuse_forward(ctx: Any, *tangents: Any) -> Any:
    """For derivatives in forward mode: raises `UserError`."""
    raise UserError(
        "jvp, jacfwd: gruclip's layers have derivatives in reverse mode only; gruclip.gru.plain_gru has both"
    )


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off: it would change the dtype of products whose memory a kernel then reads as another."""
    on = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def forward(function: Callable[..., T]) -> Callable[..., T]:
    """For the forward pass of a `torch.autograd.Function` whose first argument is a tensor."""

    @functools.wraps(function)
    def run(ctx: Any, first: Tensor, *others: Any) -> T:
        with without_autocast(first.device):
            return function(ctx, first, *others)

    return run


def backward(function: Callable[[Any, Tensor], T]) -> Callable[[Any, Tensor], T]:
    """For its backward pass, which is not differentiated itself.

    torch's `once_differentiable` complains only where the gradient that comes in depends on something, and gives wrong
    second derivatives elsewhere; this raises `UserError` wherever they could be taken.
    """

    @functools.wraps(function)
    def run(ctx: Any, grad: Tensor) -> T:
        if torch.is_grad_enabled():
            refuse_second(ctx)
        with without_autocast(grad.device):
            return function(ctx, grad)

    return run
