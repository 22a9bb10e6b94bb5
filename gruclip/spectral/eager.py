"""Decorators that shield this room's functions from torch's modes around a call: compilation, autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from gruclip.errors import UserError
from gruclip.kernels.derivatives import is_recorded, without_autocast

P = ParamSpec("P")
T = TypeVar("T")


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, called eagerly by `torch.compile` (a graph break): it branches on values."""
    # torch's decorator imports the compiler at its first call, which takes seconds: only where something is compiled.
    hidden = torch._disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (hidden if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return call


def eagerly(function: Callable[Concatenate[Tensor, P], T]) -> Callable[Concatenate[Tensor, P], T]:
    """`function` of matrices, `untraced`, with autocast off, in whose dtypes no certificate holds, and with the CPU as
    default device, for the host's own numbers. Raises `UserError` for a weight that is no tensor, and if it is traced.
    """

    @functools.wraps(function)
    def guarded(weight: Tensor, *args: P.args, **kwargs: P.kwargs) -> T:
        if not isinstance(weight, Tensor):
            raise UserError(f"weight of {type(weight).__name__}: should be a tensor")
        if is_recorded():
            raise UserError(
                "torch.jit.trace, make_fx and torch.export would keep what is done for these numbers alone; call it "
                "outside of them"
            )
        # A default device is a torch function mode; to enter one costs microseconds a call.
        on_the_host = torch.device("cpu") if torch._C._len_torch_function_stack() else nullcontext()
        with without_autocast(weight.device), on_the_host:
            return function(weight, *args, **kwargs)

    return untraced(guarded)
