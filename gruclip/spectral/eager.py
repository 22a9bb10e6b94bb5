"""What every call of this room's functions goes through, so that nothing around it changes what they do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from gruclip.errors import UserError
from gruclip.kernels.derivatives import without_autocast

P = ParamSpec("P")
T = TypeVar("T")


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, at which `torch.compile` breaks its graph and calls it: it decides by values."""
    # torch's decorator for this imports its compiler, seconds of it, at the first call: not where nothing is compiled.
    hidden = torch._disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (hidden if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return call


def eagerly(function: Callable[Concatenate[Tensor, P], T]) -> Callable[Concatenate[Tensor, P], T]:
    """`function` of matrices, `untraced`, without autocast, in whose dtypes no certificate would hold, and without a
    default device, on which the host's own numbers would be made. Raises `UserError` for a weight that is no tensor.
    """

    @functools.wraps(function)
    def guarded(weight: Tensor, *args: P.args, **kwargs: P.kwargs) -> T:
        if not isinstance(weight, Tensor):
            raise UserError(f"weight of {type(weight).__name__}: should be a tensor")
        # A default device is a mode for functions. To enter one takes a few microseconds more for each call.
        on_the_host = torch.device("cpu") if torch._C._len_torch_function_stack() else nullcontext()
        with without_autocast(weight.device), on_the_host:
            return function(weight, *args, **kwargs)

    return untraced(guarded)
