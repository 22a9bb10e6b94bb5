"""What takes one pass over its arrays by a Triton kernel, and several by torch's operations: on a GPU.

Each function has the plain operations beside its call, and a test that holds the two together; `takes` says which are
used. Nothing here needs Triton to be installed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from typing import Any

import torch
from torch import Tensor

#: Elements per program of a kernel, and of a layer's step, which has few; the longest row of one program.
BLOCK, STEP_BLOCK, MAX_ROW = 1024, 256, 1 << 16

#: What a program of a step's kernels with products takes: units, and terms of the sum at a time.
PRODUCT_BLOCKS = {"UNITS": 64, "K": 64, "num_warps": 4, "num_stages": 4}
#: Units of a layer, at most: offsets into both gates' weights are 32-bit integers.
MAX_UNITS = (1 << 15) - 1

#: Set by tests, where TRITON_INTERPRET=1 was set before Triton was first imported: the kernels take the CPU's tensors.
INTERPRETED = False


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels take these: float32 or bf16 and contiguous, on a GPU with Triton, or interpreted."""
    return all(
        (tensor.is_cuda or INTERPRETED) and tensor.dtype in (torch.float32, torch.bfloat16) and tensor.is_contiguous()
        for tensor in tensors
    ) and runs_on(tensors[0].device)


def runs_on(device: torch.device) -> bool:
    """Whether there are Triton's kernels for this device."""
    if not (device.type == "cuda" or INTERPRETED):
        return False
    return os.environ.get("GRUCLIP_TRITON") != "0" and _installed() and (INTERPRETED or _works(device))


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether a kernel can be compiled and run: that takes a C compiler, and a GPU that Triton knows."""
    try:
        parameter = torch.zeros(1, 1, device=device)
        update_(parameter, torch.ones_like(parameter), torch.ones(1, device=device), None)
        return float(parameter) == -1.0
    except Exception as error:  # of any kind: a compiler's, the driver's, Triton's own
        message = f"Triton's kernels do not work on {device}, torch's operations take their place: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False


@functools.cache
def _kernels() -> dict[str, Any]:
    names = "fused_triton", "gru_steps_triton", "program_triton"
    modules = (importlib.import_module(f"gruclip.kernels.{name}") for name in names)
    return {name: kernel for module in modules for name, kernel in vars(module).items()}


def launch(kernel: str, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Start a kernel of `fused_triton`, `gru_steps_triton` or `program_triton` on the device of its first argument."""
    with torch.cuda.device_of(arguments[0]):
        _kernels()[kernel][grid](*arguments, **options)


def takes_logits(logits: Tensor) -> bool:
    return takes(logits) and logits.shape[-1] <= MAX_ROW


def softmax_nll_(logits: Tensor, bias: Tensor, targets: Tensor, gradient: bool) -> Tensor:
    """``-log softmax(logits + bias)[target]`` of every row, float32 (R, M); with `gradient` the logits become the
    gradient of its sum by them.

    logits (R, M, V), bias (R, V), targets (R, M) or expanded to that.
    """
    runs, rows, words = logits.shape
    nll = logits.new_empty(runs, rows, dtype=torch.float32)
    block = max(16, 1 << (words - 1).bit_length())
    launch(
        "softmax_nll", (rows, runs), logits, bias, targets, nll, rows, words, targets.stride(0), GRADIENT=gradient,
        BLOCK=block, num_warps=8 if block >= 4096 else 4,
    )  # fmt: skip
    return nll


def random_factors(seeds: Tensor, shape: tuple[int, ...], threshold: int, factor: float, like: Tensor) -> Tensor:
    """`dropout.factors` of the `dropout.random_bits` of each seed, (R, *shape), in the dtype of `like`."""
    out = like.new_empty(len(seeds), *shape)
    numbers = out[0].numel()
    grid = -(-numbers // (4 * BLOCK)), len(seeds)
    launch("random_factors", grid, seeds, out, numbers, threshold, factor, BLOCK=BLOCK)
    return out


def update_(parameter: Tensor, gradient: Tensor, steps: Tensor, copy: Tensor | None) -> None:
    """``parameter <- parameter - step * gradient`` for each run (R, ...), also rounded to `copy`; steps (R,)."""
    size = parameter[0].numel()
    grid = -(-size // BLOCK), parameter.shape[0]
    held = parameter if copy is None else copy
    launch("update", grid, parameter, gradient, steps.float(), held, size, COPY=copy is not None, BLOCK=BLOCK)


def row_norms(array: Tensor) -> Tensor:
    """Norms along the last axis in float64, of which torch's own would first make a copy of the array."""
    norms = array.new_empty(array.shape[:-1], dtype=torch.float64)
    width = array.shape[-1]
    block = min(BLOCK, max(16, 1 << (width - 1).bit_length()))
    launch("row_norms", (norms.numel(),), array, norms, width, BLOCKS=-(-width // block), BLOCK=block)
    return norms


def step_(kernel: str, *arrays: Tensor, keep: Tensor | None, step: int, steps: int) -> None:
    """One of the kernels of a step of the paper's GRU, on its `arrays` as `gru_steps` has them, all contiguous.

    The last array is (..., B, n); keep (..., T, B) or None.
    """
    *lead, batch, n = arrays[-1].shape
    grid = -(-batch * n // STEP_BLOCK), lead[0] if lead else 1
    factors = arrays[-1] if keep is None else keep
    launch(kernel, grid, *arrays, factors, step, steps, batch, n, KEEP=keep is not None, BLOCK=STEP_BLOCK)


def product_step_(kernel: str, *arrays: Tensor, keep: Tensor | None, step: int, steps: int) -> None:
    """As `step_` one with a product: the first of the arrays is the weight (..., 3n, n) in bf16."""
    *lead, batch, n = arrays[-1].shape
    rows = min(64, max(16, 1 << (batch - 1).bit_length()))
    grid = -(-n // PRODUCT_BLOCKS["UNITS"]), lead[0] if lead else 1, -(-batch // rows)
    factors = arrays[-1] if keep is None else keep
    launch(
        kernel, grid, *arrays, factors, step, steps, batch, n, KEEP=keep is not None, ROWS=rows,
        WIDE=INTERPRETED, **PRODUCT_BLOCKS,
    )  # fmt: skip
