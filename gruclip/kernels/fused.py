"""What takes one pass over its arrays by a Triton kernel, and several by torch's operations: on a GPU.

Each function has the plain operations beside its call, and a test that holds the two together; `takes` says which are
used. Nothing here needs Triton to be installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

#: Numbers that a program of a kernel takes; the longest row that one does.
BLOCK, LONGEST_ROW = 1024, 1 << 16

#: Set by tests, where TRITON_INTERPRET=1 was set before Triton was first imported: the kernels take the CPU's tensors.
INTERPRETED = False


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels take these: float32 or bf16 and contiguous, on a GPU with Triton, or interpreted."""
    return all(
        (tensor.is_cuda or INTERPRETED) and tensor.dtype in (torch.float32, torch.bfloat16) and tensor.is_contiguous()
        for tensor in tensors
    ) and (os.environ.get("GRUCLIP_TRITON") != "0" and _installed())


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _kernels() -> ModuleType:
    return importlib.import_module("gruclip.kernels.fused_triton")


def takes_logits(logits: Tensor) -> bool:
    return takes(logits) and logits.shape[-1] <= LONGEST_ROW


def softmax_nll_(logits: Tensor, bias: Tensor, targets: Tensor, gradient: bool) -> Tensor:
    """``-log softmax(logits + bias)[target]`` of every row, float32 (R, M); with `gradient` the logits become the
    gradient of its sum by them.

    logits (R, M, V), bias (R, V), targets (R, M) or expanded to that.
    """
    runs, rows, words = logits.shape
    nll = logits.new_empty(runs, rows, dtype=torch.float32)
    block = max(16, 1 << (words - 1).bit_length())
    _kernels().softmax_nll[rows, runs](
        logits, bias, targets, nll, rows, words, targets.stride(0), GRADIENT=gradient, BLOCK=block,
        num_warps=8 if block >= 4096 else 4,
    )  # fmt: skip
    return nll


def random_factors(seeds: Tensor, shape: tuple[int, ...], threshold: int, factor: float, like: Tensor) -> Tensor:
    """`dropout.factors` of the `dropout.random_bits` of each seed, (R, *shape), in the dtype of `like`."""
    out = like.new_empty(len(seeds), *shape)
    numbers = out[0].numel()
    grid = -(-numbers // (4 * BLOCK)), len(seeds)
    _kernels().random_factors[grid](seeds, out, numbers, threshold, factor, BLOCK=BLOCK)
    return out


def update_(parameter: Tensor, gradient: Tensor, steps: Tensor, copy: Tensor | None) -> None:
    """``parameter <- parameter - step * gradient`` for each run (R, ...), also rounded to `copy`; steps (R,)."""
    size = parameter[0].numel()
    grid = -(-size // BLOCK), parameter.shape[0]
    held = parameter if copy is None else copy
    _kernels().update[grid](parameter, gradient, steps.float(), held, size, COPY=copy is not None, BLOCK=BLOCK)
